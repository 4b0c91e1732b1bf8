//! The contract of `/api`.
//!
//! This is one file, because all tests send requests to the same router.

use application::{
    Guard, Keys, SendRules, SubmitSettings, Vault,
    ports::{ApiKey, Enqueued, MockApiKeys, MockOutbox, NewSend, StoreError, Violation},
};
use axum::{
    body::{Body, Bytes},
    http::{
        Method, StatusCode,
        header::{ALLOW, EXPECT},
    },
};
use domain::{ApiKeyText, NumberRules, NumberType, SendLimits};
use http_body_util::BodyExt;
use prometheus::{Registry, TextEncoder};
use rand::{SeedableRng, rngs::StdRng};
use tower::ServiceExt;

use std::{sync::Mutex, time::SystemTime};
use tokio::time::Instant;

use super::*;

mod any_request;

const BODY: &str = r#"{"phone":"89999999999"}"#;
const INVALID: &str = r#"{"error":"invalid request body"}"#;
const FORM: &str = "application/x-www-form-urlencoded";
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn api(outbox: impl Outbox) -> (Router, Registry) {
    with_keys(outbox, MockApiKeys::new(), ApiAuth::default())
}

fn with_keys(outbox: impl Outbox, keys: MockApiKeys, auth: ApiAuth) -> (Router, Registry) {
    let rules = SendRules {
        limits: SendLimits { phone: "20/1h".parse().unwrap(), ..SendLimits::OFF },
        ..SendRules::NONE
    };
    with_rules(outbox, keys, rules, ApiSettings { auth, ..ApiSettings::default() })
}

fn with_rules(
    outbox: impl Outbox,
    keys: MockApiKeys,
    rules: SendRules,
    api: ApiSettings,
) -> (Router, Registry) {
    let settings = SubmitSettings {
        code_length: 6.try_into().unwrap(),
        code_ttl: Duration::from_secs(600),
        rules,
    };
    let peppers = domain::draw_key(&mut StdRng::seed_from_u64(2)).parse().ok();
    let vault = Vault::of(Keys { peppers, payload: None });
    let submit = SubmitMessage::new(
        outbox,
        || SystemTime::UNIX_EPOCH,
        StdRng::seed_from_u64(1),
        vault,
        Arc::new(Guard::new(Vec::new(), Duration::from_secs(3_600))),
        settings,
    );
    let registry = Registry::new();
    let metrics = ApiMetrics::register(&registry).unwrap();
    let keys = Arc::new(Authorize::new(keys));
    (router(Arc::new(submit), keys, metrics, api), registry)
}

fn accepting() -> MockOutbox {
    let mut outbox = MockOutbox::new();
    outbox.expect_enqueue().returning(|_| Ok(accepted()));
    outbox
}

fn accepted() -> Enqueued {
    Enqueued::Accepted { at: SystemTime::UNIX_EPOCH }
}

fn refusing(error: impl Fn() -> StoreError + Send + 'static) -> MockOutbox {
    let mut outbox = MockOutbox::new();
    outbox.expect_enqueue().returning(move |_| Err(error()));
    outbox
}

/// An API whose outbox must not be called.
fn untouched() -> Router {
    api(MockOutbox::new()).0
}

fn post_json(path: &str, body: impl Into<Body>) -> Request {
    let request = Request::post(path).header(CONTENT_TYPE, "application/json");
    request.body(body.into()).unwrap()
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

async fn ask(router: &Router, request: Request) -> Answer {
    let response = router.clone().oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: head.status, headers: head.headers, body }
}

impl Answer {
    #[track_caller]
    fn expect(&self, status: u16, body: &str) {
        assert_eq!(std::str::from_utf8(&self.body), Ok(body));
        assert_eq!(self.status.as_u16(), status);
        assert_eq!(self.headers[CONTENT_TYPE], "application/json");
    }
}

fn total(registry: &Registry, status: u16) -> Option<u64> {
    let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    let series = format!("total_messages{{status=\"{status}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&series))?.parse().ok()
}

#[tokio::test]
async fn every_path_of_the_contract_accepts() {
    let (router, registry) = api(accepting());

    for path in ["/api", "/api/", "/api/send", "/api/send/", "/api?a=b"] {
        let answer = ask(&router, post_json(path, BODY)).await;
        answer.expect(200, "\"message successfuly sended\"");
    }

    assert_eq!(total(&registry, 200), Some(5));
    let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    let counted = "messager_http_request_duration_seconds_count{status=\"200\"} 5\n";
    assert!(text.contains(counted), "{text}");
}

#[tokio::test]
async fn requested_phone_is_stored() {
    let mut outbox = MockOutbox::new();
    let expected = |new: &NewSend| new.message.phone.as_str() == "899999999999999";
    outbox.expect_enqueue().withf(expected).times(4).returning(|_| Ok(accepted()));
    let (router, _) = api(outbox);

    for body in [
        r#"{"phone":"899999999999999"}"#,
        r#" { "other" : {"phone":1} , "phone" : "899999999999999", "more": ["ы"] } "#,
        "\r\n\t{\"phone\":\"899999999999999\"}\n",
        "{\"phone\":\"\\u0038\u{39}9999999999999\"}",
    ] {
        ask(&router, post_json("/api", body)).await.expect(200, ACCEPTED);
    }
}

#[tokio::test]
async fn number_rules_apply_to_api() {
    const REFUSED: &str = r#"{"error":"messages to this number are not allowed"}"#;
    let numbers =
        NumberRules { allowed: "RU".parse().unwrap(), refused: [NumberType::PremiumRate].into() };
    let rules = SendRules { numbers, refuse_unreadable: true, ..SendRules::NONE };
    let settings = ApiSettings { default_region: "RU".parse().ok(), ..ApiSettings::default() };
    let mut outbox = MockOutbox::new();
    let known = |new: &NewSend| new.phone.as_str() == "79991234567";
    outbox.expect_enqueue().withf(known).times(2).returning(|_| Ok(accepted()));
    let (router, registry) = with_rules(outbox, MockApiKeys::new(), rules, settings);
    let body = |phone| format!(r#"{{"phone":"{phone}"}}"#);

    for phone in ["78091234567", "4915123456789", "99999999999", "19005551234"] {
        ask(&router, post_json("/api", body(phone))).await.expect(403, REFUSED);
    }
    for phone in ["89991234567", "0079991234567"] {
        ask(&router, post_json("/api", body(phone))).await.expect(200, ACCEPTED);
    }

    assert_eq!(total(&registry, 403), Some(4));
}

#[tokio::test]
async fn message_that_no_gateway_can_afford_is_refused() {
    const REFUSED: &str = r#"{"error":"messages to this number cannot be paid for today"}"#;
    let rules = SendRules { budgets: Some(crate::testing::no_budget()), ..SendRules::NONE };
    let settings = ApiSettings::default();
    let (router, registry) = with_rules(MockOutbox::new(), MockApiKeys::new(), rules, settings);

    ask(&router, post_json("/api", BODY)).await.expect(403, REFUSED);

    assert_eq!(total(&registry, 403), Some(1));
}

#[tokio::test]
async fn closed_api_is_404() {
    let settings = ApiSettings { is_open: false, ..ApiSettings::default() };
    let keys = MockApiKeys::new();
    let (router, registry) = with_rules(MockOutbox::new(), keys, SendRules::NONE, settings);

    for path in ["/api", "/api/", "/api/send", "/api/send/"] {
        ask(&router, post_json(path, BODY)).await.expect(404, r#"{"error":"not found"}"#);
    }

    assert_eq!(total(&registry, 404), None);
}

#[tokio::test]
async fn exceeded_limits_other_than_the_phones_have_their_own_text() {
    for (name, text) in
        [("phone", "too many messages to this number"), ("prefix", "too many messages")]
    {
        let mut outbox = MockOutbox::new();
        outbox.expect_enqueue().returning(move |_| {
            let window = domain::Window { quota: 2, period: Duration::from_secs(3_600) };
            let policy = domain::Policy::new(name, window);
            Ok(Enqueued::Limited(vec![Violation { policy, retry_after: Duration::from_secs(9) }]))
        });

        let (router, registry) = api(outbox);
        let told = ask(&router, post_json("/api", BODY)).await;

        told.expect(429, &format!(r#"{{"error":"{text}"}}"#));
        assert_eq!(told.headers["retry-after"], "9");
        let shown = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let reached = format!("messager_limits_reached_total{{limit=\"{name}\",origin=\"api\"}} 1");
        assert!(shown.contains(&reached), "{reached} is not in {shown}");
    }
}

#[tokio::test]
async fn every_json_content_type_is_accepted() {
    let (router, _) = api(accepting());

    for kind in [
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/json;a=b;c=d",
        "application/vnd.api+json",
        "application/cloudevents+json ; charset=UTF-8",
    ] {
        let request = Request::post("/api").header(CONTENT_TYPE, kind).body(BODY.into()).unwrap();
        ask(&router, request).await.expect(200, ACCEPTED);
    }
}

#[tokio::test]
async fn other_content_types_are_refused() {
    let router = untouched();

    for kind in [
        "",
        "json",
        "text/json",
        "text/plain",
        "text/plain; application/json",
        "application/jsonp",
        "application/x-www-form-urlencoded",
        "application/",
        "application/json+xml",
        "application/json, text/plain",
    ] {
        let request = Request::post("/api").header(CONTENT_TYPE, kind).body(BODY.into()).unwrap();
        ask(&router, request).await.expect(400, INVALID);
    }
    let request = Request::post("/api").body(BODY.into()).unwrap();
    ask(&router, request).await.expect(400, INVALID);
}

#[tokio::test]
async fn undocumented_bodies_are_refused() {
    let (router, registry) = api(MockOutbox::new());
    let bodies: &[&[u8]] = &[
        b"",
        b" ",
        b"{}",
        b"null",
        b"true",
        b"89999999999",
        br#""89999999999""#,
        br#"["89999999999"]"#,
        br#"[{"phone":"89999999999"}]"#,
        br#"{"phone":89999999999}"#,
        br#"{"phone":null}"#,
        br#"{"phone":["89999999999"]}"#,
        br#"{"phone":{"phone":"89999999999"}}"#,
        br#"{"phone":true}"#,
        br#"{"phone":""}"#,
        br#"{"phone":"8999999999"}"#,
        br#"{"phone":"8999999999999999"}"#,
        br#"{"phone":"+79991234567"}"#,
        br#"{"phone":"7 999 123 45 67"}"#,
        br#"{"phone":" 89999999999"}"#,
        br#"{"phone":"89999999999\n"}"#,
        br#"{"phone":"8999999999a"}"#,
        br#"{"phone":"8999999999\u0000"}"#,
        br#"{"phone":"-9999999999"}"#,
        r#"{"phone":"７９９９１２３４５６７"}"#.as_bytes(),
        r#"{"phone":"٧٩٩٩١٢٣٤٥٦٧"}"#.as_bytes(),
        br#"{"phones":"89999999999"}"#,
        br#"{"phone":"89999999999""#,
        br#"{"phone":"89999999999","PHONE":"+79991234567"}"#,
        br#"{"phone":1,"phone":"89999999999"}"#,
        br#"{"Phone":null}"#,
        br#"{"phone":"89999999999",}"#,
        b"{\"phone\":\"89999999999\",\"a\":\"\n\"}",
        br#"{"phone":"89999999999","a":"\x"}"#,
        br#"{"phone":"89999999999","a":01}"#,
        br"{'phone':'89999999999'}",
        b"phone=89999999999",
        b"\xef\xbb\xbf{\"phone\":\"89999999999\"}",
        b"{\"phone\":\"8999999999\xff\"}",
        b"\xff\xfe{\0}\0",
    ];

    for &body in bodies {
        let answer = ask(&router, post_json("/api", body)).await;
        assert_eq!(answer.body, INVALID, "{}", body.escape_ascii());
        answer.expect(400, INVALID);
    }

    assert_eq!(total(&registry, 400), Some(bodies.len() as u64));
    assert_eq!(total(&registry, 200), Some(0));
}

/// Each was posted to gin 1.10 with the Go service's struct, which took the phone 79991230000.
#[tokio::test]
async fn json_that_the_go_service_accepted_is_accepted() {
    let mut outbox = MockOutbox::new();
    let expected = |new: &NewSend| new.message.phone.as_str() == "79991230000";
    outbox.expect_enqueue().withf(expected).returning(|_| Ok(accepted()));
    let (router, _) = api(outbox);
    let bodies: &[&[u8]] = &[
        br#"{"Phone":"79991230000"}"#,
        br#"{"PHONE":"79991230000"}"#,
        br#"{"pHoNe":"79991230000"}"#,
        br#"{"\u0050hone":"79991230000"}"#,
        br#"{"phone":"89999999999","phone":"79991230000"}"#,
        br#"{"phone":"89999999999","Phone":"79991230000"}"#,
        br#"{"Phone":"","phone":"79991230000","PHONE":null}"#,
        br#"{"phone":"\ud800","phone":"79991230000"}"#,
        br#"{"phone":"79991230000"}{}"#,
        br#"{"phone":"79991230000"}}"#,
        br#"{"phone":"79991230000"} what follows"#,
        b"{\"phone\":\"79991230000\"}\0",
        b"{\"phone\":\"79991230000\"}\0\0\xff",
        b"{\"phone\":\"79991230000\",\"name\":\"\xff\"}",
        b"{\"phone\":\"79991230000\",\"\xff\":1}",
        br#"{"phone":"79991230000","a":"\ud800","\udfff":-0.5e+999}"#,
        b"{\"phone\":\"79991230000\",\"a\":\"\x7f\"}",
    ];

    for &body in bodies {
        let answer = ask(&router, post_json("/api", body)).await;
        assert_eq!(answer.body, ACCEPTED, "{}", body.escape_ascii());
    }
    let deep = ["[".repeat(9_000), "]".repeat(9_000)].concat();
    let body = format!(r#"{{"a":{deep},"phone":"79991230000"}}"#);
    ask(&router, post_json("/api", body)).await.expect(200, ACCEPTED);
}

#[tokio::test]
async fn forms_that_the_go_service_accepted_are_accepted() {
    let mut outbox = MockOutbox::new();
    let expected = |new: &NewSend| new.message.phone.as_str() == "79991230000";
    outbox.expect_enqueue().withf(expected).returning(|_| Ok(accepted()));
    let (router, _) = api(outbox);
    let multipart = "--b\r\nContent-Disposition: form-data; name=\"other\"\r\n\r\n1\r\n\
                     --b\r\nContent-Disposition: form-data; name=\"Phone\"\r\n\r\n79991230000\r\n--b--\r\n";

    for (path, kind, body) in [
        ("/api", FORM, "Phone=79991230000"),
        ("/api/", FORM, "a=b&Phone=%37999123000%30&c"),
        ("/api", "application/x-www-form-urlencoded; charset=UTF-8", "Phone=79991230000"),
        ("/api?Phone=89999999999", FORM, "Phone=79991230000&Phone=89999999999"),
        ("/api", FORM, "phone=89999999999&Phone=79991230000"),
        ("/api?Phone=79991230000", FORM, ""),
        ("/api?Phone=79991230000", "text/plain", "what is this"),
        ("/api", "multipart/form-data; boundary=b", multipart),
        ("/api", "multipart/form-data; boundary=\"b\"", multipart),
    ] {
        let request = Request::post(path).header(CONTENT_TYPE, kind).body(body.into()).unwrap();
        ask(&router, request).await.expect(200, ACCEPTED);
    }
}

#[tokio::test]
async fn forms_without_a_phone_are_refused() {
    for (kind, body) in [
        (FORM, ""),
        (FORM, "Phone="),
        (FORM, "Phone=+79991230000"),
        (FORM, r#"{"phone":"79991230000"}"#),
        ("application/json", "Phone=79991230000"),
        ("multipart/form-data", "--b\r\n"),
        ("multipart/form-data; boundary=b", "--c\r\n"),
        (
            "multipart/form-data; boundary=b",
            "--b\r\nContent-Disposition: form-data; name=\"Phone\"; filename=\"a\"\r\n\r\n79991230000\r\n--b--\r\n",
        ),
        ("application/xml", "<a><Phone>79991230000</Phone></a>"),
        ("application/x-yaml", "phone: 79991230000"),
    ] {
        let request = Request::post("/api").header(CONTENT_TYPE, kind).body(body.into()).unwrap();
        ask(&untouched(), request).await.expect(400, INVALID);
    }
}

#[tokio::test]
async fn body_has_at_most_256_kibibytes() {
    let (router, _) = api(accepting());
    let padded = |length| [BODY, &" ".repeat(length - BODY.len())].concat();

    ask(&router, post_json("/api", padded(256 * 1024))).await.expect(200, ACCEPTED);
    ask(&router, post_json("/api", padded(256 * 1024 + 1))).await.expect(400, INVALID);
    ask(&router, post_json("/api", padded(1024 * 1024))).await.expect(400, INVALID);
    ask(&router, post_json("/api", padded(8 * 1024 * 1024))).await.expect(400, INVALID);
    ask(&router, post_json("/api", "[".repeat(256_000))).await.expect(400, INVALID);
    let nested = format!(r#"{{"phone":"89999999999","a":{}"#, "[".repeat(256_000));
    ask(&router, post_json("/api", nested)).await.expect(400, INVALID);
}

#[tokio::test(start_paused = true)]
async fn slow_body_is_408() {
    let (router, registry) = api(MockOutbox::new());

    let answer = ask(&router, post_json("/api", endless())).await;

    answer.expect(408, r#"{"error":"request body took too long"}"#);
    assert_eq!(answer.headers["connection"], "close");
    assert_eq!(total(&registry, 408), Some(1));
}

/// A body of which nothing comes.
fn endless() -> Body {
    Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>())
}

#[tokio::test(start_paused = true)]
async fn body_of_an_unauthorized_request_is_read_for_one_second_at_most() {
    let (router, registry) = with_keys(MockOutbox::new(), MockApiKeys::new(), ApiAuth::All);
    let begun = Instant::now();

    let answer = ask(&router, post_json("/api", endless())).await;

    answer.expect(401, r#"{"error":"API key needed"}"#);
    assert_eq!(begun.elapsed().as_secs(), 1);
    let mut waiting = post_json("/api", endless());
    waiting.headers_mut().insert(EXPECT, "100-continue".parse().unwrap());
    ask(&router, waiting).await.expect(401, r#"{"error":"API key needed"}"#);
    assert_eq!(begun.elapsed().as_secs(), 1);
    assert_eq!(total(&registry, 401), Some(2));
}

#[tokio::test]
async fn database_failures_are_503() {
    let (full, registry) = api(refusing(|| StoreError::Full));
    let answer = ask(&full, post_json("/api", BODY)).await;
    answer.expect(503, r#"{"error":"too busy, try again"}"#);
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(total(&registry, 503), Some(1));

    let (down, registry) = api(refusing(|| StoreError::Unavailable("down".into())));
    let answer = ask(&down, post_json("/api", BODY)).await;
    answer.expect(503, r#"{"error":"storage unavailable, try again"}"#);
    assert_eq!(answer.headers["retry-after"], "1");
    ask(&down, post_json("/api", BODY)).await;
    assert_eq!(total(&registry, 503), Some(2));
    assert_eq!(total(&registry, 200), Some(0));
}

#[tokio::test]
async fn exceeded_phone_limit_is_429() {
    let mut outbox = MockOutbox::new();
    outbox.expect_enqueue().returning(|send| {
        let policy = send.phone_limits.policies("phone").remove(0);
        Ok(Enqueued::Limited(vec![Violation { policy, retry_after: Duration::from_secs(7) }]))
    });
    let (limited, registry) = api(outbox);

    let answer = ask(&limited, post_json("/api", BODY)).await;

    answer.expect(429, r#"{"error":"too many messages to this number"}"#);
    assert_eq!(answer.headers["retry-after"], "7");
    assert_eq!(total(&registry, 429), Some(1));
}

#[tokio::test]
async fn api_needs_a_key_with_the_scope_send_if_all_callers_need_one() {
    let key = |seed| ApiKeyText::generate(&mut StdRng::seed_from_u64(seed));
    let known = move |seed, scopes: &str| ApiKey {
        id: key(seed).id(),
        name: "shop".to_owned(),
        hash: key(seed).hash(),
        scopes: scopes.parse().unwrap(),
        created_at: SystemTime::UNIX_EPOCH,
        last_used_at: None,
        revoked_at: None,
    };
    let mut keys = MockApiKeys::new();
    keys.expect_all().returning(move || Ok(vec![known(1, "send"), known(2, "check,read")]));
    let mut outbox = MockOutbox::new();
    // Whose key it is, is kept with the message.
    outbox
        .expect_enqueue()
        .withf(|new| new.verification.api_key.is_some())
        .returning(|_| Ok(accepted()));
    let (router, registry) = with_keys(outbox, keys, ApiAuth::All);
    let showing = |key: &str| {
        let mut request = post_json("/api", BODY);
        let value = format!("Bearer {key}").parse().unwrap();
        request.headers_mut().insert("authorization", value);
        request
    };

    let answer = ask(&router, post_json("/api", BODY)).await;
    answer.expect(401, r#"{"error":"API key needed"}"#);
    assert_eq!(answer.headers["www-authenticate"], "Bearer");
    ask(&router, post_json("/api", "{}")).await.expect(401, r#"{"error":"API key needed"}"#);
    let unknown = ask(&router, showing(&key(3).reveal())).await;
    unknown.expect(401, r#"{"error":"API key needed"}"#);
    let lacking = ask(&router, showing(&key(2).reveal())).await;
    lacking.expect(403, r#"{"error":"API key lacks the scope send"}"#);
    ask(&router, showing(&key(1).reveal())).await.expect(200, ACCEPTED);
    assert_eq!((total(&registry, 401), total(&registry, 403)), (Some(3), Some(1)));

    for open in [ApiAuth::None, ApiAuth::V1] {
        let (router, _) = with_keys(accepting(), MockApiKeys::new(), open);
        ask(&router, post_json("/api", BODY)).await.expect(200, ACCEPTED);
    }

    let mut down = MockApiKeys::new();
    down.expect_all().returning(|| Err(StoreError::Full));
    let (router, _) = with_keys(MockOutbox::new(), down, ApiAuth::All);
    let answer = ask(&router, showing(&key(1).reveal())).await;
    answer.expect(503, r#"{"error":"storage unavailable, try again"}"#);
}

#[tokio::test]
async fn panic_is_500_and_the_next_request_is_served() {
    let mut outbox = MockOutbox::new();
    outbox.expect_enqueue().once().returning(|_| panic!("on purpose"));
    let (router, registry) = api(outbox);

    let answer = ask(&router, post_json("/api", BODY)).await;

    answer.expect(500, r#"{"error":"internal error"}"#);
    assert_eq!(total(&registry, 500), Some(1));
    ask(&router, post_json("/api", "{}")).await.expect(400, INVALID);
}

#[tokio::test]
async fn other_methods_are_405_with_allow() {
    let (router, registry) = api(MockOutbox::new());

    for method in [Method::GET, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
        let request = Request::builder().method(method).uri("/api/send").body(Body::empty());
        let answer = ask(&router, request.unwrap()).await;
        answer.expect(405, r#"{"error":"method not allowed"}"#);
        assert_eq!(answer.headers[ALLOW], "POST");
    }
    let answer = ask(&router, Request::head("/api").body(Body::empty()).unwrap()).await;
    answer.expect(405, "");

    assert_eq!(total(&registry, 405), Some(6));
}

#[tokio::test]
async fn other_paths_are_404() {
    let (router, registry) = api(MockOutbox::new());

    for path in ["/", "/ap", "/api//", "/api/sends", "/API", "/metrics", "/api/send/1", "//api"] {
        ask(&router, post_json(path, BODY)).await.expect(404, r#"{"error":"not found"}"#);
    }

    assert_eq!(total(&registry, 404), None);
}

#[tokio::test]
async fn valid_trace_is_kept_and_an_invalid_one_is_not() {
    async fn stored_trace(headers: &[&str]) -> String {
        let mut outbox = MockOutbox::new();
        let stored = Arc::new(Mutex::new(None));
        let seen = stored.clone();
        outbox.expect_enqueue().returning(move |new| {
            *seen.lock().unwrap() = Some(new.trace.to_string());
            Ok(accepted())
        });
        let mut request = post_json("/api", BODY);
        for header in headers {
            request.headers_mut().append("traceparent", header.parse().unwrap());
        }
        ask(&api(outbox).0, request).await.expect(200, ACCEPTED);
        stored.lock().unwrap().take().unwrap()
    }

    assert_eq!(stored_trace(&[TRACE]).await, TRACE);
    for headers in [&[][..], &["00-what"], &[TRACE, TRACE]] {
        let trace = stored_trace(headers).await;
        assert_ne!(trace, TRACE);
        assert!(trace.parse::<application::TraceParent>().is_ok(), "{trace}");
    }
}
