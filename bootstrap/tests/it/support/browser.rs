//! A page in a real browser, driven through the `DevTools` protocol of Chromium.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::Folder;

const PATIENCE: Duration = Duration::from_secs(30);
/// For one answer of the browser, which may draw a large page first, on cores that all tests share.
const ANSWER_PATIENCE: Duration = Duration::from_secs(180);

/// A page in a browser of its own.
#[derive(Debug)]
pub(crate) struct Page {
    browser: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    session: Option<String>,
    last_id: u64,
    /// The events of the page so far.
    events: Vec<Value>,
    _profile: Folder,
}

impl Page {
    pub(crate) async fn open(chromium: &str, url: &str) -> Self {
        let profile = Folder::new();
        // The browser reads from file 3 and writes to file 4, one JSON text after the other, each
        // with a zero byte behind it.
        let mut browser = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1", chromium])
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--disable-background-networking", "--disable-extensions"])
            .args(["--window-size=1280,860", "--remote-debugging-pipe"])
            .arg("--host-resolver-rules=MAP *.test 127.0.0.1")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let input = browser.stdin.take().unwrap();
        let output = BufReader::new(browser.stdout.take().unwrap());
        let (session, last_id, events) = (None, 0, Vec::new());
        let mut page = Self { browser, input, output, session, last_id, events, _profile: profile };

        let target = page.call("Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = page.call("Target.attachToTarget", attach).await;
        page.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log", "Network"] {
            page.call(&format!("{domain}.enable"), json!({})).await;
        }
        // Without animations, so that the pictures do not differ.
        page.colours("light").await;
        page.go(url).await;
        page
    }

    /// Goes to another page.
    pub(crate) async fn go(&mut self, url: &str) {
        let gone = self.call("Page.navigate", json!({ "url": url })).await;
        assert!(gone["errorText"].is_null(), "{url}: {gone}");
        self.until("document.readyState === 'complete'").await;
    }

    /// Clicks on the link that a selector names.
    pub(crate) async fn follow(&mut self, selector: &str) {
        self.evaluate(&format!("document.querySelector(\"{selector}\").click()")).await;
    }

    /// Presses the button of the form that an expression names.
    pub(crate) async fn submit(&mut self, form: &str) {
        self.evaluate(&format!("{form}.querySelector('[type=submit]').click()")).await;
    }

    /// Makes the user prefer `light` or `dark` colours, and still pictures.
    pub(crate) async fn colours(&mut self, colours: &str) {
        let features = json!([
            { "name": "prefers-reduced-motion", "value": "reduce" },
            { "name": "prefers-color-scheme", "value": colours },
        ]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features })).await;
    }

    /// Makes the window as wide as a phone.
    pub(crate) async fn narrow(&mut self, width: u32) {
        let screen =
            json!({ "width": width, "height": 844, "deviceScaleFactor": 2, "mobile": true });
        self.call("Emulation.setDeviceMetricsOverride", screen).await;
    }

    pub(crate) async fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut request = json!({ "id": self.last_id, "method": method, "params": params });
        if let Some(session) = &self.session {
            request["sessionId"] = session.as_str().into();
        }
        let mut text = request.to_string().into_bytes();
        text.push(0);
        self.input.write_all(&text).await.unwrap();

        loop {
            let mut text = Vec::new();
            let read = timeout(ANSWER_PATIENCE, self.output.read_until(0, &mut text));
            read.await.expect(method).unwrap();
            assert_eq!(text.pop(), Some(0), "the browser ended during {method}");
            let mut said: Value = serde_json::from_slice(&text).unwrap();
            if said["id"] == self.last_id {
                assert!(said["error"].is_null(), "{method}: {}", said["error"]);
                return said["result"].take();
            }
            self.events.push(said);
        }
    }

    /// Evaluates a JavaScript expression in the page.
    pub(crate) async fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        let mut answer = self.call("Runtime.evaluate", params).await;
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    pub(crate) async fn until(&mut self, condition: &str) {
        let begun = tokio::time::Instant::now();
        while self.evaluate(condition).await != true {
            let shown = "document.body.innerText";
            assert!(
                begun.elapsed() < PATIENCE,
                "not within {PATIENCE:?}: {condition}\n{}",
                self.evaluate(shown).await
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn text(&mut self, id: &str) -> String {
        let expression = format!("document.getElementById('{id}').textContent");
        self.evaluate(&expression).await.as_str().unwrap().to_owned()
    }

    /// Types into the field that has the focus.
    pub(crate) async fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text })).await;
    }

    /// Clicks in the middle of an element, as a mouse does.
    pub(crate) async fn click(&mut self, id: &str) {
        let expression = format!(
            "(() => {{ const element = document.getElementById('{id}');
                element.scrollIntoView({{ block: 'center', behavior: 'instant' }});
                const box = element.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2]; }})()"
        );
        let place = self.evaluate(&expression).await;
        for kind in ["mousePressed", "mouseReleased"] {
            let click = json!({
                "type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1,
            });
            self.call("Input.dispatchMouseEvent", click).await;
        }
    }

    /// Stores a screenshot of the whole page, for people to look at.
    pub(crate) async fn picture(&mut self, name: &str) {
        let params = json!({ "captureBeyondViewport": true });
        let picture = self.call("Page.captureScreenshot", params).await;
        let picture = STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        assert!(picture.starts_with(b"\x89PNG"));
        let path = target_folder().join(name);
        std::fs::write(&path, picture).unwrap();
        println!("see {}", path.display());
    }

    /// Closes the browser, and checks that its console has no error and that every request went to
    /// the service.
    pub(crate) async fn close(mut self, origin: &str) {
        // All earlier events have arrived before this answer.
        self.evaluate("0").await;
        let mut requests = 0;
        for event in &self.events {
            let params = &event["params"];
            match event["method"].as_str().unwrap_or_default() {
                "Runtime.exceptionThrown" => panic!("{params}"),
                "Runtime.consoleAPICalled" => panic!("the console: {params}"),
                "Log.entryAdded" => assert_ne!(params["entry"]["level"], "error", "{params}"),
                "Network.requestWillBeSent" => {
                    let url = params["request"]["url"].as_str().unwrap();
                    let (scheme, place) = url.split_once(':').unwrap();
                    // A user and a password may stand before the host.
                    let place = place.split_once('@').map_or(place, |it| it.1);
                    let place = place.trim_start_matches('/');
                    let own = scheme == "data"
                        || format!("{scheme}://{place}/").starts_with(&format!("{origin}/"));
                    assert!(own, "a request to {url}");
                    requests += 1;
                }
                _ => {}
            }
        }
        assert!(requests >= 2, "only {requests} requests were seen");
        self.session = None;
        self.call("Browser.close", json!({})).await;
        timeout(PATIENCE, self.browser.wait()).await.expect("the browser ends").unwrap();
    }
}

/// Returns the target directory of cargo.
fn target_folder() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_messager"));
    binary.ancestors().nth(2).unwrap().to_owned()
}
