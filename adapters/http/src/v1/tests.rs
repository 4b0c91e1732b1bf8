use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
    time::{Duration, SystemTime},
};

use application::{
    Guard, Keys, SendRules, SendSettings, TraceParent, Vault,
    ports::{
        Answer, AnswerClaim, ApiKey, Approval, Attempt, Begun, EnqueueError, Enqueued, Event,
        EventKind, History, MockAnswers, MockApiKeys, MockOutbox, MockVerifications, NewSend,
        Newest, Receipt, Resent, StoreError, Tried, Verification, Violation,
    },
};
use axum::http::{HeaderValue, header::ALLOW};
use domain::{
    ApiKeyText, CodeLength, KeyId, Metadata, Origin, Pacing, Peppers, Policy, Seed, SendLimits,
    SmsTemplate, Templates, Window,
};
use http_body_util::BodyExt;
use prometheus::{Registry, TextEncoder};
use rand::{SeedableRng, rngs::StdRng};
use serde_json::{Map, Value};
use tokio::sync::{Notify, mpsc};
use tower::ServiceExt;

use super::*;

mod any_request;

const START: &str = "/v1/verifications";
const ID: &str = "ver_6f2c1a529d3f4f0e8a550d2f6f3b9c00";
const PHONE: &str = r#"{"phone":"+79991234567"}"#;
const CODE: &str = "482915";
const RECEIPT: &str = r#"{"id":"6f2c1a52-9d3f-4f0e-8a55-0d2f6f3b9c01","status":"delivered"}"#;
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// 2026-11-23T10:00:00.123Z
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_428_000_123)
}

fn after(seconds: u64) -> SystemTime {
    now() + Duration::from_secs(seconds)
}

fn peppers() -> Peppers {
    domain::draw_key(&mut StdRng::seed_from_u64(2)).parse().unwrap()
}

/// The service with doubles of what it needs, which must not be called unless a test says so.
struct Parts<O, A> {
    outbox: O,
    verifications: MockVerifications,
    answers: A,
    keys: MockApiKeys,
    rules: Vec<domain::GuardRule>,
    numbers: domain::NumberRules,
    settings: V1Settings,
}

fn parts() -> Parts<MockOutbox, MockAnswers> {
    let template: SmsTemplate = "Your code: {code}".parse().unwrap();
    let mut templates = Templates::new(template);
    templates.add("login", "de", "Anmeldung: {code}").unwrap();
    Parts {
        outbox: MockOutbox::new(),
        verifications: MockVerifications::new(),
        answers: MockAnswers::new(),
        keys: MockApiKeys::new(),
        rules: Vec::new(),
        numbers: domain::NumberRules::default(),
        settings: V1Settings {
            default_region: None,
            auth: ApiAuth::None,
            limits: SendLimits {
                custom: [("device".parse().unwrap(), "3/1h".parse().unwrap())].into(),
                ..SendLimits::default()
            },
            require_ip: false,
            templates: Arc::new(templates),
            code_length: 6.try_into().unwrap(),
            ttl: Duration::from_secs(600),
            pacing: Pacing::default(),
            test_numbers: HashMap::new(),
            body_timeout: Duration::from_secs(10),
        },
    }
}

impl<O: Outbox, A: Answers> Parts<O, A> {
    fn with_outbox<P>(self, outbox: P) -> Parts<P, A> {
        let Self { verifications, answers, keys, rules, numbers, settings, .. } = self;
        Parts { outbox, verifications, answers, keys, rules, numbers, settings }
    }

    fn with_answers<B>(self, answers: B) -> Parts<O, B> {
        let Self { outbox, verifications, keys, rules, numbers, settings, .. } = self;
        Parts { outbox, verifications, answers, keys, rules, numbers, settings }
    }

    fn router(self) -> Router {
        self.counted().0
    }

    fn counted(self) -> (Router, Registry) {
        let vault = Vault::of(Keys { peppers: Some(peppers()), payload: None });
        let guard = Arc::new(Guard::new(self.rules, Duration::from_secs(3_600)));
        let verifications = Arc::new(self.verifications);
        let limits = self.settings.limits.clone();
        let rules = SendRules { limits: limits.clone(), numbers: self.numbers, ..SendRules::NONE };
        let resend = Arc::new(ResendVerification::new(
            Arc::clone(&verifications),
            || SystemTime::UNIX_EPOCH,
            StdRng::seed_from_u64(1),
            vault.clone(),
            Arc::clone(&guard),
            SendSettings { rules, ..SendSettings::default() },
        ));
        let v1 = V1 {
            start: StartVerification::new(self.outbox, Arc::clone(&resend)),
            resend,
            check: CheckCode::new(Arc::clone(&verifications), vault.clone(), guard, &limits.check),
            find: FindVerification::new(Arc::clone(&verifications)),
            cancel: CancelVerification::new(Arc::clone(&verifications)),
            receipts: NoteReceipt::new(verifications),
            answers: AnswerOnce::new(self.answers, vault),
            auth: Arc::new(Authorize::new(self.keys)),
        };
        let registry = Registry::new();
        let metrics = ApiMetrics::register(&registry).unwrap();
        (v1_router(Arc::new(v1), metrics, Arc::new(self.settings)), registry)
    }
}

fn pending() -> Verification {
    Verification {
        id: ID.parse().unwrap(),
        origin: Origin::V1,
        phone: "79991234567".parse().unwrap(),
        region: "RU".parse().ok(),
        status: VerificationStatus::Pending,
        attempts: 0,
        sends: 1,
        created_at: now(),
        sent_at: now(),
        expires_at: after(600),
        ended_at: None,
        read_at: now(),
        code_length: 6.try_into().unwrap(),
        template: None,
        metadata: None,
        api_key: None,
        secret: Some(application::ports::CodeSecret {
            pepper: peppers().first().id().clone(),
            seed: Seed::from_bytes([7; 16]),
        }),
    }
}

fn history(verification: Verification) -> History {
    let created = Event { kind: EventKind::Created, at: verification.created_at };
    let sent = Event { kind: EventKind::Sent, at: after(1) };
    History { verification, events: vec![created, sent] }
}

fn accepting() -> (MockOutbox, Arc<Mutex<Vec<NewSend>>>) {
    let mut outbox = MockOutbox::new();
    let stored = Arc::new(Mutex::new(Vec::new()));
    let book = Arc::clone(&stored);
    outbox.expect_enqueue().returning(move |send| {
        book.lock().unwrap().push(send);
        Ok(Enqueued::Accepted { at: now() })
    });
    (outbox, stored)
}

fn post(path: &str, body: impl Into<Body>) -> Request {
    let request = Request::post(path).header(CONTENT_TYPE, "application/json");
    request.body(body.into()).unwrap()
}

fn get(path: &str) -> Request {
    Request::get(path).body(Body::empty()).unwrap()
}

fn at(rest: &str) -> String {
    format!("{START}/{ID}{rest}")
}

fn with(mut request: Request, name: &'static str, value: &str) -> Request {
    request.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
    request
}

fn keyed(request: Request) -> Request {
    with(request, "idempotency-key", "k-1")
}

#[derive(Debug)]
struct Told {
    status: u16,
    headers: HeaderMap,
    text: String,
}

async fn ask(router: &Router, request: Request) -> Told {
    let path = request.uri().path().to_owned();
    let (head, body) = router.clone().oneshot(request).await.unwrap().into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    if path.starts_with("/v1") {
        assert_eq!(head.headers["cache-control"], "no-store");
    }
    Told { status: head.status.as_u16(), headers: head.headers, text }
}

impl Told {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    #[track_caller]
    fn expect(&self, status: u16, body: &Value) {
        assert_eq!((self.status, &self.json()), (status, body));
        assert_eq!(self.headers[CONTENT_TYPE], "application/json");
    }

    /// Returns what the kind of problem adds.
    #[track_caller]
    fn expect_problem(&self, status: u16, code: &str) -> serde_json::Map<String, Value> {
        assert_eq!(self.headers[CONTENT_TYPE], "application/problem+json", "{}", self.text);
        let Value::Object(mut problem) = self.json() else { panic!("{}", self.text) };
        assert_eq!((self.status, &problem["code"]), (status, &json!(code)), "{}", self.text);
        assert_eq!(problem["status"], status);
        let uri = problem["type"].as_str().unwrap();
        assert!(uri.ends_with(&format!("/{code}")) || uri.ends_with(&format!("#{code}")), "{uri}");
        for member in ["type", "title", "status", "detail", "instance", "code"] {
            assert!(problem.remove(member).is_some(), "{member}");
        }
        problem
    }

    /// The pointers of a problem of kind `invalid`.
    #[track_caller]
    fn pointers(&self) -> Vec<String> {
        let extra = self.expect_problem(422, "invalid");
        let errors = extra["errors"].as_array().unwrap();
        let pointer = |error: &Value| error["pointer"].as_str().unwrap().to_owned();
        errors.iter().map(pointer).collect()
    }
}

/// Every phone has [`ID`] pending, unless it is said otherwise by what was tried.
fn trying(tried: impl Fn() -> Tried + Send + 'static) -> MockVerifications {
    checking(move |_| tried())
}

fn newest() -> Newest {
    Newest { v1: ID.parse().ok(), api: None }
}

fn checking(check: impl Fn(&Attempt) -> Tried + Send + 'static) -> MockVerifications {
    let mut verifications = MockVerifications::new();
    verifications.expect_newest().returning(|_| Ok(newest()));
    verifications.expect_check().returning(move |attempt, _| Ok(check(&attempt)));
    verifications
}

fn wrong(attempts: u8) -> Tried {
    Tried::Wrong { attempts, pepper: peppers().first().id().clone() }
}

/// As of [`CODE`] at the `attempts`-th try.
fn compared(attempt: &Attempt, attempts: u8) -> Tried {
    let hash = peppers().first().hash(ID.parse().unwrap(), &CODE.parse().unwrap());
    if attempt.hashes.iter().any(|(_, tried)| tried.as_bytes() == hash.as_bytes()) {
        let Verification { id, origin, phone, region, .. } = pending();
        Tried::Right(Approval { id, origin, phone, region })
    } else {
        wrong(attempts)
    }
}

fn violation(name: &str, quota: u32, period: u64, retry_after: u64) -> Violation {
    let window = Window { quota, period: Duration::from_secs(period) };
    let retry_after = Duration::from_secs(retry_after);
    Violation { policy: Policy::new(name, window), retry_after }
}

#[tokio::test]
async fn contract_of_v1_to_the_letter() {
    let (outbox, stored) = accepting();
    let mut verifications = checking(|attempt| compared(attempt, 2));
    verifications.expect_history().returning(|_| Ok(Some(history(pending()))));
    verifications
        .expect_find()
        .returning(|_| Ok(Some(Verification { read_at: after(60), ..pending() })));
    verifications.expect_resend().returning(|_| {
        let sent = Verification { sends: 2, sent_at: after(60), ..pending() };
        Ok(Resent::Sent(Box::new(sent)))
    });
    verifications.expect_cancel().times(2).returning(|_| {
        let status = VerificationStatus::Canceled;
        Ok(Some(history(Verification { status, secret: None, ..pending() })))
    });
    let router = Parts { verifications, ..parts() }.with_outbox(outbox).router();

    let started = ask(&router, post(START, PHONE)).await;
    let id = VerificationId::of(stored.lock().unwrap()[0].message.id).to_string();
    let expected = json!({
        "id": id, "status": "pending", "phone": "+7999*****67", "channel": "sms",
        "expires_at": "2026-11-23T10:10:00.123Z", "resend_after": "2026-11-23T10:01:00.123Z",
        "attempts_left": 5, "sends_left": 3,
        "events": [
            {"type": "created", "at": "2026-11-23T10:00:00.123Z"},
            {"type": "queued", "at": "2026-11-23T10:00:00.123Z"},
        ],
    });
    started.expect(202, &expected);
    assert_eq!(started.headers["location"], format!("/v1/verifications/{id}"));

    let seen = json!({
        "id": ID, "status": "pending", "phone": "+7999*****67", "channel": "sms",
        "expires_at": "2026-11-23T10:10:00.123Z", "resend_after": "2026-11-23T10:01:00.123Z",
        "attempts_left": 5, "sends_left": 3,
        "events": [
            {"type": "created", "at": "2026-11-23T10:00:00.123Z"},
            {"type": "sent", "at": "2026-11-23T10:00:01.123Z"},
        ],
    });
    ask(&router, get(&at(""))).await.expect(200, &seen);
    ask(&router, post(&at("/resend"), Body::empty())).await.expect(202, &seen);
    let mut canceled = seen;
    canceled["status"] = json!("canceled");
    canceled["resend_after"] = Value::Null;
    ask(&router, post(&at("/cancel"), Body::empty())).await.expect(200, &canceled);
    ask(&router, post(&at("/cancel"), Body::empty())).await.expect(200, &canceled);

    let right = r#"{"valid":true,"status":"approved"}"#;
    let told = ask(&router, post(&at("/checks"), r#"{"code":"482915"}"#)).await;
    assert_eq!((told.status, &*told.text), (200, right));
    let told = ask(&router, post(&at("/checks"), r#"{"code":"000000"}"#)).await;
    let wrong = r#"{"valid":false,"status":"pending","attempts_left":3}"#;
    assert_eq!((told.status, &*told.text), (200, wrong));
    let check = "/v1/verifications/check";
    let told = ask(&router, post(check, r#"{"phone":"79991234567","code":"482915"}"#)).await;
    assert_eq!((told.status, &*told.text), (200, right));
    let told = ask(&router, post(check, r#"{"phone":"79991234567","code":"000000"}"#)).await;
    assert_eq!((told.status, &*told.text), (200, r#"{"valid":false}"#));
}

#[tokio::test]
async fn what_was_asked_for_is_stored() {
    let (outbox, stored) = accepting();
    let router = parts().with_outbox(outbox).router();
    let body = json!({
        "phone": "+79991234567", "locale": "de-AT", "ttl": 300.0, "code_length": 8,
        "template": "login", "ip": "2001:db8::1", "metadata": {"user": "42", "a/b": ""},
        "limits": {"device": "a1"}, "unknown": {"phone": null},
    });

    let request = with(post(START, body.to_string()), "traceparent", TRACE);
    let told = ask(&router, request).await;

    assert_eq!(told.json()["metadata"], body["metadata"]);
    assert_eq!(told.json()["expires_at"], "2026-11-23T10:05:00.123Z");
    let stored = stored.lock().unwrap();
    let NewSend { message, ttl, verification, extra, trace, .. } = &stored[0];
    assert_eq!((message.phone.as_str(), *ttl), ("79991234567", Duration::from_secs(300)));
    assert_eq!(*trace, TRACE.parse::<TraceParent>().unwrap());
    assert_eq!(verification.code_length.get(), 8);
    assert_eq!(verification.region, "RU".parse().ok());
    assert_eq!(verification.template, "login/de".parse().ok());
    let counters: Vec<_> =
        extra.iter().map(|it| (it.policy.name.as_str(), it.key.as_str())).collect();
    let ip = "2001:db8::/64";
    let prefix = ("prefix-1h", "7999123");
    assert_eq!(counters, [("ip-1h", ip), ("ip-1d", ip), prefix, ("device-1h", "a1")]);
}

#[tokio::test]
async fn what_is_not_said_is_as_it_is_set_up() {
    let (outbox, stored) = accepting();
    let router = parts().with_outbox(outbox).router();

    let told = ask(&router, post(START, r#"{"phone":"79991234567"}"#)).await;

    assert_eq!(told.status, 202);
    let stored = stored.lock().unwrap();
    let NewSend { ttl, verification, extra, .. } = &stored[0];
    assert_eq!((*ttl, verification.code_length.get()), (Duration::from_secs(600), 6));
    let counted: Vec<&str> = extra.iter().map(|it| it.policy.name.as_str()).collect();
    assert_eq!((&verification.template, &counted[..]), (&None, &["prefix-1h"][..]));
    assert_eq!((&verification.metadata, &verification.api_key), (&None, &None));
}

#[tokio::test]
async fn problems_have_stable_types_and_pointers() {
    let router = parts().router();
    let check = "/v1/verifications/check";
    let long = |length| "x".repeat(length);
    let pairs = |count: usize| -> BTreeMap<String, &str> {
        (0..count).map(|at| (format!("k{at}"), "v")).collect()
    };
    let phone = "+79991234567";
    let cases = [
        (START, json!({}), vec!["/phone"]),
        (START, json!({"phone": null}), vec!["/phone"]),
        (START, json!({"phone": 79_991_234_567_u64}), vec!["/phone"]),
        (START, json!({"phone": ""}), vec!["/phone"]),
        (START, json!({"phone": "+89999999999"}), vec!["/phone"]),
        (START, json!({"phone": "+7 999 123-45-67 ext. 8"}), vec!["/phone"]),
        (START, json!({"phone": format!("+79991234567{}", " ".repeat(64))}), vec!["/phone"]),
        (START, json!({"phone": phone, "ttl": 59}), vec!["/ttl"]),
        (START, json!({"phone": phone, "ttl": 3601}), vec!["/ttl"]),
        (START, json!({"phone": phone, "ttl": 60.5}), vec!["/ttl"]),
        (START, json!({"phone": phone, "ttl": -60}), vec!["/ttl"]),
        (START, json!({"phone": phone, "ttl": 1e30}), vec!["/ttl"]),
        (START, json!({"phone": phone, "ttl": "600"}), vec!["/ttl"]),
        (START, json!({"phone": phone, "code_length": 3}), vec!["/code_length"]),
        (START, json!({"phone": phone, "code_length": 11}), vec!["/code_length"]),
        (START, json!({"phone": phone, "locale": "d"}), vec!["/locale"]),
        (START, json!({"phone": phone, "locale": "de AT"}), vec!["/locale"]),
        (START, json!({"phone": phone, "locale": "de-"}), vec!["/locale"]),
        (START, json!({"phone": phone, "template": "nothing"}), vec!["/template"]),
        (START, json!({"phone": phone, "ip": "203.0.113"}), vec!["/ip"]),
        (START, json!({"phone": phone, "ip": "2001:db8::/64"}), vec!["/ip"]),
        (START, json!({"phone": phone, "metadata": []}), vec!["/metadata"]),
        (START, json!({"phone": phone, "metadata": pairs(17)}), vec!["/metadata"]),
        (START, json!({"phone": phone, "metadata": {long(41): "v"}}), vec!["/metadata"]),
        (START, json!({"phone": phone, "metadata": {"": "v"}}), vec!["/metadata"]),
        (
            START,
            json!({"phone": phone, "metadata": {"a/b~": 1, "c": long(257), "d": long(256)}}),
            vec!["/metadata/a~1b~0", "/metadata/c"],
        ),
        (START, json!({"phone": phone, "limits": {"other": "v"}}), vec!["/limits"]),
        (START, json!({"phone": phone, "limits": {"phone": "v"}}), vec!["/limits"]),
        (START, json!({"phone": phone, "limits": "device"}), vec!["/limits"]),
        (START, json!({"phone": phone, "limits": {"device": ""}}), vec!["/limits/device"]),
        (START, json!({"phone": phone, "limits": {"device": "\0"}}), vec!["/limits/device"]),
        (START, json!({"phone": phone, "limits": {"device": long(129)}}), vec!["/limits/device"]),
        (START, json!({"ttl": 1, "ip": 1, "locale": 1}), vec!["/phone", "/locale", "/ttl", "/ip"]),
        (check, json!({}), vec!["/phone", "/code"]),
        (check, json!({"phone": "+7999", "code": "482915"}), vec!["/phone"]),
        (check, json!({"phone": phone, "code": 482_915}), vec!["/code"]),
        (&at("/checks"), json!({"code": "123"}), vec!["/code"]),
        (&at("/checks"), json!({"code": "12345678901"}), vec!["/code"]),
        (&at("/checks"), json!({"code": "12345x"}), vec!["/code"]),
        (&at("/checks"), json!({"phone": phone}), vec!["/code"]),
    ];

    for (path, body, pointers) in &cases {
        let told = ask(&router, post(path, body.to_string())).await;
        assert_eq!(&told.pointers(), pointers, "{body}");
    }
    for (member, pointer) in [
        (r#""metadata":{"a":"1","b":"2","a":"1"}"#, "/metadata/a"),
        (r#""limits":{"device":"1","device":"2"}"#, "/limits/device"),
    ] {
        let told = ask(&router, post(START, format!(r#"{{"phone":"{phone}",{member}}}"#))).await;
        assert_eq!(told.pointers(), [pointer], "{member}");
    }
}

#[tokio::test]
async fn an_ip_can_be_required() {
    let (outbox, stored) = accepting();
    let mut parts = parts().with_outbox(outbox);
    parts.settings.require_ip = true;
    let router = parts.router();
    let start = async |body: serde_json::Value| ask(&router, post(START, body.to_string())).await;

    let without = start(json!({"phone": "+79991234567"})).await;
    assert_eq!((without.status, without.pointers()), (422, vec!["/ip".to_owned()]));
    let with = start(json!({"phone": "+79991234567", "ip": "203.0.113.7"})).await;
    assert_eq!(with.status, 202, "{}", with.text);
    assert_eq!(stored.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn satellite_numbers_are_refused_unless_their_region_is_listed() {
    for (regions, status) in [("*", 403), ("DE", 403), ("*,001", 202), ("001", 202)] {
        let (outbox, stored) = accepting();
        let mut parts = parts().with_outbox(outbox);
        parts.numbers.allowed = regions.parse().unwrap();
        let router = parts.router();

        let told = ask(&router, post(START, r#"{"phone":"+881612345678"}"#)).await;

        assert_eq!(told.status, status, "{regions}: {}", told.text);
        if status == 403 {
            assert_eq!(told.json()["code"], "region-not-allowed");
        } else {
            let region = stored.lock().unwrap()[0].verification.region;
            assert_eq!(region, Some(domain::Region::NON_GEOGRAPHIC));
        }
    }
}

#[tokio::test]
async fn limits_of_what_requests_say_are_taken() {
    let (outbox, stored) = accepting();
    let router = parts().with_outbox(outbox).router();
    let pairs: BTreeMap<String, String> =
        (0..16).map(|at| (format!("{at:040}"), "ы".repeat(256))).collect();
    let bodies = [
        json!({"ttl": 60, "code_length": 4, "locale": "rus", "template": "default"}),
        json!({"ttl": 3600, "code_length": 10, "locale": "zh-Hant-TW", "ip": "::ffff:203.0.113.7"}),
        json!({"metadata": pairs, "limits": {"device": "ы".repeat(128)}}),
        json!({"metadata": {}, "limits": {}, "code": 1, "phones": null}),
        json!({
            "locale": null, "ttl": null, "code_length": null, "template": null, "ip": null,
            "metadata": null, "limits": null,
        }),
    ];

    for mut body in bodies {
        body["phone"] = json!("+79991234567");
        let told = ask(&router, post(START, body.to_string())).await;
        assert_eq!(told.status, 202, "{body}: {}", told.text);
    }

    assert_eq!(stored.lock().unwrap().len(), 5);
}

#[tokio::test]
async fn phones_are_taken_as_people_paste_them() {
    let (outbox, stored) = accepting();
    let router = parts().with_outbox(outbox).router();
    let pasted = ["+7 (999) 123-45-67", "\u{202a}+7\u{a0}999\u{a0}1234567\u{202c}", "+٧٩٩٩١٢٣٤٥٦٧"];

    for phone in pasted {
        let told = ask(&router, post(START, json!({ "phone": phone }).to_string())).await;
        assert_eq!(told.status, 202, "{phone}: {}", told.text);
    }

    let stored = stored.lock().unwrap();
    assert_eq!(stored.len(), pasted.len());
    assert!(stored.iter().all(|new| new.message.phone.as_str() == "79991234567"));
}

#[test]
fn codes_are_taken_as_people_type_them() {
    for code in ["482915", "٤٨٢٩١٥", "482 915", "482-915\r\n", "\u{200e}482915"] {
        let read = body::check(json!({ "code": code }).to_string().as_bytes()).unwrap();
        assert_eq!(read.as_str(), "482915", "{}", code.escape_unicode());
    }
}

#[tokio::test]
async fn the_language_of_a_locale_is_taken_however_it_is_written() {
    let (outbox, stored) = accepting();
    let router = parts().with_outbox(outbox).router();
    let locales =
        ["de-AT", "de_AT", "de-AT-u-ca-gregory", "de_AT.UTF-8", "de_AT@euro", "de-AT-x-a"];

    for locale in locales {
        let body = json!({ "phone": "+79991234567", "locale": locale });
        let told = ask(&router, post(START, body.to_string())).await;
        assert_eq!(told.status, 202, "{locale}: {}", told.text);
    }

    assert_eq!(stored.lock().unwrap().len(), locales.len());
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_told_apart_from_one_that_cannot_be_used() {
    let router = parts().router();
    let bodies: &[&[u8]] = &[
        b"",
        b" ",
        b"null",
        b"[]",
        br#"{"phone":"+79991234567","metadata":{"a":"\ud800"}}"#,
        br#"{"phone":"+79991234567","limits":{"device":1e999}}"#,
        br#"["+79991234567"]"#,
        br#""+79991234567""#,
        br#"{"phone":"+79991234567""#,
        br#"{"phone":"+79991234567"}{}"#,
        br#"{"phone":"+79991234567","phone":"+79991234567""#,
        b"\xef\xbb\xbf{\"phone\":\"+79991234567\"}",
        b"{\"phone\":\"+79991234567\",\"name\":\"\xff\"}",
    ];

    for &body in bodies {
        let told = ask(&router, post(START, body)).await;
        assert_eq!(told.status, 400, "{}", body.escape_ascii());
        assert!(told.expect_problem(400, "malformed-body").is_empty());
    }
    let twice = r#"{"phone":"+79991234567","ttl":60,"phone":"+79991234567","ttl":61,"ttl":62}"#;
    let told = ask(&router, post(START, twice)).await;
    assert_eq!(told.pointers(), ["/phone", "/ttl"]);
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp"] {
        let request = Request::post(START).header(CONTENT_TYPE, kind);
        let told = ask(&router, request.body(PHONE.into()).unwrap()).await;
        told.expect_problem(415, "unsupported-media-type");
    }
    let told = ask(&router, Request::post(START).body(PHONE.into()).unwrap()).await;
    told.expect_problem(415, "unsupported-media-type");
    for length in [16 * 1024 + 1, 8 * 1024 * 1024] {
        let told = ask(&router, post(START, " ".repeat(length))).await;
        told.expect_problem(413, "too-large");
    }
    let told = ask(&router, post(&at("/cancel"), " ".repeat(16 * 1024 + 1))).await;
    told.expect_problem(413, "too-large");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let never = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());

    let told = ask(&parts().router(), post(START, never)).await;

    told.expect_problem(408, "request-timeout");
    assert_eq!(told.headers["connection"], "close");
}

#[tokio::test]
async fn an_answer_repeats_nothing_of_what_cannot_be_used() {
    let router = parts().router();
    let secret = "secret5550123";
    let body = json!({
        "phone": secret, "locale": secret, "ttl": secret, "code_length": secret, "code": secret,
        "template": secret, "ip": secret, "metadata": {"a": [secret]}, "limits": {secret: secret},
    });

    for path in [START, "/v1/verifications/check"] {
        let told = ask(&router, post(path, body.to_string())).await;
        assert_eq!(told.status, 422);
        assert!(!told.text.contains(secret), "{}", told.text);
    }
    for text in [secret.to_owned(), format!("{{\"phone\":\"{secret}")] {
        let told = ask(&router, post(START, text)).await;
        assert!(!told.text.contains(secret), "{}", told.text);
    }
}

#[tokio::test]
async fn paths_and_methods_that_are_not_there_are_problems() {
    let (router, registry) = parts().counted();

    for path in ["/v1", "/v1/", "/v1/verification", "/v1/verifications/", &at("/"), &at("/check")] {
        let told = ask(&router, get(path)).await;
        told.expect_problem(404, "not-found");
        assert_eq!(told.json()["instance"], path);
    }
    for (method, path, allow) in [
        ("GET", START.to_owned(), "POST"),
        ("DELETE", at(""), "GET,HEAD"),
        ("PUT", at("/checks"), "POST"),
        ("GET", at("/resend"), "POST"),
        ("OPTIONS", at("/cancel"), "POST"),
        ("GET", "/v1/verifications/check".to_owned(), "POST"),
        ("POST", "/openapi.json".to_owned(), "GET,HEAD"),
    ] {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let told = ask(&router, request).await;
        told.expect_problem(405, "method-not-allowed");
        assert_eq!(told.headers[ALLOW], allow);
    }

    let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    let count =
        r#"messager_v1_requests_total{route="/v1/verifications/{id}/checks",status="405"} 1"#;
    assert!(text.contains(count), "{text}");
}

#[tokio::test]
async fn what_is_not_an_id_is_not_found() {
    let router = parts().router();

    for id in [
        "6f2c1a529d3f4f0e8a550d2f6f3b9c00",
        "ver_6F2C1A529D3F4F0E8A550D2F6F3B9C00",
        "ver_6f2c1a529d3f4f0e8a550d2f6f3b9c01",
        "ver_6f2c1a52-9d3f-4f0e-8a55-0d2f6f3b9c00",
        "ver_",
        "ver_%FF",
        "1",
    ] {
        let path = format!("{START}/{id}");
        ask(&router, get(&path)).await.expect_problem(404, "not-found");
        for rest in ["checks", "resend", "cancel"] {
            let told = ask(&router, post(&format!("{path}/{rest}"), r#"{"code":"482915"}"#)).await;
            told.expect_problem(404, "not-found");
        }
    }
}

#[tokio::test]
async fn what_a_verification_has_come_to_is_told() {
    let status = |status| move || Ok(Some(Verification { status, secret: None, ..pending() }));
    let check = || post(&at("/checks"), r#"{"code":"482915"}"#);
    let resend = || post(&at("/resend"), Body::empty());
    let cancel = || post(&at("/cancel"), Body::empty());

    let mut unknown = trying(|| Tried::Unknown);
    unknown.expect_find().returning(|_| Ok(None));
    unknown.expect_history().returning(|_| Ok(None));
    unknown.expect_cancel().returning(|_| Ok(None));
    let router = Parts { verifications: unknown, ..parts() }.router();
    for request in [check(), resend(), cancel(), get(&at(""))] {
        ask(&router, request).await.expect_problem(404, "not-found");
    }

    for (ended, code, shown) in [
        (VerificationStatus::Approved, "already-approved", None),
        (VerificationStatus::Expired, "gone", Some("expired")),
        (VerificationStatus::Canceled, "gone", Some("canceled")),
    ] {
        let mut verifications = trying(move || match ended {
            VerificationStatus::Approved => Tried::Approved,
            ended => Tried::Gone(ended),
        });
        let find = status(ended);
        verifications.expect_find().returning(move |_| find());
        verifications.expect_cancel().returning(move |_| {
            Ok(Some(history(Verification { status: ended, secret: None, ..pending() })))
        });
        let router = Parts { verifications, ..parts() }.router();
        let number = if shown.is_some() { 410 } else { 409 };
        let mut requests = vec![check(), resend()];
        if ended != VerificationStatus::Canceled {
            requests.push(cancel());
        }
        for request in requests {
            let extra = ask(&router, request).await.expect_problem(number, code);
            assert_eq!(extra.get("verification_status").and_then(Value::as_str), shown);
        }
    }
}

#[tokio::test]
async fn a_wrong_code_and_an_unknown_phone_have_the_same_answer() {
    let check = || post("/v1/verifications/check", r#"{"phone":"79991234567","code":"000000"}"#);
    let right = || post("/v1/verifications/check", r#"{"phone":"79991234567","code":"482915"}"#);
    let first = Parts { verifications: trying(|| wrong(1)), ..parts() }.router();
    let fifth = Parts { verifications: trying(|| wrong(5)), ..parts() }.router();
    let mut unknown = MockVerifications::new();
    unknown.expect_newest().returning(|_| Ok(Newest::default()));
    unknown.expect_check().returning(|_, _| Ok(Tried::Nothing));
    let unknown = Parts { verifications: unknown, ..parts() }.router();
    let pepper = "gone".parse().unwrap();
    let gone = trying(move || Tried::Wrong { attempts: 1, pepper: KeyId::clone(&pepper) });
    let gone = Parts { verifications: gone, ..parts() }.router();

    let expected = ask(&first, check()).await;
    let others = [
        ask(&fifth, check()).await,
        ask(&unknown, check()).await,
        ask(&unknown, right()).await,
        ask(&gone, right()).await,
    ];

    assert_eq!((expected.status, &*expected.text), (200, r#"{"valid":false}"#));
    for told in others {
        assert_eq!((told.status, told.text), (expected.status, expected.text.clone()));
        assert_eq!(told.headers, expected.headers);
    }
}

#[tokio::test]
async fn a_check_by_phone_takes_numbers_that_api_takes() {
    let mut verifications = MockVerifications::new();
    verifications
        .expect_newest()
        .withf(|phone| *phone == "89999999999".parse().unwrap())
        .returning(|_| Ok(Newest::default()));
    verifications.expect_check().returning(|_, _| Ok(Tried::Nothing));
    let router = Parts { verifications, ..parts() }.router();

    let body = r#"{"phone":"89999999999","code":"482915"}"#;
    let told = ask(&router, post("/v1/verifications/check", body)).await;

    assert_eq!((told.status, &*told.text), (200, r#"{"valid":false}"#));
}

#[tokio::test]
async fn a_receipt_is_noted_where_there_is_such_a_message() {
    let id: VerificationId = ID.parse().unwrap();
    let undelivered = RECEIPT.replace("delivered", "undelivered");
    for (body, receipt, known) in [
        (RECEIPT, Receipt::Delivered, true),
        (RECEIPT, Receipt::Delivered, false),
        (&*undelivered, Receipt::Undelivered, true),
    ] {
        let mut verifications = MockVerifications::new();
        verifications
            .expect_note_receipt()
            .withf(move |message, told| *message == id.message(1) && *told == receipt)
            .once()
            .returning(move |_, _| Ok(known));
        let router = Parts { verifications, ..parts() }.router();

        let told = ask(&router, post("/v1/receipts", body.to_owned())).await;

        if known {
            assert_eq!((told.status, &*told.text), (204, ""));
            assert!(!told.headers.contains_key(CONTENT_TYPE));
        } else {
            told.expect_problem(404, "not-found");
        }
    }
}

#[tokio::test]
async fn a_receipt_that_says_something_else_is_refused() {
    let router = parts().router();
    for (body, pointers) in [
        ("{}", &["/id", "/status"][..]),
        (r#"{"id":1,"status":null}"#, &["/id", "/status"]),
        (r#"{"id":"ver_6f2c1a529d3f4f0e8a550d2f6f3b9c00","status":"delivered"}"#, &["/id"]),
        (r#"{"id":"6f2c1a52-9d3f-4f0e-8a55-0d2f6f3b9c01","status":"sent"}"#, &["/status"]),
    ] {
        assert_eq!(ask(&router, post("/v1/receipts", body)).await.pointers(), pointers);
    }
    let told = ask(&router, post("/v1/receipts", "[]")).await;
    told.expect_problem(400, "malformed-body");
}

#[tokio::test]
async fn a_receipt_that_cannot_be_kept_is_asked_for_again() {
    let mut verifications = MockVerifications::new();
    verifications.expect_note_receipt().returning(|_, _| Err(StoreError::Full));
    let router = Parts { verifications, ..parts() }.router();

    let told = ask(&router, post("/v1/receipts", RECEIPT)).await;

    told.expect_problem(503, "temporary-reduced-capacity");
    assert!(told.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn limits_name_policy_and_headers_of_draft_11() {
    let mut outbox = MockOutbox::new();
    outbox.expect_enqueue().returning(|_| {
        let phone = violation("phone", 5, 3_600, 1_740);
        Ok(Enqueued::Limited(vec![phone, violation("ip", 50, 86_400, 2)]))
    });
    let router = parts().with_outbox(outbox).router();

    let body = r#"{"phone":"+79991234567","ip":"203.0.113.7"}"#;
    let told = ask(&router, post(START, body)).await;

    let extra = told.expect_problem(429, "quota-exceeded");
    assert_eq!(
        told.json()["type"],
        "https://iana.org/assignments/http-problem-types#quota-exceeded"
    );
    assert_eq!(extra["violated-policies"], json!(["phone-1h", "ip-1d"]));
    assert_eq!(extra["retry_after"], 1_740);
    assert_eq!(told.headers["retry-after"], "1740");
    assert_eq!(
        told.headers["ratelimit-policy"],
        "\"phone-1h\";q=5;w=3600, \"phone-1d\";q=10;w=86400, \"prefix-1h\";q=1000;w=3600, \
         \"ip-1h\";q=10;w=3600, \"ip-1d\";q=50;w=86400"
    );
    assert_eq!(told.headers["ratelimit"], "\"phone-1h\";r=0;t=1740, \"ip-1d\";r=0;t=2");
}

#[tokio::test]
async fn a_resend_too_early_and_a_check_too_many_say_when() {
    let mut verifications = trying(|| Tried::Exhausted {
        retry_after: Duration::from_millis(300_001),
        ttl: Duration::from_secs(600),
    });
    verifications
        .expect_find()
        .returning(|_| Ok(Some(Verification { read_at: after(20), ..pending() })));
    let router = Parts { verifications, ..parts() }.router();

    let early = ask(&router, post(&at("/resend"), Body::empty())).await;
    let extra = early.expect_problem(429, "quota-exceeded");
    assert_eq!(extra["violated-policies"], json!(["resend"]));
    assert_eq!(early.headers["retry-after"], "40");
    assert_eq!(early.headers["ratelimit"], "\"resend\";r=0;t=40");
    let policies = early.headers["ratelimit-policy"].to_str().unwrap();
    assert!(policies.ends_with(", \"resend\";q=1;w=60"), "{policies}");

    let spent = ask(&router, post(&at("/checks"), r#"{"code":"482915"}"#)).await;
    let extra = spent.expect_problem(429, "quota-exceeded");
    assert_eq!(extra["violated-policies"], json!(["attempts"]));
    assert_eq!(spent.headers["retry-after"], "301");
    assert_eq!(
        spent.headers["ratelimit-policy"],
        "\"check-1h\";q=10;w=3600, \"check-1d\";q=50;w=86400, \"attempts\";q=5;w=600"
    );

    let limited = || Tried::Limited(vec![violation("check", 10, 3_600, 9)]);
    let router = Parts { verifications: trying(limited), ..parts() }.router();
    let body = r#"{"phone":"79991234567","code":"482915"}"#;
    let told = ask(&router, post("/v1/verifications/check", body)).await;
    let extra = told.expect_problem(429, "quota-exceeded");
    assert_eq!(extra["violated-policies"], json!(["check-1h"]));
    assert_eq!(told.headers["retry-after"], "9");
}

#[tokio::test]
async fn no_attempts_and_no_sends_left_are_shown() {
    let mut verifications = MockVerifications::new();
    verifications.expect_history().returning(|_| {
        let metadata = Some(Metadata::new(r#"{"user":"42"}"#.to_owned()));
        let origin = Origin::Test;
        Ok(Some(history(Verification { attempts: 5, sends: 4, metadata, origin, ..pending() })))
    });
    let router = Parts { verifications, ..parts() }.router();

    let told = ask(&router, get(&at(""))).await.json();

    assert_eq!((&told["attempts_left"], &told["sends_left"]), (&json!(0), &json!(0)));
    assert_eq!(told["resend_after"], Value::Null);
    assert_eq!((&told["metadata"], &told["test"]), (&json!({"user": "42"}), &json!(true)));
}

#[tokio::test]
async fn metadata_is_for_who_may_read_and_for_the_key_that_began() {
    let key = |seed| ApiKeyText::generate(&mut StdRng::seed_from_u64(seed));
    let (own, other, admin) = (key(1), key(2), key(3));
    let known = [(&own, "send"), (&other, "send,check"), (&admin, "send,read")];
    let known = known.map(|(key, scopes)| ApiKey {
        id: key.id(),
        name: scopes.to_owned(),
        hash: key.hash(),
        scopes: scopes.parse().unwrap(),
        created_at: now(),
        last_used_at: None,
        revoked_at: None,
    });
    let mut keys = MockApiKeys::new();
    keys.expect_all().returning(move || Ok(known.clone().into()));
    let begun = Verification {
        metadata: Some(domain::Metadata::new(r#"{"user":"42"}"#.to_owned())),
        api_key: Some(own.id()),
        read_at: after(60),
        ..pending()
    };
    let mut outbox = MockOutbox::new();
    let already = begun.clone();
    outbox.expect_enqueue().returning(move |_| Ok(Enqueued::Pending(Box::new(already.clone()))));
    let mut verifications = MockVerifications::new();
    let [found, sent, told, ended] = std::array::from_fn(|_| begun.clone());
    verifications.expect_find().returning(move |_| Ok(Some(found.clone())));
    verifications.expect_resend().returning(move |_| Ok(Resent::Sent(Box::new(sent.clone()))));
    verifications.expect_history().returning(move |_| Ok(Some(history(told.clone()))));
    verifications.expect_cancel().returning(move |_| {
        let status = VerificationStatus::Canceled;
        Ok(Some(history(Verification { status, ..ended.clone() })))
    });
    let mut parts = Parts { verifications, keys, ..parts() }.with_outbox(outbox);
    parts.settings.auth = ApiAuth::V1;
    let router = parts.router();

    for (key, sees) in [(&own, true), (&other, false), (&admin, true)] {
        let shown = format!("Bearer {}", key.reveal());
        for path in [START.to_owned(), at("/resend"), at("/cancel")] {
            let told = ask(&router, with(post(&path, PHONE), "authorization", &shown)).await;
            assert_eq!(told.status / 100, 2, "{}", told.text);
            assert_eq!(told.json().get("metadata").is_some(), sees, "{path}: {}", told.text);
        }
    }
}

#[tokio::test]
async fn numbers_that_nothing_is_sent_to_are_refused() {
    let router = parts().router();
    let told = ask(&router, post(START, r#"{"phone":"+19005551234"}"#)).await;
    told.expect_problem(403, "number-type-not-allowed");

    let mut abroad = parts();
    abroad.numbers.allowed = "DE".parse().unwrap();
    let router = abroad.router();
    let told = ask(&router, post(START, PHONE)).await;
    let extra = told.expect_problem(403, "region-not-allowed");
    assert_eq!(extra["errors"][0]["pointer"], "/phone");
    let told = ask(&router, post(START, r#"{"phone":"+79991234567","ttl":1}"#)).await;
    assert_eq!(told.pointers(), ["/ttl"]);
}

#[tokio::test]
async fn default_region() {
    let (outbox, stored) = accepting();
    let mut parts = parts();
    parts.settings.default_region = "RU".parse().ok();
    let router = parts.with_outbox(outbox).router();

    for phone in ["89991234567", "9991234567", "+79991234567"] {
        let told = ask(&router, post(START, json!({ "phone": phone }).to_string())).await;
        assert_eq!(told.status, 202, "{}", told.text);
    }

    let stored = stored.lock().unwrap();
    assert!(stored.iter().all(|send| send.message.phone.as_str() == "79991234567"));
}

#[tokio::test]
async fn a_test_number_has_its_code_and_no_rules() {
    let mut verifications = MockVerifications::new();
    verifications
        .expect_start_test()
        .withf(|test| {
            let hash = &test.verification.secret.code_hash;
            let (phone, length) = (test.phone.as_str(), test.verification.code_length.get());
            let peppers = peppers();
            let expected = peppers.first().hash(test.id, &"1234".parse().unwrap());
            phone == "10000000001" && length == 4 && hash.as_bytes() == expected.as_bytes()
        })
        .returning(|_| Ok(Verification { origin: Origin::Test, ..pending() }));
    verifications
        .expect_newest()
        .withf(|phone| *phone == "10000000001".parse().unwrap())
        .returning(|_| Ok(Newest::default()));
    verifications.expect_check().returning(|_, _| Ok(Tried::Nothing));
    let mut parts = Parts { verifications, ..parts() };
    let number = ("10000000001".parse().unwrap(), "1234".parse().unwrap());
    parts.settings.test_numbers = [number].into();
    parts.numbers.allowed = "DE".parse().unwrap();
    let router = parts.router();

    for phone in ["+10000000001", "10000000001"] {
        let told = ask(&router, post(START, json!({ "phone": phone }).to_string())).await;
        assert_eq!((told.status, &told.json()["test"]), (202, &json!(true)));
        let check = json!({ "phone": phone, "code": "1234" }).to_string();
        assert_eq!(ask(&router, post("/v1/verifications/check", check)).await.status, 200);
    }
}

#[tokio::test]
async fn the_guard_says_no_more_than_that() {
    let (outbox, _) = accepting();
    let mut parts = parts();
    let rule = domain::GuardRule::parse("prefix:1:50", domain::GuardMode::Enforce);
    parts.rules = vec![rule.unwrap()];
    let router = parts.with_outbox(outbox).router();

    assert_eq!(ask(&router, post(START, PHONE)).await.status, 202);
    let told = ask(&router, post(START, r#"{"phone":"+79991234568"}"#)).await;

    assert!(told.expect_problem(403, "abnormal-usage-detected").is_empty());
}

#[tokio::test]
async fn what_cannot_be_stored_is_not_accepted() {
    for error in [|| EnqueueError::Full, || EnqueueError::Unavailable("down".into())] {
        let mut outbox = MockOutbox::new();
        outbox.expect_enqueue().returning(move |_| Err(error()));
        let told = ask(&parts().with_outbox(outbox).router(), post(START, PHONE)).await;
        told.expect_problem(503, "temporary-reduced-capacity");
        assert_eq!(told.headers["retry-after"], "1");
    }

    for error in [|| StoreError::Full, || StoreError::Unavailable("down".into())] {
        let mut down = MockVerifications::new();
        down.expect_find().returning(move |_| Err(error()));
        down.expect_history().returning(move |_| Err(error()));
        down.expect_cancel().returning(move |_| Err(error()));
        down.expect_newest().returning(move |_| Err(error()));
        down.expect_check().returning(move |_, _| Err(error()));
        let router = Parts { verifications: down, ..parts() }.router();
        for request in [
            get(&at("")),
            post(&at("/resend"), Body::empty()),
            post(&at("/cancel"), Body::empty()),
            post(&at("/checks"), r#"{"code":"482915"}"#),
            post("/v1/verifications/check", r#"{"phone":"79991234567","code":"482915"}"#),
        ] {
            ask(&router, request).await.expect_problem(503, "temporary-reduced-capacity");
        }
    }
}

#[tokio::test]
async fn a_panic_is_answered_and_the_next_request_too() {
    let mut outbox = MockOutbox::new();
    outbox.expect_enqueue().once().returning(|_| panic!("on purpose"));
    let (router, registry) = parts().with_outbox(outbox).counted();

    ask(&router, post(START, PHONE)).await.expect_problem(500, "internal");
    ask(&router, post(START, "{}")).await.expect_problem(422, "invalid");

    let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    for (status, count) in [("500", 1), ("422", 1), ("202", 0), ("503", 0)] {
        let line = format!(
            "messager_v1_requests_total{{route=\"{START}\",status=\"{status}\"}} {count}\n"
        );
        assert!(text.contains(&line), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_body_of_a_request_without_a_key_is_waited_for_a_second_only() {
    let mut parts = parts();
    parts.settings.auth = ApiAuth::V1;
    let router = parts.router();
    let body = futures_util::stream::pending::<Result<axum::body::Bytes, std::io::Error>>();
    let mut request = post(START, "");
    *request.body_mut() = Body::from_stream(body);
    let begun = tokio::time::Instant::now();

    let told = ask(&router, request).await;

    told.expect_problem(401, "unauthorized");
    assert_eq!(begun.elapsed().as_secs(), 1);
}

#[tokio::test]
async fn scopes_and_401_403() {
    let key = |scope: Scope| ApiKeyText::generate(&mut StdRng::seed_from_u64(scope as u64));
    let mut keys = MockApiKeys::new();
    keys.expect_all().returning(move || {
        let known = |scope: Scope| ApiKey {
            id: key(scope).id(),
            name: scope.as_str().to_owned(),
            hash: key(scope).hash(),
            scopes: scope.as_str().parse().unwrap(),
            created_at: now(),
            last_used_at: None,
            revoked_at: None,
        };
        Ok(Scope::ALL.map(known).into())
    });
    let (outbox, stored) = accepting();
    let mut verifications = trying(|| wrong(1));
    verifications.expect_history().returning(|_| Ok(Some(history(pending()))));
    verifications.expect_cancel().returning(|_| {
        let status = VerificationStatus::Canceled;
        Ok(Some(history(Verification { status, ..pending() })))
    });
    verifications
        .expect_find()
        .returning(|_| Ok(Some(Verification { read_at: after(60), ..pending() })));
    verifications.expect_resend().returning(|_| Ok(Resent::Sent(Box::new(pending()))));
    verifications.expect_note_receipt().returning(|_, _| Ok(true));
    let mut parts = Parts { verifications, keys, ..parts() }.with_outbox(outbox);
    parts.settings.auth = ApiAuth::V1;
    let router = parts.router();
    let check = r#"{"phone":"79991234567","code":"000000"}"#;
    let request = |operation: Operation| {
        let path = operation.route().replace("{id}", ID);
        let body = match operation {
            Operation::Start => PHONE,
            Operation::Receipt => RECEIPT,
            _ => check,
        };
        if operation == Operation::Find { get(&path) } else { post(&path, body) }
    };

    for operation in Operation::ALL {
        let told = ask(&router, request(operation)).await;
        told.expect_problem(401, "unauthorized");
        assert_eq!(told.headers["www-authenticate"], "Bearer");
        for bad in ["Bearer", "Bearer msk_1", "Basic Zm9v"] {
            let told = ask(&router, with(request(operation), "authorization", bad)).await;
            told.expect_problem(401, "unauthorized");
        }
        for scope in Scope::ALL {
            let shown = format!("Bearer {}", key(scope).reveal());
            let told = ask(&router, with(request(operation), "authorization", &shown)).await;
            if scope == operation.scope() || scope == Scope::Admin {
                assert_eq!(told.status, operation.success().as_u16(), "{}", told.text);
            } else {
                let extra = told.expect_problem(403, "forbidden");
                assert_eq!(extra["scope"], operation.scope().as_str());
            }
        }
    }

    let whose: Vec<_> =
        stored.lock().unwrap().iter().map(|send| send.verification.api_key).collect();
    assert_eq!(whose, [Some(key(Scope::Send).id()), Some(key(Scope::Admin).id())]);
    let told = ask(&router, post(START, "{")).await;
    told.expect_problem(401, "unauthorized");
    assert_eq!(ask(&router, get("/openapi.json")).await.status, 200);
}

#[tokio::test]
async fn callers_whose_keys_cannot_be_read_are_asked_to_wait() {
    let mut keys = MockApiKeys::new();
    keys.expect_all().returning(|| Err(StoreError::Full));
    let mut parts = Parts { keys, ..parts() };
    parts.settings.auth = ApiAuth::V1;
    let shown = ApiKeyText::generate(&mut StdRng::seed_from_u64(1)).reveal();

    let request = with(post(START, PHONE), "authorization", &format!("Bearer {shown}"));
    let told = ask(&parts.router(), request).await;

    told.expect_problem(503, "temporary-reduced-capacity");
}

/// Answers in memory.
#[derive(Clone, Default)]
struct Book {
    entries: Arc<Mutex<HashMap<[u8; 32], Entry>>>,
    /// What all who take over find.
    done: Option<VerificationId>,
}

#[derive(Clone)]
struct Entry {
    body: [u8; 32],
    answer: Option<Answer>,
    is_given_up: bool,
}

impl Answers for Book {
    async fn begin(&self, key: [u8; 32], body: [u8; 32]) -> Result<Begun, StoreError> {
        let mut entries = self.entries.lock().unwrap();
        let claim = AnswerClaim { key, holder: [1; 16], first: [1; 16], done: None };
        if let Some(entry) = entries.get_mut(&key) {
            if entry.is_given_up && entry.body == body {
                entry.is_given_up = false;
                return Ok(Begun::Ours(AnswerClaim { holder: [2; 16], ..claim }));
            }
            return Ok(match &entry.answer {
                _ if entry.body != body => Begun::Other,
                None => Begun::Running,
                Some(answer) => Begun::Answered(answer.clone()),
            });
        }
        entries.insert(key, Entry { body, answer: None, is_given_up: false });
        Ok(Begun::Ours(claim))
    }

    async fn done(&self, _: &AnswerClaim) -> Result<Option<VerificationId>, StoreError> {
        Ok(self.done)
    }

    async fn keep(&self, claim: &AnswerClaim, answer: &Answer) -> Result<(), StoreError> {
        let mut entries = self.entries.lock().unwrap();
        entries.get_mut(&claim.key).unwrap().answer = Some(answer.clone());
        Ok(())
    }

    async fn forget(&self, claim: &AnswerClaim) -> Result<(), StoreError> {
        self.entries.lock().unwrap().remove(&claim.key);
        Ok(())
    }

    async fn give_up(&self, claim: &AnswerClaim) -> Result<(), StoreError> {
        self.entries.lock().unwrap().get_mut(&claim.key).unwrap().is_given_up = true;
        Ok(())
    }
}

#[tokio::test]
async fn a_repeated_check_spends_no_attempt() {
    let mut verifications = MockVerifications::new();
    verifications.expect_newest().once().returning(|_| Ok(newest()));
    verifications.expect_check().times(2).returning(|_, _| Ok(wrong(1)));
    let router = Parts { verifications, ..parts() }.with_answers(Book::default()).router();
    let by_phone = r#"{"phone":"79991234567","code":"000000"}"#;

    for (path, body) in
        [(at("/checks"), r#"{"code":"000000"}"#), ("/v1/verifications/check".to_owned(), by_phone)]
    {
        let first = ask(&router, keyed(post(&path, body))).await;
        let again = ask(&router, keyed(post(&path, body))).await;

        assert_eq!((first.status, &first.text), (200, &again.text));
        assert!(!first.headers.contains_key("idempotent-replayed"));
        assert_eq!(
            (again.status, &again.headers["idempotent-replayed"]),
            (200, &"true".parse().unwrap())
        );
        assert_eq!(again.headers[CONTENT_TYPE], "application/json");
    }
}

#[tokio::test]
async fn a_repeated_start_and_resend_send_once() {
    let mut outbox = MockOutbox::new();
    outbox.expect_enqueue().once().returning(|_| Ok(Enqueued::Accepted { at: now() }));
    let mut verifications = MockVerifications::new();
    verifications
        .expect_find()
        .returning(|_| Ok(Some(Verification { read_at: after(60), ..pending() })));
    verifications.expect_resend().once().returning(|_| Ok(Resent::Sent(Box::new(pending()))));
    verifications.expect_history().returning(|_| Ok(Some(history(pending()))));
    let parts = Parts { verifications, ..parts() }.with_outbox(outbox);
    let router = parts.with_answers(Book::default()).router();

    for path in [START.to_owned(), at("/resend")] {
        let first = ask(&router, keyed(post(&path, PHONE))).await;
        let again = ask(&router, keyed(post(&path, PHONE))).await;

        assert_eq!((first.status, again.status, &first.text), (202, 202, &again.text));
        assert_eq!(first.headers.get("location"), again.headers.get("location"));
        assert_eq!(again.headers["idempotent-replayed"], "true");
    }
}

#[tokio::test]
async fn what_may_have_been_stored_is_looked_for_before_it_is_repeated() {
    let mut outbox = MockOutbox::new();
    outbox.expect_enqueue().once().returning(|_| Err(EnqueueError::Unavailable("late".into())));
    let begun = VerificationId::of_drawn([1; 16]);
    let mut verifications = MockVerifications::new();
    verifications
        .expect_history()
        .withf(move |id| *id == begun)
        .once()
        .returning(move |id| Ok(Some(history(Verification { id, ..pending() }))));
    let parts = Parts { verifications, ..parts() }.with_outbox(outbox);
    let router = parts.with_answers(Book::default()).router();

    let first = ask(&router, keyed(post(START, PHONE))).await;
    first.expect_problem(503, "temporary-reduced-capacity");
    let again = ask(&router, keyed(post(START, PHONE))).await;

    assert_eq!((again.status, &again.json()["id"]), (202, &json!(begun.to_string())));
    assert_eq!(again.headers["location"], format!("/v1/verifications/{begun}"));
}

/// What timed out for its caller may still be under way in the database.
#[tokio::test]
async fn a_check_that_is_right_late_is_right_for_whoever_takes_it_over_meanwhile() {
    let mut verifications = MockVerifications::new();
    let mut tries = 0;
    verifications.expect_check().times(2).returning(move |_, _| {
        tries += 1;
        if tries == 1 { Err(StoreError::Unavailable("late".into())) } else { Ok(Tried::Approved) }
    });
    let book = Book { done: ID.parse().ok(), ..Book::default() };
    let router = Parts { verifications, ..parts() }.with_answers(book).router();
    let check = || keyed(post(&at("/checks"), r#"{"code":"482915"}"#));

    ask(&router, check()).await.expect_problem(503, "temporary-reduced-capacity");
    let told = ask(&router, check()).await;

    assert_eq!((told.status, &told.json()["valid"]), (200, &json!(true)));
}

#[tokio::test]
async fn another_body_under_a_key_is_refused() {
    let mut verifications = MockVerifications::new();
    verifications.expect_check().once().returning(|_, _| Ok(wrong(1)));
    let router = Parts { verifications, ..parts() }.with_answers(Book::default()).router();

    ask(&router, keyed(post(&at("/checks"), r#"{"code":"000000"}"#))).await;
    let told = ask(&router, keyed(post(&at("/checks"), r#"{"code":"000001"}"#))).await;

    assert!(told.expect_problem(422, "idempotency-mismatch").is_empty());
}

#[tokio::test]
async fn a_refusal_is_kept_and_what_passes_is_not() {
    let mut verifications = MockVerifications::new();
    verifications.expect_history().returning(|_| Ok(None));
    let parts = Parts { verifications, ..parts() }.with_outbox(Rounds::default());
    let router = parts.with_answers(Book::default()).router();

    ask(&router, keyed(post(START, PHONE))).await.expect_problem(429, "quota-exceeded");
    ask(&router, keyed(post(START, PHONE))).await.expect_problem(503, "temporary-reduced-capacity");
    ask(&router, keyed(post(START, PHONE))).await.expect_problem(500, "internal");
    let wrong_kind = Request::post(START).header(CONTENT_TYPE, "text/plain");
    let told = ask(&router, keyed(wrong_kind.body(PHONE.into()).unwrap())).await;
    told.expect_problem(415, "unsupported-media-type");
    assert_eq!(ask(&router, keyed(post(START, PHONE))).await.status, 202);
    let again = ask(&router, keyed(post(START, PHONE))).await;
    assert_eq!(
        (again.status, again.headers["idempotent-replayed"].as_bytes()),
        (202, &b"true"[..])
    );

    // A rule may change, and the guard opens again by itself.
    let premium = r#"{"phone":"+19005551234"}"#;
    let second = |request| with(request, "idempotency-key", "k-2");
    for _ in 0..2 {
        let told = ask(&router, second(post(START, premium))).await;
        told.expect_problem(403, "number-type-not-allowed");
        assert!(!told.headers.contains_key("idempotent-replayed"));
    }

    let third = |request| with(request, "idempotency-key", "k-3");
    ask(&router, third(post(START, "{}"))).await.expect_problem(422, "invalid");
    let again = ask(&router, third(post(START, "{}"))).await;
    again.expect_problem(422, "invalid");
    assert_eq!(again.headers["idempotent-replayed"], "true");
}

/// Limited, then full, then a panic, then accepting.
#[derive(Default)]
struct Rounds(std::sync::atomic::AtomicU32);

impl Outbox for Rounds {
    async fn enqueue(&self, _: NewSend) -> Result<Enqueued, EnqueueError> {
        match self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => Ok(Enqueued::Limited(vec![violation("phone", 5, 3_600, 1)])),
            1 => Err(EnqueueError::Full),
            2 => panic!("on purpose"),
            _ => Ok(Enqueued::Accepted { at: now() }),
        }
    }
}

#[tokio::test]
async fn a_key_that_is_none_is_refused_and_get_and_cancel_heed_none() {
    let mut verifications = MockVerifications::new();
    verifications.expect_history().returning(|_| Ok(Some(history(pending()))));
    let router = Parts { verifications, ..parts() }.router();

    let told = ask(&router, with(post(START, PHONE), "idempotency-key", "a b")).await;
    let extra = told.expect_problem(422, "invalid");
    assert_eq!(extra["errors"][0]["header"], "idempotency-key");
    assert!(extra["errors"][0].get("pointer").is_none());

    let told = ask(&router, with(get(&at("")), "idempotency-key", "a b")).await;
    assert_eq!(told.status, 200);
}

#[tokio::test]
async fn what_is_known_of_a_key_cannot_be_told_without_the_database() {
    let mut answers = MockAnswers::new();
    answers.expect_begin().returning(|_, _| Err(StoreError::Full));
    let router = Parts { answers, ..parts() }.router();

    let told = ask(&router, keyed(post(START, PHONE))).await;

    told.expect_problem(503, "temporary-reduced-capacity");
}

/// An outbox that takes a send when it is told to.
struct Gate {
    entered: mpsc::UnboundedSender<()>,
    open: Arc<Notify>,
}

impl Outbox for Gate {
    async fn enqueue(&self, _: NewSend) -> Result<Enqueued, EnqueueError> {
        self.entered.send(()).unwrap();
        self.open.notified().await;
        Ok(Enqueued::Accepted { at: now() })
    }
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing_half_done() {
    let (sender, mut entered) = mpsc::unbounded_channel();
    let open = Arc::new(Notify::new());
    let gate = Gate { entered: sender, open: Arc::clone(&open) };
    let book = Book::default();
    let router = parts().with_outbox(gate).with_answers(book.clone()).router();

    let leaving = ask(&router, keyed(post(START, PHONE)));
    tokio::select! {
        told = leaving => panic!("{told:?}"),
        entered = entered.recv() => entered.unwrap(),
    }
    let told = ask(&router, keyed(post(START, PHONE))).await;
    assert!(told.expect_problem(409, "idempotency-running").is_empty());
    assert_eq!(told.headers["retry-after"], "1");
    open.notify_one();

    let kept = || book.entries.lock().unwrap().values().any(|entry| entry.answer.is_some());
    tokio::time::timeout(Duration::from_secs(20), async {
        while !kept() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let told = ask(&router, keyed(post(START, PHONE))).await;
    assert_eq!((told.status, told.headers["idempotent-replayed"].as_bytes()), (202, &b"true"[..]));
}

#[tokio::test]
async fn it_stands_beside_api() {
    let (outbox, stored) = accepting();
    let vault = Vault::of(Keys { peppers: Some(peppers()), payload: None });
    let settings = application::SubmitSettings {
        code_length: 6.try_into().unwrap(),
        code_ttl: Duration::from_secs(600),
        rules: application::SendRules::NONE,
    };
    let submit = application::SubmitMessage::new(
        outbox,
        || SystemTime::UNIX_EPOCH,
        StdRng::seed_from_u64(1),
        vault,
        Arc::new(Guard::new(Vec::new(), Duration::from_secs(3_600))),
        settings,
    );
    let keys = Arc::new(Authorize::new(MockApiKeys::new()));
    let metrics = ApiMetrics::register(&Registry::new()).unwrap();
    let api = crate::router(Arc::new(submit), keys, metrics, crate::ApiSettings::default());
    let router = api.merge(parts().router());

    assert_eq!(ask(&router, post("/api", r#"{"phone":"89999999999"}"#)).await.status, 200);
    ask(&router, get("/v1/x")).await.expect_problem(404, "not-found");
    ask(&router, get("/x")).await.expect(404, &json!({"error": "not found"}));
    assert_eq!(stored.lock().unwrap().len(), 1);

    let document = ask(&router, get("/openapi.json")).await.json();
    for (path, described) in document["paths"].as_object().unwrap() {
        for method in described.as_object().unwrap().keys() {
            let request = Request::builder().method(&*method.to_ascii_uppercase());
            let request = request.uri(path.replace("{id}", "none")).body(Body::empty()).unwrap();
            let told = ask(&router, request).await;
            let there = told.status != 405 && (told.status != 404 || path.contains("{id}"));
            assert!(there, "{method} {path}: {}", told.text);
        }
    }
}

#[tokio::test]
async fn openapi_is_3_1_and_complete() {
    let (outbox, _) = accepting();
    let router = parts().with_outbox(outbox).router();

    let told = ask(&router, get("/openapi.json")).await;

    assert_eq!((told.status, &told.headers[CONTENT_TYPE]), (200, &JSON));
    let document = told.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    for operation in Operation::ALL {
        let method = operation.method().as_str().to_ascii_lowercase();
        let described = &document["paths"][operation.route()][&method];
        assert!(described["operationId"].is_string(), "{operation:?}");
        let responses = described["responses"].as_object().unwrap();
        assert!(responses.contains_key(operation.success().as_str()), "{operation:?}");
        for (status, codes) in problems_of(operation) {
            let content = &responses[*status]["content"]["application/problem+json"];
            assert_eq!(content["schema"], json!({"$ref": "#/components/schemas/Problem"}));
            for code in *codes {
                let example = &content["examples"][code]["value"];
                assert_eq!(example["code"], *code, "{operation:?} {status}");
                assert_eq!(example["status"].to_string(), *status, "{operation:?} {code}");
            }
        }
    }
    let links = &document["paths"][START]["post"]["responses"]["202"]["links"];
    for (name, operation) in [("getVerification", Operation::Find), ("checkCode", Operation::Check)]
    {
        assert_eq!(links[name]["operationId"], name);
        assert_eq!(links[name]["parameters"]["id"], "$response.body#/id");
        let method = operation.method().as_str().to_ascii_lowercase();
        assert_eq!(document["paths"][operation.route()][&method]["operationId"], name);
    }
    let start = &document["components"]["schemas"]["Start"];
    assert_eq!(start["required"], json!(["phone"]));
    let properties = &start["properties"];
    assert_eq!(
        (&properties["ttl"]["minimum"], &properties["ttl"]["maximum"]),
        (&json!(60), &json!(3600))
    );
    for (name, has) in [("template", "default, login"), ("limits", "device")] {
        let described = properties[name]["description"].as_str().unwrap();
        assert!(described.contains(&format!("This server has: {has}.")), "{described}");
    }
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        assert!(schema.is_object(), "{name}");
    }
    assert_refs(&document, &document);
}

/// What generators make no sound clients of: ADR 47.
#[tokio::test]
async fn clients_that_are_generated_from_the_description_outlive_it() {
    const NOT_ANYWHERE: [&str; 7] =
        ["default", "oneOf", "anyOf", "allOf", "not", "const", "discriminator"];
    const NOT_IN_ANSWERS: [&str; 6] =
        ["enum", "pattern", "maximum", "maxLength", "maxItems", "additionalProperties"];

    let document = ask(&parts().router(), get("/openapi.json")).await.json();
    let schemas = &document["components"]["schemas"];
    each_schema(&document["paths"], &mut |schema| lacks(schema, &NOT_ANYWHERE));
    each_schema(schemas, &mut |schema| lacks(schema, &NOT_ANYWHERE));
    for name in
        ["Verification", "VerificationEvent", "Checked", "CheckedByPhone", "Problem", "Fault"]
    {
        let mut schema = schemas[name].clone();
        assert!(schema["properties"].is_object(), "{name}");
        if let Some(metadata) = schema["properties"].get_mut("metadata") {
            // A map has nothing but members of one type.
            metadata.as_object_mut().unwrap().remove("additionalProperties");
        }
        each_schema(&schema, &mut |schema| lacks(schema, &NOT_IN_ANSWERS));
    }
    let required = |name: &str| schemas[name]["required"].clone();
    assert_eq!(required("Checked"), json!(["valid", "status"]));
    assert_eq!(required("CheckedByPhone"), json!(["valid"]));
    assert_eq!(schemas["Checked"]["properties"]["valid"]["type"], "boolean");
    assert_eq!(schemas["Checked"]["properties"]["attempts_left"]["type"], "integer");
}

#[track_caller]
fn lacks(schema: &Map<String, Value>, banned: &[&str]) {
    for word in banned {
        assert!(!schema.contains_key(*word), "{word} in {schema:?}");
    }
}

/// Calls for each object that is no map of names to schemas, and no example.
fn each_schema(part: &Value, act: &mut impl FnMut(&Map<String, Value>)) {
    match part {
        Value::Object(members) => {
            act(members);
            for (name, part) in members {
                match (name.as_str(), part) {
                    ("example" | "examples", _) => {}
                    ("properties", Value::Object(properties)) => {
                        properties.values().for_each(|part| each_schema(part, act));
                    }
                    _ => each_schema(part, act),
                }
            }
        }
        Value::Array(parts) => parts.iter().for_each(|part| each_schema(part, act)),
        _ => {}
    }
}

/// Only what it says to people depends on the settings: a client is generated once, and used with
/// servers that are set up otherwise.
#[tokio::test]
async fn the_description_is_the_same_whatever_the_settings() {
    let document = async |change: fn(&mut V1Settings)| {
        let mut parts = parts();
        change(&mut parts.settings);
        let mut document = ask(&parts.router(), get("/openapi.json")).await.json();
        without(&mut document, "description");
        without(&mut document, "security");
        document
    };

    let usual = document(|_| {}).await;
    let other = document(|settings| {
        settings.auth = ApiAuth::All;
        settings.ttl = Duration::from_secs(7_200);
        settings.code_length = CodeLength::try_from(8).unwrap();
        settings.pacing = "1,2,3,4,5,6".parse().unwrap();
        settings.limits.custom.clear();
        settings.templates = Arc::new(Templates::new("{code} is it".parse().unwrap()));
    })
    .await;

    assert_eq!(usual, other);
}

fn without(part: &mut Value, name: &str) {
    match part {
        Value::Object(members) => {
            members.remove(name);
            members.values_mut().for_each(|part| without(part, name));
        }
        Value::Array(parts) => parts.iter_mut().for_each(|part| without(part, name)),
        _ => {}
    }
}

/// By status, those that the design names for an operation.
fn problems_of(operation: Operation) -> &'static [(&'static str, &'static [&'static str])] {
    match operation {
        Operation::Start => &[
            ("400", &["malformed-body"]),
            ("401", &["unauthorized"]),
            (
                "403",
                &[
                    "forbidden",
                    "region-not-allowed",
                    "number-type-not-allowed",
                    "abnormal-usage-detected",
                ],
            ),
            ("405", &["method-not-allowed"]),
            ("408", &["request-timeout"]),
            ("409", &["idempotency-running"]),
            ("413", &["too-large"]),
            ("415", &["unsupported-media-type"]),
            ("422", &["invalid", "idempotency-mismatch"]),
            ("429", &["quota-exceeded"]),
            ("500", &["internal"]),
            ("503", &["temporary-reduced-capacity"]),
        ],
        Operation::Find => &[
            ("401", &["unauthorized"]),
            ("403", &["forbidden"]),
            ("404", &["not-found"]),
            ("405", &["method-not-allowed"]),
            ("500", &["internal"]),
            ("503", &["temporary-reduced-capacity"]),
        ],
        Operation::Check => &[
            ("404", &["not-found"]),
            ("409", &["already-approved", "idempotency-running"]),
            ("410", &["gone"]),
            ("422", &["invalid", "idempotency-mismatch"]),
            ("429", &["quota-exceeded"]),
        ],
        Operation::CheckByPhone => &[
            ("409", &["idempotency-running"]),
            ("422", &["invalid", "idempotency-mismatch"]),
            ("429", &["quota-exceeded"]),
        ],
        Operation::Resend => &[
            ("403", &["forbidden", "abnormal-usage-detected"]),
            ("404", &["not-found"]),
            ("409", &["already-approved", "idempotency-running"]),
            ("410", &["gone"]),
            ("429", &["quota-exceeded"]),
        ],
        Operation::Cancel => {
            &[("404", &["not-found"]), ("409", &["already-approved"]), ("410", &["gone"])]
        }
        Operation::Receipt => {
            &[("404", &["not-found"]), ("415", &["unsupported-media-type"]), ("422", &["invalid"])]
        }
    }
}

/// Every reference leads somewhere.
#[track_caller]
fn assert_refs(document: &Value, part: &Value) {
    match part {
        Value::Object(members) => {
            if let Some(Value::String(reference)) = members.get("$ref") {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference}");
            }
            members.values().for_each(|part| assert_refs(document, part));
        }
        Value::Array(parts) => parts.iter().for_each(|part| assert_refs(document, part)),
        _ => {}
    }
}

#[tokio::test]
async fn the_description_tells_who_needs_a_key() {
    let security = async |auth| {
        let mut parts = parts();
        parts.settings.auth = auth;
        let document = ask(&parts.router(), get("/openapi.json")).await.json();
        let of = |path: &str| {
            let ways = document["paths"][path]["post"]["security"].as_array().unwrap().clone();
            // A client can send one in any case.
            assert_eq!(ways.last(), Some(&json!({"bearer": []})));
            !ways.contains(&json!({}))
        };
        (of(START), of("/api"))
    };

    assert_eq!(security(ApiAuth::None).await, (false, false));
    assert_eq!(security(ApiAuth::V1).await, (true, false));
    assert_eq!(security(ApiAuth::All).await, (true, true));
}
