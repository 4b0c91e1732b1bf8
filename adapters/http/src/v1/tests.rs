use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
    time::{Duration, SystemTime},
};

use application::{
    AnswerOnce, Authorize, CancelVerification, CheckCode, CodeSender, FindVerification, Guard,
    Keys, NoteReceipt, ResendVerification, SendRules, SendSettings, StartVerification, TraceParent,
    Vault,
    ports::{
        Answer, AnswerClaim, Answers, ApiKey, Approval, Attempt, Begun, CheckOutcome, Enqueued,
        Event, EventKind, EventReason, History, MockAnswers, MockApiKeys, MockOutbox,
        MockVerifications, NewSend, Newest, Noted, Outbox, Receipt, Rerouting, Resent, StoreError,
        Verification, Violation,
    },
};
use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, header::ALLOW},
};
use domain::{
    ApiKeyText, Channel, CodeLength, KeyId, Metadata, Origin, Pacing, Peppers, Policy, Scope, Seed,
    SendLimits, SmsTemplate, Templates, VerificationId, VerificationStatus, Window,
};
use http_body_util::BodyExt;
use prometheus::{Registry, TextEncoder};
use rand::{SeedableRng, rngs::StdRng};
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, mpsc};
use tower::ServiceExt;

use super::*;
use crate::auth::ApiAuth;

mod any_request;
mod auth;
mod check;
mod contract;
mod gateway_receipts;
mod idempotency;
mod limits;
mod openapi;
mod receipt;
mod request;
mod start;
mod verification;

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
    budgets: Option<application::Budgets>,
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
        budgets: None,
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
        let Self { verifications, answers, keys, rules, numbers, budgets, settings, .. } = self;
        Parts { outbox, verifications, answers, keys, rules, numbers, budgets, settings }
    }

    fn with_answers<B>(self, answers: B) -> Parts<O, B> {
        let Self { outbox, verifications, keys, rules, numbers, budgets, settings, .. } = self;
        Parts { outbox, verifications, answers, keys, rules, numbers, budgets, settings }
    }

    fn router(self) -> Router {
        self.counted().0
    }

    fn counted(self) -> (Router, Registry) {
        let vault = Vault::of(Keys { peppers: Some(peppers()), payload: None });
        let guard = Arc::new(Guard::new(self.rules, Duration::from_secs(3_600)));
        let verifications = Arc::new(self.verifications);
        let limits = self.settings.limits.clone();
        let (numbers, budgets) = (self.numbers, self.budgets);
        let rules = SendRules { limits: limits.clone(), numbers, budgets, ..SendRules::NONE };
        let sender = Arc::new(CodeSender::new(
            Arc::clone(&verifications),
            || SystemTime::UNIX_EPOCH,
            StdRng::seed_from_u64(1),
            vault.clone(),
            Arc::clone(&guard),
            SendSettings { rules, ..SendSettings::default() },
        ));
        let v1 = V1 {
            start: StartVerification::new(self.outbox, Arc::clone(&sender)),
            resend: ResendVerification::new(sender),
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
        extra_sends: 0,
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
    let created = Event::new(EventKind::Created, verification.created_at);
    let gateway = Some("main".parse().unwrap());
    let channel = Some(Channel::Telegram);
    let sent = Event { gateway, channel, ..Event::new(EventKind::Sent, after(1)) };
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
struct Answered {
    status: u16,
    headers: HeaderMap,
    text: String,
}

async fn ask(router: &Router, request: Request) -> Answered {
    let path = request.uri().path().to_owned();
    let (head, body) = router.clone().oneshot(request).await.unwrap().into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    if path.starts_with("/v1") {
        assert_eq!(head.headers["cache-control"], "no-store");
    }
    Answered { status: head.status.as_u16(), headers: head.headers, text }
}

impl Answered {
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
fn trying(tried: impl Fn() -> CheckOutcome + Send + 'static) -> MockVerifications {
    checking(move |_| tried())
}

fn newest() -> Newest {
    Newest { v1: ID.parse().ok(), api: None }
}

fn checking(check: impl Fn(&Attempt) -> CheckOutcome + Send + 'static) -> MockVerifications {
    let mut verifications = MockVerifications::new();
    verifications.expect_newest().returning(|_| Ok(newest()));
    verifications.expect_check().returning(move |attempt, _| Ok(check(&attempt)));
    verifications
}

fn wrong(attempts: u8) -> CheckOutcome {
    CheckOutcome::Wrong { attempts, pepper: peppers().first().id().clone() }
}

/// As of [`CODE`] at the `attempts`-th try.
fn compared(attempt: &Attempt, attempts: u8) -> CheckOutcome {
    let hash = peppers().first().hash(ID.parse().unwrap(), &CODE.parse().unwrap());
    if attempt.hashes.iter().any(|(_, tried)| tried.as_bytes() == hash.as_bytes()) {
        let Verification { id, origin, phone, region, .. } = pending();
        CheckOutcome::Right(Approval { id, origin, phone, region })
    } else {
        wrong(attempts)
    }
}

fn violation(name: &str, quota: u32, period: u64, retry_after: u64) -> Violation {
    let window = Window { quota, period: Duration::from_secs(period) };
    let retry_after = Duration::from_secs(retry_after);
    Violation { policy: Policy::new(name, window), retry_after }
}
