//! The page for trying the service, in a real browser.

use std::{
    collections::VecDeque,
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

use super::support::{Binary, Folder, Running, environment, eventually, get};

const PATIENCE: Duration = Duration::from_secs(30);
/// For one answer of the browser, which may draw a large page first, on cores that all tests share.
const ANSWER_PATIENCE: Duration = Duration::from_secs(180);
const PHONE: &str = "79991234567";

/// The steps that the timeline shows as done.
const EVENTS: &str =
    "[...document.querySelectorAll('#events li:not(.hoped) b')].map((it) => it.textContent)";

/// A page in a browser of its own, driven through the `DevTools` protocol of Chromium.
#[derive(Debug)]
struct Page {
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
    async fn open(chromium: &str, url: &str) -> Self {
        let profile = Folder::new();
        // The browser reads from file 3 and writes to file 4, one JSON text after the other, each
        // with a zero byte behind it.
        let mut browser = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1", chromium])
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--disable-background-networking", "--disable-extensions"])
            .args(["--window-size=1280,860", "--remote-debugging-pipe"])
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
        let still = json!([{ "name": "prefers-reduced-motion", "value": "reduce" }]);
        page.call("Emulation.setEmulatedMedia", json!({ "features": still })).await;
        page.call("Page.navigate", json!({ "url": url })).await;
        page.until("document.readyState === 'complete'").await;
        page
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
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
    async fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        let mut answer = self.call("Runtime.evaluate", params).await;
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    async fn until(&mut self, condition: &str) {
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

    async fn text(&mut self, id: &str) -> String {
        let expression = format!("document.getElementById('{id}').textContent");
        self.evaluate(&expression).await.as_str().unwrap().to_owned()
    }

    /// Types into the field that has the focus.
    async fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text })).await;
    }

    /// Clicks in the middle of an element, as a mouse does.
    async fn click(&mut self, id: &str) {
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
    async fn picture(&mut self, name: &str) {
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
    async fn close(mut self, origin: &str) {
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
                    let own = url.starts_with(&format!("{origin}/")) || url.starts_with("data:");
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

/// Returns the codes that the console has shown, in order.
fn codes(messager: &Running) -> VecDeque<String> {
    let prefix = format!("SMS to {PHONE}: ");
    let code = |line: &str| -> Option<String> {
        let text = line.strip_prefix(&prefix)?;
        let digits = text.split(|letter: char| !letter.is_ascii_digit());
        digits.filter(|digits| digits.len() == 6).map(str::to_owned).next()
    };
    messager.stdout().lines().filter_map(code).collect()
}

/// Asks for a code on the page, and reads it from the console.
async fn ask_for_code(page: &mut Page, messager: &Running) -> String {
    assert_eq!(page.text("state").await, "ready");
    page.click("phone").await;
    page.type_text("+7 999 123-45-67").await;
    page.click("send").await;
    page.until("document.activeElement.id === 'code'").await;
    assert_eq!(page.text("masked").await, "+7999*****67");
    eventually("shown on the console", PATIENCE, async || codes(messager).pop_front()).await
}

#[tokio::test]
async fn number_is_verified_on_the_page() {
    let Some(chromium) = environment("TEST_CHROMIUM") else { return };
    let folder = Folder::new();
    let messager = Binary::new("messager", folder.path()).ready().await;
    let origin = format!("http://127.0.0.1:{}", messager.port);
    let mut page = Page::open(&chromium, &format!("{origin}/")).await;

    let code = ask_for_code(&mut page, &messager).await;
    page.until(&format!("{EVENTS}.includes('Sent')")).await;
    page.picture("page-code.png").await;
    page.type_text(&code).await;
    page.click("verify").await;
    page.until("document.getElementById('state').textContent === 'verified'").await;

    assert_eq!(page.text("end-title").await, "Verified");
    let kinds = page.evaluate(EVENTS).await;
    for kind in ["Created", "Queued", "Sent", "Approved"] {
        assert!(kinds.as_array().unwrap().contains(&kind.into()), "{kinds}");
    }
    let calls = page.text("calls").await;
    assert!(calls.contains("\"phone\":\"+79991234567\""), "{calls}");
    assert!(calls.contains("\"valid\": true"), "{calls}");
    page.picture("page.png").await;
    page.close(&origin).await;
}

#[tokio::test]
async fn page_shows_and_counts_a_wrong_code() {
    let Some(chromium) = environment("TEST_CHROMIUM") else { return };
    let folder = Folder::new();
    let messager = Binary::new("messager", folder.path()).ready().await;
    let origin = format!("http://127.0.0.1:{}", messager.port);
    let mut page = Page::open(&chromium, &format!("{origin}/")).await;

    let code = ask_for_code(&mut page, &messager).await;
    let wrong = if code == "000000" { "000001" } else { "000000" };
    page.type_text(wrong).await;
    page.click("verify").await;
    page.until("!document.getElementById('code-wrong').hidden").await;
    assert_eq!(page.text("code-wrong").await, "That is not the code.");
    assert_eq!(page.text("attempts").await, "4 attempts left");
    assert_eq!(page.text("state").await, "waiting for the code");
    page.picture("page-wrong.png").await;

    // The wrong code is selected, so that typing replaces it.
    page.type_text(&code).await;
    page.click("verify").await;
    page.until("document.getElementById('state').textContent === 'verified'").await;
    page.close(&origin).await;
}

#[tokio::test]
async fn reference_shows_every_operation() {
    let Some(chromium) = environment("TEST_CHROMIUM") else { return };
    let folder = Folder::new();
    let messager = Binary::new("messager", folder.path()).ready().await;
    let origin = format!("http://127.0.0.1:{}", messager.port);
    let mut page = Page::open(&chromium, &format!("{origin}/docs")).await;

    page.until("document.querySelector('.opblock-body') !== null").await;

    // Not `innerText`, which lays out the whole page.
    let shown = page.text("reference").await;
    // Swagger UI allows line breaks at the slashes of a path.
    let shown = shown.replace('\u{200b}', "");
    let (_, description) = get(messager.port, "/openapi.json").await.unwrap();
    let description: Value = serde_json::from_str(&description).unwrap();
    for path in description["paths"].as_object().unwrap().keys() {
        assert!(shown.contains(path.as_str()), "{path} is not shown");
    }
    // The page shows the target instead of the reference.
    assert!(!shown.contains("$ref") && shown.contains("attempts_left"), "{shown}");
    page.picture("docs.png").await;
    page.close(&origin).await;
}
