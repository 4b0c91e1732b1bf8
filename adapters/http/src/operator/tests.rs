use std::sync::{Arc, Mutex};

use axum::{
    http::request::Builder,
    http::{
        HeaderMap, Method,
        header::{
            ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, ORIGIN,
            REFERRER_POLICY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
        },
    },
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http_body_util::BodyExt;
use prometheus::Registry;
use tokio::{sync::Notify, task::yield_now};
use tower::ServiceExt;

use super::*;
use crate::{Exemplars, metrics_router, page::hash_of, server::NoCredentials, testing::Log};

const PASSWORD: &str = "operator-password-1";
const EVIL: &str = "<script>alert(\"1\")</script>";
const ID: &str = "ver_0193ad2f6c4e7b5f8e2a4d1c9b8a7f00";

/// Answers with the same text everywhere, and records each call.
#[derive(Debug, Clone, Default)]
struct Told {
    asked: Arc<Mutex<Vec<String>>>,
    error: Option<OperatorError>,
    /// An action ends after this.
    end: Option<Arc<Notify>>,
}

impl Told {
    fn note<T>(&self, asked: impl Into<String>, answer: T) -> Result<T, OperatorError> {
        self.asked.lock().unwrap().push(asked.into());
        self.error.clone().map_or(Ok(answer), Err)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn table(title: &'static str, last: Cell) -> Table {
    let row = vec![Cell::Text(EVIL.to_owned()), Cell::Number("7".to_owned()), Cell::None, last];
    let head = vec!["name", "count", "remark", "last"];
    Table { title, empty: "There is none.", head, rows: vec![row] }
}

fn found() -> Found {
    let details = vec![("phone", evil())];
    let story =
        Story { title: Cell::Message(ID.to_owned()), details, steps: table("Steps", Cell::None) };
    Found { stories: vec![story], note: Some(EVIL.to_owned()) }
}

fn evil() -> Cell {
    Cell::Text(EVIL.to_owned())
}

impl Operator for Told {
    async fn status(&self) -> Result<Status, OperatorError> {
        let tables = vec![table("Messages", Cell::Message(ID.to_owned()))];
        self.note("status", Status { time: EVIL.to_owned(), tables })
    }

    async fn gateways(&self) -> Result<Vec<Table>, OperatorError> {
        let drain = Cell::Actions(vec![Action::Drain("main".parse().unwrap())]);
        self.note("gateways", vec![table("Service", drain)])
    }

    async fn message(&self, id: &str) -> Result<Found, OperatorError> {
        self.note(format!("message {id}"), found())
    }

    async fn messages_to(&self, phone: &str) -> Result<Found, OperatorError> {
        self.note(format!("phone {phone}"), found())
    }

    async fn dead_letters(&self) -> Result<Table, OperatorError> {
        let actions = Cell::Actions(vec![Action::Retry(7), Action::Discard(7)]);
        self.note("dead letters", table("All", actions))
    }

    async fn before(&self, action: &Action) -> Result<Details, OperatorError> {
        self.note(format!("before {action}"), vec![("reason", evil())])
    }

    async fn act(&self, action: Action) -> Result<String, OperatorError> {
        let done = self.note(action.to_string(), EVIL.to_owned());
        if let Some(end) = &self.end {
            end.notified().await;
        }
        done
    }
}

struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

fn router(told: &Told) -> Router {
    let readiness = Readiness::new(&["database"]);
    readiness.set_down("database", EVIL);
    super::router(told.clone(), readiness, PASSWORD.parse().unwrap())
}

fn basic(password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("anyone:{password}")))
}

fn request(method: Method, path: &str) -> Builder {
    Request::builder().method(method).uri(path).header(AUTHORIZATION, basic(PASSWORD))
}

async fn send(told: &Told, request: Builder, body: &'static str) -> Answered {
    let request = request.body(Body::from(body)).unwrap();
    let (head, body) = router(told).oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    Answered { status: head.status, headers: head.headers, body }
}

async fn get(told: &Told, path: &str) -> Answered {
    send(told, request(Method::GET, path), "").await
}

/// Posts as a form of the page does.
async fn post(told: &Told, path: &str, body: &'static str) -> Answered {
    send(told, request(Method::POST, path).header("sec-fetch-site", "same-origin"), body).await
}

const PAGES: [&str; 8] = [
    "/operator",
    "/operator/messages",
    "/operator/messages/ver_0193ad2f6c4e7b5f8e2a4d1c9b8a7f00",
    "/operator/dead-letters",
    "/operator/dead-letters/7/retry",
    "/operator/dead-letters/7/discard",
    "/operator/gateways",
    "/operator/gateways/main/drain",
];

const ACTIONS: [(&str, &str); 4] = [
    ("/operator/dead-letters/7/retry", "retry dead letter 7"),
    ("/operator/dead-letters/7/discard", "discard dead letter 7"),
    ("/operator/gateways/main/drain", "drain gateway main"),
    ("/operator/gateways/main/undrain", "undrain gateway main"),
];

fn monitoring() -> Router {
    metrics_router(Registry::new(), Readiness::new(&[]), None, Exemplars::default())
}

#[tokio::test]
async fn page_does_not_exist_without_a_password() {
    let router = monitoring();
    for path in PAGES {
        let request = request(Method::GET, path).body(Body::empty()).unwrap();
        let answer = router.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn page_is_beside_metrics_and_health_checks() {
    let beside = monitoring().merge(router(&Told::default()));
    let ask = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        beside.clone().oneshot(request).await.unwrap().status()
    };

    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(ask(path).await, StatusCode::OK, "{path}");
    }
    assert_eq!(ask("/operator").await, StatusCode::UNAUTHORIZED);
    assert_eq!(ask("/operator/other").await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn every_page_and_action_needs_the_password() {
    let told = Told::default();
    let ask = async |method: Method, path: &str, shown: Option<String>| {
        let mut request = Request::builder().method(method).uri(path);
        request = request.header("sec-fetch-site", "same-origin");
        if let Some(shown) = shown {
            request = request.header(AUTHORIZATION, shown);
        }
        let request = request.body(Body::empty()).unwrap();
        router(&told).oneshot(request).await.unwrap()
    };

    let bearer = Some(format!("Bearer {PASSWORD}"));
    let refused = [None, Some(basic("operator-password-2")), Some(basic("")), bearer];
    let gets = PAGES.iter().map(|path| (Method::GET, *path));
    let posts = ACTIONS.iter().map(|it| (Method::POST, it.0));
    let search = [(Method::POST, "/operator/messages")];
    for (method, path) in gets.chain(posts).chain(search) {
        for shown in refused.clone() {
            let answer = ask(method.clone(), path, shown.clone()).await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path} {shown:?}");
            let asks = answer.headers()[WWW_AUTHENTICATE].to_str().unwrap();
            assert!(asks.starts_with("Basic "), "{asks}");
            // The log warns of a wrong password, but not of a missing one.
            let is_silent = answer.extensions().get::<NoCredentials>().is_some();
            let is_basic = shown.is_some_and(|it| it.starts_with("Basic"));
            assert_eq!(is_silent, !is_basic, "{path}");
        }
    }
    assert_eq!(told.asked(), [""; 0]);
}

#[tokio::test]
async fn answers_may_not_be_cached_framed_or_extended() {
    let told = Told::default();
    let wrong = Request::get("/operator").header(AUTHORIZATION, basic("wrong"));
    let mut answers = vec![
        send(&told, wrong, "").await,
        send(&told, request(Method::POST, ACTIONS[0].0), "").await,
        post(&told, ACTIONS[1].0, "").await,
    ];
    for path in PAGES {
        answers.push(get(&told, path).await);
    }

    for Answered { status, headers, body } in answers {
        let header = |name| headers[name].to_str().unwrap();
        assert_eq!(headers[CACHE_CONTROL], "no-store", "{status}");
        assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(headers[X_FRAME_OPTIONS], "DENY");
        assert_eq!(headers[REFERRER_POLICY], "same-origin");
        let policy = header(CONTENT_SECURITY_POLICY);
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        for part in ["form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'"] {
            assert!(policy.contains(part), "{part}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        for tag in ["style", "script"] {
            for content in body.split(&format!("<{tag}>")).skip(1) {
                let (content, _) = content.split_once(&format!("</{tag}>")).unwrap();
                assert!(policy.contains(&hash_of(content)), "{tag}: {policy}");
            }
        }
    }
}

#[tokio::test]
async fn every_text_is_escaped() {
    let told = Told::default();
    let mut bodies = Vec::new();
    for path in PAGES {
        bodies.push(get(&told, path).await.body);
    }
    bodies.push(post(&told, ACTIONS[0].0, "").await.body);
    bodies.push(post(&told, "/operator/messages", "about=79991234567").await.body);
    for error in [OperatorError::Unavailable, OperatorError::Refused, OperatorError::Unknown] {
        let told = Told { error: Some(error(EVIL.to_owned())), ..Told::default() };
        for path in ["/operator", "/operator/gateways", PAGES[2]] {
            bodies.push(get(&told, path).await.body);
        }
        bodies.push(post(&told, ACTIONS[0].0, "").await.body);
    }

    for body in bodies {
        assert!(!body.contains("<script>alert"), "{body}");
        let is_search = body.contains("id=\"about\"") && !body.contains("alert");
        assert!(is_search || body.contains("&lt;script&gt;alert(&quot;1&quot;)"), "{body}");
    }
}

#[tokio::test]
async fn action_is_confirmed_and_then_carried_out() {
    for (path, action) in ACTIONS {
        let told = Told::default();

        let confirm = get(&told, path).await;
        assert_eq!(confirm.status, StatusCode::OK);
        assert!(confirm.body.contains(&format!("<form method=\"post\" action=\"{path}\">")));
        assert_eq!(told.asked(), [format!("before {action}")]);

        let done = post(&told, path, "").await;
        assert_eq!(done.status, StatusCode::OK);
        assert_eq!(told.asked(), [format!("before {action}"), action.to_owned()]);
    }
}

/// Lets other tasks run until the log has `text`.
async fn logged(log: &Log, text: &str) {
    for _ in 0..1_000 {
        if log.text().contains(text) {
            return;
        }
        yield_now().await;
    }
    panic!("{text} is not in the log: {}", log.text());
}

#[tokio::test]
async fn action_goes_on_and_is_logged_if_the_client_disconnects() {
    let (log, _guard) = Log::capture();
    let told = Told { end: Some(Arc::default()), ..Told::default() };
    let (path, action) = ACTIONS[2];

    let begins = async {
        while told.asked().is_empty() {
            yield_now().await;
        }
    };
    tokio::select! {
        _ = post(&told, path, "") => panic!("the action has not ended"),
        () = begins => {}
    }
    assert!(!log.text().contains("acted for the operator"), "{}", log.text());
    told.end.unwrap().notify_one();

    logged(&log, "acted for the operator").await;
    assert!(log.text().contains(&format!("what={action}")), "{}", log.text());
}

#[tokio::test(start_paused = true)]
async fn action_that_takes_longer_than_its_request_goes_on_and_is_logged() {
    let (log, _guard) = Log::capture();
    let told = Told { end: Some(Arc::default()), ..Told::default() };

    let answer = post(&told, ACTIONS[0].0, "").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.body.contains("still running after 15 s"), "{}", answer.body);
    assert!(!log.text().contains("act for the operator"), "{}", log.text());
    told.end.unwrap().notify_one();

    logged(&log, "acted for the operator").await;
}

#[tokio::test]
async fn other_sites_cannot_act_or_search() {
    let told = Told::default();
    let foreign: [&[(&str, &str)]; 6] = [
        &[],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site")],
        &[("sec-fetch-site", "none")],
        &[("origin", "http://evil.example")],
        &[("origin", "null")],
    ];
    let paths = ACTIONS.iter().map(|it| it.0).chain(["/operator/messages"]);
    for path in paths {
        for headers in foreign {
            let mut request = request(Method::POST, path).header(HOST, "sms.example:8082");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let answer = send(&told, request, "about=79991234567").await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path} {headers:?}");
        }
    }
    assert_eq!(told.asked(), [""; 0]);

    // Over HTTP to another machine, browsers send only `Origin`.
    let own = request(Method::POST, ACTIONS[0].0)
        .header(HOST, "sms.example:8082")
        .header(ORIGIN, "http://sms.example:8082");
    assert_eq!(send(&told, own, "").await.status, StatusCode::OK);
}

#[tokio::test]
async fn search_sends_ids_to_their_page_and_shows_numbers_in_place() {
    let told = Told::default();

    for id in [ID, "0193ad2f-6c4e-7b5f-8e2a-4d1c9b8a7f02"] {
        let body = format!("about=+{id}+");
        let answer = post(&told, "/operator/messages", body.leak()).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER);
        assert_eq!(answer.headers[LOCATION], format!("/operator/messages/{id}"));
    }
    assert_eq!(told.asked(), [""; 0]);

    let answer = post(&told, "/operator/messages", "about=%2B7+999+123-45-67").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(told.asked(), ["phone +7 999 123-45-67"]);
    assert!(!answer.body.contains("123-45-67"), "{}", answer.body);

    let long = format!("about={}", "9".repeat(MAX_BODY));
    let answer = post(&told, "/operator/messages", long.leak()).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn page_shows_the_error_of_the_database() {
    let error = OperatorError::Unavailable("connection refused".to_owned());
    let told = Told { error: Some(error), ..Told::default() };

    for path in ["/operator", "/operator/dead-letters", "/operator/gateways", PAGES[2]] {
        let answer = get(&told, path).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(answer.body.contains("The database cannot be read"), "{}", answer.body);
        assert!(answer.body.contains("connection refused"), "{}", answer.body);
        assert!(answer.body.contains("</html>"), "{}", answer.body);
    }
}

#[tokio::test]
async fn each_failure_has_its_own_status() {
    let error = |error: fn(String) -> OperatorError| Told {
        error: Some(error("why".to_owned())),
        ..Told::default()
    };

    for (kind, status) in [
        (OperatorError::Invalid as fn(String) -> OperatorError, StatusCode::BAD_REQUEST),
        (OperatorError::Unknown, StatusCode::NOT_FOUND),
        (OperatorError::Refused, StatusCode::CONFLICT),
        (OperatorError::Unfinished, StatusCode::SERVICE_UNAVAILABLE),
        (OperatorError::Busy, StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let answer = post(&error(kind), ACTIONS[0].0, "").await;
        assert_eq!(answer.status, status);
        assert!(answer.body.contains("why"), "{}", answer.body);
    }
}

#[tokio::test]
async fn unknown_names_and_methods_are_refused() {
    let told = Told::default();
    for path in ["/operator/dead-letters/x/retry", "/operator/gateways/A%20B/drain"] {
        assert_eq!(get(&told, path).await.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(post(&told, path, "").await.status, StatusCode::NOT_FOUND, "{path}");
    }

    let answer = post(&told, "/operator", "").await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(answer.headers[ALLOW], "GET,HEAD");
    assert_eq!(told.asked(), [""; 0]);
}

#[tokio::test]
async fn tables_name_their_columns_even_if_each_row_is_a_list() {
    let body = get(&Told::default(), "/operator").await.body;

    for part in [
        "<table role=\"table\" aria-labelledby=\"messages\">",
        "<th role=\"columnheader\" scope=\"col\">name</th>",
        "<td role=\"cell\" data-name=\"name\">",
        "<td role=\"cell\" data-name=\"count\" class=\"n\">7</td>",
        "<td role=\"cell\" data-name=\"remark\" data-none>–</td>",
        &format!("<a class=\"id\" href=\"/operator/messages/{ID}\">{ID}</a>"),
        "<h1>Status</h1>",
        "<a href=\"/operator\" aria-current=\"page\">Status</a>",
        "<b>database</b> down: ",
    ] {
        assert!(body.contains(part), "{part}: {body}");
    }
    let mut none = table("All", Cell::None);
    none.rows.clear();
    let none = html::dead_letters(&none).into_string();
    assert!(none.contains("There is none.") && !none.contains("<table"), "{none}");
}
