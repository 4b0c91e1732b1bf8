//! The operator's page.

use std::{sync::Mutex, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::support::{
    Binary, Folder, Page, Running, Stack, code_for, environment, eventually, free_port, phone,
    post, raw,
};

const PATIENCE: Duration = Duration::from_secs(60);
const PASSWORD: &str = "a-password-of-the-page";
const SHOWN: (&str, &str) = ("OPERATOR_PASSWORD", PASSWORD);

/// An operator who uses the page of a process.
struct Operator {
    port: u16,
    /// The answers so far.
    seen: Mutex<Vec<String>>,
}

impl Operator {
    fn of(process: &Running) -> Self {
        Self { port: process.metrics_port, seen: Mutex::default() }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.ask("GET", path, "").await
    }

    async fn post(&self, path: &str, body: &str) -> (u16, String) {
        self.ask("POST", path, body).await
    }

    /// Returns the status, and the answer with its head.
    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let (port, length) = (self.port, body.len());
        let password = STANDARD.encode(format!("anyone:{PASSWORD}"));
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost:{port}\r\nOrigin: http://localhost:{port}\r\n\
             Authorization: Basic {password}\r\nContent-Length: {length}\r\nConnection: close\r\n\
             \r\n{body}"
        );
        let answer = raw(port, request.as_bytes()).await;
        self.seen.lock().unwrap().push(answer.clone());
        let status = answer.get(9..12).and_then(|status| status.parse().ok());
        (status.expect(&answer), answer)
    }

    /// Waits until a page shows `text`. A page may be a second old.
    async fn shows(&self, path: &str, text: &str) -> String {
        eventually(text, PATIENCE, async || {
            let (_, page) = self.get(path).await;
            page.contains(text).then_some(page)
        })
        .await
    }
}

/// Returns a role of the database that may do what `role` and the commands of `messager` may do.
async fn role_with_page(stack: &Stack, role: &str) -> String {
    let name = format!("page_{}", stack.postgres.name);
    let password = &stack.postgres.password;
    let create =
        format!("CREATE ROLE {name} LOGIN PASSWORD '{password}' IN ROLE {role}, messager_operator");
    stack.postgres.execute(&create).await;
    name
}

#[tokio::test]
async fn operator_finds_a_message_by_id_and_by_phone_and_sees_no_number_and_no_code() {
    let Some(stack) = Stack::new().await else { return };
    let role = role_with_page(&stack, "messager_processor").await;
    let processor = stack.start("processor", &[SHOWN, ("POSTGRES_USER", &role)]).ready().await;
    let _consumer = stack.start("consumer", &[]).ready().await;
    let api = stack.start("api", &[]).ready().await;
    let operator = Operator::of(&processor);
    assert_eq!(post(api.port, &phone(1)).await.0, 200);
    let code = code_for(&stack.gateway, &phone(1)).await;

    let status = operator.shows("/operator", "by 1 consumer").await;
    for part in ["<h1>Status</h1>", "<b>broker</b> up", "data-name=\"lease ms\"", "webhook"] {
        assert!(status.contains(part), "{part}: {status}");
    }
    let typed = format!("about=%2B{}", phone(1));
    let story = eventually("sent", PATIENCE, async || {
        let (status, story) = operator.post("/operator/messages", &typed).await;
        (status == 200 && story.contains(">sent<")).then_some(story)
    })
    .await;
    for part in ["through /api", "accepted", "taken over", "1 found; all", "*****"] {
        assert!(story.contains(part), "{part}: {story}");
    }
    let id = story.split("href=\"/operator/messages/ver_").nth(1).unwrap();
    let id = format!("ver_{}", id.split('"').next().unwrap());
    let (status, sent_on) = operator.post("/operator/messages", &format!("about={id}")).await;
    assert_eq!(status, 303);
    let path = format!("/operator/messages/{id}");
    assert!(sent_on.contains(&format!("location: {path}\r\n")), "{sent_on}");
    let (status, story) = operator.get(&path).await;
    assert!(status == 200 && story.contains(">sent<"), "{story}");
    let (status, none) = operator.post("/operator/messages", "about=79999999999").await;
    assert!(status == 404 && none.contains("nothing is known of"), "{none}");

    let log = processor.stderr();
    for text in operator.seen.lock().unwrap().iter().chain([&log]) {
        for secret in [&*phone(1), &code, PASSWORD, "79999999999"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    }
}

#[tokio::test]
async fn operator_retries_and_discards_dead_letters() {
    let Some(stack) = Stack::new().await else { return };
    let role = role_with_page(&stack, "messager_consumer").await;
    let earliest = ("CONSUMER_AUTO_OFFSET_RESET", "earliest");
    let shown = [SHOWN, earliest, ("POSTGRES_USER", &*role)];
    let consumer = stack.start("consumer", &shown).ready().await;
    let operator = Operator::of(&consumer);
    stack
        .topic
        .console_produce("{\"phone\":\"79991234567\",\"code\":\"777123\"}\n{\"p\":1}\n")
        .await;
    let list = "/operator/dead-letters";
    operator.shows(list, "lacks a phone").await;
    eventually("sent", PATIENCE, async || (stack.gateway.count() == 1).then_some(())).await;
    // Pretend that an older version in another group could not read the message.
    let other = "INSERT INTO dead_letter (id, group_id, topic, partition, record_offset, reason)
        OVERRIDING SYSTEM VALUE
        SELECT 20, '2', topic, partition, 0, 'too <b>new</b>' FROM delivery";
    stack.postgres.execute(other).await;

    let page = operator.shows(list, "too &lt;b&gt;new&lt;/b&gt;").await;
    assert!(page.contains("href=\"/operator/dead-letters/20/retry\""), "{page}");
    let (status, confirm) = operator.get("/operator/dead-letters/20/retry").await;
    assert!(status == 200 && confirm.contains("Retry dead letter 20?"), "{confirm}");
    let count = "SELECT count(*) FROM dead_letter";
    assert_eq!(stack.postgres.number(count).await, 2, "nothing is done before the confirmation");

    let (status, done) = operator.post("/operator/dead-letters/20/retry", "").await;
    assert!(status == 200 && done.contains("dead letter 20: will be sent"), "{done}");
    let (status, again) = operator.post("/operator/dead-letters/20/retry", "").await;
    assert!(status == 409 && again.contains("there is no such dead letter"), "{again}");
    let (status, still) = operator.post("/operator/dead-letters/1/retry", "").await;
    assert!(status == 409 && still.contains("still cannot be read"), "{still}");
    let (_, page) = operator.get(list).await;
    assert!(page.contains("lacks a phone") && !page.contains("too &lt;b"), "{page}");
    let (status, done) = operator.post("/operator/dead-letters/1/discard", "").await;
    assert!(status == 200 && done.contains("dead letter 1: discarded"), "{done}");

    assert_eq!(stack.postgres.number(count).await, 0);
    let (_, page) = operator.get(list).await;
    assert!(page.contains("There are no dead letters."), "{page}");
    let log = consumer.stderr();
    assert_eq!(log.matches("\"acted for the operator\"").count(), 2, "{log}");
    assert!(log.contains("\"what\":\"retry dead letter 20\""), "{log}");
    assert!(log.contains("\"did not act for the operator\""), "{log}");
}

#[tokio::test]
async fn operator_drains_a_gateway() {
    let Some(stack) = Stack::new().await else { return };
    let role = role_with_page(&stack, "messager_consumer").await;
    let consumer = stack.start("consumer", &[SHOWN, ("POSTGRES_USER", &role)]).ready().await;
    let operator = Operator::of(&consumer);
    let gateways = "/operator/gateways";
    operator.shows(gateways, ">closed<").await;

    let (status, done) = operator.post("/operator/gateways/default/drain", "").await;
    assert!(status == 200 && done.contains("default is drained"), "{done}");
    let (_, page) = operator.get(gateways).await;
    assert!(page.contains("href=\"/operator/gateways/default/undrain\""), "{page}");
    let drained = "SELECT count(*) FROM gateway_control WHERE gateway = 'default'";
    assert_eq!(stack.postgres.number(drained).await, 1);
    operator.shows("/operator", ">drained<").await;

    let (status, done) = operator.post("/operator/gateways/default/undrain", "").await;
    assert!(status == 200 && done.contains("default is in service again"), "{done}");
    assert_eq!(stack.postgres.number(drained).await, 0);
    let (status, unknown) = operator.post("/operator/gateways/other/drain", "").await;
    assert!(status == 409 && unknown.contains("there is no gateway other"), "{unknown}");
}

/// The role of each part lacks the privileges of the page, and works without them.
#[tokio::test]
async fn process_without_the_rights_for_its_page_says_so_and_is_ready() {
    let Some(stack) = Stack::new().await else { return };
    let processor = stack.start("processor", &[SHOWN]).ready().await;
    let operator = Operator::of(&processor);
    let downs = || processor.stderr().matches("check is down").count();
    let before = downs();

    let (status, page) = operator.get("/operator/gateways").await;

    assert_eq!(status, 503, "{page}");
    assert!(page.contains("permission denied for table gateway_control"), "{page}");
    // The second check from here began after the failure, and would report it.
    let probed = "SELECT coalesce(max(written_at), 0) FROM write_probe";
    for _ in 0..2 {
        let last = stack.postgres.number(probed).await;
        eventually("a check of the database", PATIENCE, async || {
            (stack.postgres.number(probed).await > last).then_some(())
        })
        .await;
    }
    let (ready, checks) = crate::support::get(processor.metrics_port, "/readyz").await.unwrap();
    assert_eq!(ready, 200, "{checks}");
    assert_eq!(downs(), before, "{}", processor.stderr());
}

#[tokio::test]
async fn page_works_without_a_database_and_exists_only_with_a_password() {
    let folder = Folder::new();
    std::fs::write(folder.path().join("password"), format!("{PASSWORD}\n")).unwrap();
    let nowhere = free_port().to_string();
    let start = |password: Option<&str>| {
        let processor = Binary::new("processor", folder.path())
            .env("POSTGRES_HOST", "127.0.0.1")
            .env("POSTGRES_PORT", &nowhere)
            .env("POSTGRES_DB", "x")
            .env("POSTGRES_USER", "x")
            .env("POSTGRES_PASSWORD", "x")
            .env("DB_SSL_MODE", "disable");
        match password {
            Some(file) => processor.env("OPERATOR_PASSWORD_FILE", file).spawn(),
            None => processor.spawn(),
        }
    };
    let (with, without) = (start(Some("password")), start(None));
    for process in [&with, &without] {
        eventually("alive", PATIENCE, async || {
            crate::support::get(process.metrics_port, "/healthz").await
        })
        .await;
    }

    let (status, page) = Operator::of(&with).get("/operator").await;
    assert_eq!(status, 503, "{page}");
    for part in ["The database cannot be read", "127.0.0.1", "<b>database</b>", "</html>"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let log = with.stderr();
    assert!(log.contains("OPERATOR_PASSWORD crosses the network in clear text"), "{log}");
    assert!(!page.contains(PASSWORD) && !log.contains(PASSWORD), "{page}{log}");
    assert_eq!(Operator::of(&without).get("/operator").await.0, 404);
}

#[tokio::test]
async fn wrong_passwords_count_for_the_caller_behind_a_trusted_proxy() {
    let folder = Folder::new();
    let messager = Binary::new("messager", folder.path())
        .env(SHOWN.0, SHOWN.1)
        .env("TRUSTED_PROXIES", "127.0.0.0/8")
        .ready()
        .await;
    let ask = async |caller: &str, password: &str| {
        let (port, password) =
            (messager.metrics_port, STANDARD.encode(format!("anyone:{password}")));
        let request = format!(
            "GET /operator/messages HTTP/1.1\r\nHost: localhost:{port}\r\n\
             X-Forwarded-For: {caller}\r\nAuthorization: Basic {password}\r\n\
             Connection: close\r\n\r\n"
        );
        raw(port, request.as_bytes()).await[9..12].to_owned()
    };

    for _ in 0..10 {
        assert_eq!(ask("203.0.113.7", "wrong").await, "401");
    }

    assert_eq!(ask("203.0.113.7", PASSWORD).await, "429");
    assert_eq!(ask("203.0.113.8", PASSWORD).await, "200");
    let log = messager.stderr();
    let warning = log.lines().find(|line| line.contains("10 wrong passwords")).expect(&log);
    assert!(warning.contains("203.0.113.7") && !log.contains(PASSWORD), "{log}");
}

#[tokio::test]
async fn page_refreshes_finds_and_drains_in_a_browser_and_fits_a_phone() {
    let Some(chromium) = environment("TEST_CHROMIUM") else { return };
    let folder = Folder::new();
    let (name, password) = SHOWN;
    let messager = Binary::new("messager", folder.path()).env(name, password).ready().await;
    assert_eq!(post(messager.port, &phone(1)).await.0, 200);
    // Over HTTP to a name that is not of its own machine, a browser sends no `Sec-Fetch-Site`.
    let origin = format!("http://messager.test:{}", messager.metrics_port);
    let with_password = origin.replace("://", &format!("://operator:{PASSWORD}@"));
    let mut page = Page::open(&chromium, &format!("{with_password}/operator")).await;

    assert_eq!(page.evaluate("document.title").await, "Status – messager");
    let accepted = |count: u32| {
        format!(
            "[...document.querySelectorAll('td')].some((it) => it.textContent === 'accepted' && \
             it.nextElementSibling.textContent === '{count}')"
        )
    };
    page.until(&accepted(1)).await;
    assert_eq!(post(messager.port, &phone(2)).await.0, 200);
    page.until(&accepted(2)).await;
    page.colours("light").await;
    page.picture("operator-status.png").await;
    page.colours("dark").await;
    page.picture("operator-status-dark.png").await;
    page.narrow(390).await;
    page.picture("operator-status-narrow.png").await;

    page.go(&format!("{origin}/operator/messages")).await;
    page.evaluate("document.getElementById('about').focus()").await;
    page.type_text("+7 000 000-00-01").await;
    page.submit("document.querySelector('.search')").await;
    page.until("document.querySelector('#story-0') !== null").await;
    let text = page.evaluate("document.documentElement.outerHTML").await;
    let text = text.as_str().unwrap();
    assert!(!text.contains(&phone(1)) && text.contains("*****"), "{text}");
    assert_eq!(page.evaluate("location.pathname").await, "/operator/messages");
    page.picture("operator-story-narrow.png").await;

    page.narrow(360).await;
    for path in ["/operator", "/operator/messages", "/operator/dead-letters", "/operator/gateways"]
    {
        page.go(&format!("{origin}{path}")).await;
        let fits = "document.documentElement.scrollWidth <= 360";
        assert_eq!(page.evaluate(fits).await, true, "{path} is wider than a phone");
    }
    page.follow("a[href='/operator/gateways/default/drain']").await;
    page.until("document.querySelector('h1')?.textContent.startsWith('Take gateway default')")
        .await;
    page.picture("operator-confirm-narrow.png").await;
    page.submit("document.querySelector('form')").await;
    page.until(
        "document.querySelector('[role=status]')?.textContent.startsWith('default is drained')",
    )
    .await;
    page.close(&origin).await;
}
