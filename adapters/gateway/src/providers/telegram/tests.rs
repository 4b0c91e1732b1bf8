use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use application::ports::{Sms, SmsGateway};

use super::*;
use crate::{
    http_gateway::HttpGateway,
    signing::hex,
    testing::{
        AMPLE, CODE, Fake, Notes, PHONE, Received, Reply, SHORT, answer, check_unexplained,
        class_of, gateway, http_gateway as gateway_within, judge, made, message_id, problems,
        receipts, routed, sms, status_of, written,
    },
};

const NOW: u64 = 1_700_000_000;
const URL: &str = "https://messager.example/v1/receipts/main?token=t";

fn table() -> Value {
    json!({"access_token": "AAEtoken"})
}

fn telegram() -> Box<dyn Provider> {
    made(&SPEC, &table())
}

fn outgoing<T>(sms: &Sms, read: impl FnOnce(&Outgoing<'_>) -> T) -> T {
    let id = sms.message.id.to_string();
    read(&Outgoing { reserved: Some("r1"), ..Outgoing::new(sms, &id) })
}

/// Returns the body of the request that sends an SMS.
fn body_of(provider: &dyn Provider, sms: &Sms) -> Value {
    let request = outgoing(sms, |it| provider.prepare(it)).unwrap();
    serde_json::from_slice(request.body()).unwrap()
}

#[test]
fn number_is_checked_before_the_code_is_sent() {
    let (provider, sms) = (telegram(), sms());
    let check = outgoing(&sms, |it| provider.reserve(it)).unwrap().unwrap();
    let send = outgoing(&sms, |it| provider.prepare(it)).unwrap();

    assert_eq!(
        written(&check),
        "POST https://gatewayapi.telegram.org/checkSendAbility\n\
         Bearer AAEtoken\n\
         application/json\n\
         {\"phone_number\":\"+79991234567\"}"
    );
    assert_eq!(
        written(&send),
        format!(
            "POST https://gatewayapi.telegram.org/sendVerificationMessage\n\
             Bearer AAEtoken\n\
             application/json\n\
             {{\"phone_number\":\"+{PHONE}\",\"request_id\":\"r1\",\"code\":\"{CODE}\",\
             \"callback_url\":\"{URL}\",\"payload\":\"{}\",\"ttl\":300}}",
            message_id()
        )
    );
    assert!(provider.deduplicates());
    assert_eq!(provider.channel(), Channel::Telegram);
}

#[test]
fn sender_is_the_own_channel_and_not_that_of_the_route() {
    let own = made(&SPEC, &json!({"access_token": "t", "sender_username": "shop"}));

    assert_eq!(body_of(&*own, &routed("SHOP", &[]))["sender_username"], "shop");
    assert_eq!(body_of(&*telegram(), &routed("SHOP", &[]))["sender_username"], Value::Null);
}

#[test]
fn callback_is_given_if_telegram_takes_it() {
    let provider = telegram();
    let callback = |url: Option<String>| {
        body_of(&*provider, &Sms { callback: url, ..sms() })["callback_url"].clone()
    };
    let long = |length: usize| {
        let url = format!("https://messager.example/v1/receipts/main?token={}", "t".repeat(length));
        (url.clone(), callback(Some(format!("{url}&id=1"))))
    };

    assert_eq!(callback(None), Value::Null);
    assert_eq!(callback(Some("http://messager.example/r?token=t".to_owned())), Value::Null);
    let free = MAX_CALLBACK - long(0).0.len();
    assert_eq!(long(free).1, long(free).0);
    assert_eq!(long(free + 1).1, Value::Null);
}

#[test]
fn life_of_the_message_is_that_of_the_code_within_limits() {
    for (seconds, ttl) in [(0, 30), (29, 30), (31, 31), (3_600, 3_600), (3_601, 3_600)] {
        let sms = Sms { good_for: Duration::from_secs(seconds), ..sms() };
        assert_eq!(body_of(&*telegram(), &sms)["ttl"], ttl);
    }
}

#[test]
fn code_of_more_than_eight_digits_is_not_for_telegram() {
    let reserve = |code: &str| {
        let sms = Sms { code: code.parse().unwrap(), ..sms() };
        outgoing(&sms, |it| telegram().reserve(it)).unwrap().map(|_| ())
    };

    assert_eq!((reserve("1234"), reserve("12345678")), (Ok(()), Ok(())));
    let error = reserve("123456789").unwrap_err();
    assert_eq!(error.to_string(), "unroutable: not called: the code has more than 8 digits");
}

#[test]
fn token_is_required() {
    assert_eq!(problems(&SPEC, &json!({})), ["access_token is missing"]);
    let shown = format!("{:?}", telegram());
    assert!(!shown.contains("AAEtoken"), "{shown}");
}

fn taken(state: &str) -> String {
    json!({"ok": true, "result": {
        "request_id": "r1", "phone_number": format!("+{PHONE}"), "request_cost": 0,
        "delivery_status": {"status": state, "updated_at": NOW},
    }})
    .to_string()
}

fn refused(error: &str) -> String {
    json!({"ok": false, "error": error}).to_string()
}

#[test]
fn request_with_an_id_is_accepted() {
    assert_eq!(judge(&*telegram(), 200, &taken("sent")), Ok(accepted("r1")));
    for body in [r#"{"ok":true}"#, r#"{"ok":true,"result":{}}"#, r#"{"result":{"request_id":"r"}}"#]
    {
        assert_eq!(class_of(&*telegram(), 200, body), "ambiguous", "{body}");
    }
}

#[test]
fn each_error_has_its_outcome() {
    let provider = telegram();
    for (error, expected) in [
        ("PHONE_NUMBER_INVALID", "unroutable"),
        ("PHONE_NUMBER_NOT_FOUND", "unroutable"),
        ("PHONE_NUMBER_NOT_AVAILABLE", "unroutable"),
        ("PHONE_NUMBER_MISMATCH", "unroutable"),
        ("CODE_INVALID", "unroutable"),
        ("TTL_INVALID", "unroutable"),
        ("PAYLOAD_INVALID", "unroutable"),
        ("REQUEST_ID_INVALID", "unroutable"),
        ("SOMETHING_NEW", "unroutable"),
        ("ACCESS_TOKEN_INVALID", "misconfigured"),
        ("ACCESS_TOKEN_REQUIRED", "misconfigured"),
        ("BALANCE_NOT_ENOUGH", "misconfigured"),
        ("SENDER_USERNAME_INVALID", "misconfigured"),
        ("SENDER_NOT_VERIFIED", "misconfigured"),
        ("SENDER_NOT_OWNED", "misconfigured"),
        ("CALLBACK_URL_INVALID", "misconfigured"),
        ("UNKNOWN_METHOD", "misconfigured"),
        ("FLOOD_WAIT_7", "throttled"),
    ] {
        for status in [200, 400, 404] {
            assert_eq!(class_of(&*provider, status, &refused(error)), expected, "{error}");
        }
    }
    for (status, expected) in [(401, "misconfigured"), (500, "ambiguous"), (503, "unavailable")] {
        assert_eq!(class_of(&*provider, status, &refused("SOMETHING_NEW")), expected, "{status}");
    }
    let error = judge(&*provider, 200, &refused("PHONE_NUMBER_INVALID")).unwrap_err();
    assert_eq!(error.to_string(), "unroutable: status 200, code PHONE_NUMBER_INVALID");
}

#[test]
fn flood_wait_names_the_pause() {
    for (error, expected) in [
        ("FLOOD_WAIT_7", Some(7)),
        ("FLOOD_WAIT_99999999999", Some(86_400)),
        ("FLOOD_WAIT_soon", None),
        ("FLOOD_WAIT", None),
    ] {
        let Err(SendError::Throttled { retry_after, .. }) =
            judge(&*telegram(), 200, &refused(error))
        else {
            panic!("{error}")
        };
        assert_eq!(retry_after, expected.map(Duration::from_secs), "{error}");
    }
}

#[test]
fn unexplained_answer_is_judged_by_its_status() {
    check_unexplained(&*telegram());
}

#[test]
fn repeated_request_was_taken_if_telegram_says_so_and_is_in_doubt_otherwise() {
    let class = |is_earlier: bool, body: &str| {
        let reservation = Reservation { id: "r1".to_owned(), is_earlier };
        let headers = http::HeaderMap::new();
        let outcome = telegram().judge_reserved(&answer(200, &headers, body), &reservation);
        outcome.map_or_else(
            |error| error.class().as_str(),
            |it| {
                assert_eq!(it, accepted("r1"));
                "accepted"
            },
        )
    };
    for (body, first, repeated) in [
        (taken("sent"), "accepted", "accepted"),
        (refused("MESSAGE_ALREADY_SENT"), "accepted", "accepted"),
        (refused("REQUEST_ID_INVALID"), "unroutable", "ambiguous"),
        (refused("SOMETHING_NEW"), "unroutable", "ambiguous"),
        (refused("PHONE_NUMBER_NOT_AVAILABLE"), "unroutable", "unroutable"),
        (refused("FLOOD_WAIT_7"), "throttled", "throttled"),
        (refused("ACCESS_TOKEN_INVALID"), "misconfigured", "misconfigured"),
        (String::new(), "ambiguous", "ambiguous"),
    ] {
        assert_eq!((class(false, &body), class(true, &body)), (first, repeated), "{body}");
    }
}

#[test]
fn state_is_asked_for_by_the_id_of_the_request() {
    let provider = telegram();

    assert_eq!(
        written(&provider.status_request("r1").unwrap()),
        "POST https://gatewayapi.telegram.org/checkVerificationStatus\n\
         Bearer AAEtoken\n\
         application/json\n\
         {\"request_id\":\"r1\"}"
    );
    for (state, expected) in [
        ("sent", None),
        ("delivered", Some(Receipt::Delivered)),
        ("read", Some(Receipt::Delivered)),
        ("expired", Some(Receipt::Undelivered)),
        ("revoked", Some(Receipt::Undelivered)),
        ("new", None),
    ] {
        assert_eq!(status_of(&*provider, 200, &taken(state)), expected, "{state}");
    }
    assert_eq!(status_of(&*provider, 200, &refused("REQUEST_ID_INVALID")), None);
}

fn report(state: &str, payload: &Value) -> String {
    json!({"request_id": "r1", "phone_number": format!("+{PHONE}"), "request_cost": 0.01,
        "delivery_status": {"status": state, "updated_at": NOW}, "payload": payload})
    .to_string()
}

fn signature(seconds: u64, body: &str) -> String {
    let key = digest::digest(&digest::SHA256, b"AAEtoken");
    let signed = format!("{seconds}\n{body}");
    hex(crate::signing::hmac(HMAC_SHA256, key.as_ref(), &[signed.as_bytes()]).as_ref())
}

/// Returns the receipts of a report that is signed at this time.
fn read_at(seconds: u64, body: &str) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
    let (signature, timestamp) = (signature(seconds, body), seconds.to_string());
    let headers = [("x-request-signature", &*signature), ("x-request-timestamp", &*timestamp)];
    receipts(&*telegram(), "POST", URL, &headers, body)
}

#[test]
fn final_state_is_a_receipt_of_the_message_in_the_payload() {
    let read =
        |state: &str| read_at(NOW, &report(state, &message_id().to_string().into())).unwrap().pop();
    let of = |receipt| Some(GatewayReceipt { of: Reported::Message(message_id()), receipt });

    assert_eq!((read("sent"), read("new")), (None, None));
    assert_eq!((read("delivered"), read("read")), (of(Receipt::Delivered), of(Receipt::Delivered)));
    assert_eq!(read("expired"), of(Receipt::Undelivered));
    assert_eq!(read("revoked"), of(Receipt::Undelivered));
}

#[test]
fn report_without_our_payload_names_the_request() {
    for payload in [Value::Null, json!("of another service")] {
        let read = read_at(NOW, &report("delivered", &payload)).unwrap();
        assert_eq!(read[0].of, Reported::Reference("r1".to_owned()));
    }
    for body in ["{}", "[]", "<>", r#"{"delivery_status":{"status":"delivered"}}"#] {
        assert_eq!(read_at(NOW, body), Err(ReceiptRefused::Unreadable), "{body}");
    }
}

/// The signatures were made with the HMAC of Python's standard library.
#[test]
fn report_must_have_the_signature_of_its_bytes() {
    const BODY: &str = r#"{"request_id":"r1","phone_number":"+79991234567","request_cost":0.01,"delivery_status":{"status":"delivered","updated_at":1700000000},"payload":"m1"}"#;
    const SIGNATURE: &str = "177fcdfc7d585662b7414baf59c29b159d2b4a690e132bad116b2ccc9384bb9f";
    const OLD: &str = "b6d16bfd7bb0a2b43ce2599efee3cb445932f6531fb433ffa84fd99e746b14ae";
    let read = |signature: &str, timestamp: &str, body: &str| {
        let headers = [("X-Request-Signature", signature), ("X-Request-Timestamp", timestamp)];
        receipts(&*telegram(), "POST", URL, &headers, body).map(|read| read.len())
    };

    assert_eq!(read(SIGNATURE, "1700000000", BODY), Ok(1));
    assert_eq!(read(&SIGNATURE.to_uppercase(), "1700000000", BODY), Ok(1));
    let bad = Err(ReceiptRefused::BadSignature);
    assert_eq!(read(SIGNATURE, "1700000001", BODY), bad);
    assert_eq!(read(OLD, "1699999600", BODY), bad, "it is too old");
    assert_eq!(read(SIGNATURE, "1700000000", &BODY.replace("r1", "r2")), bad);
    assert_eq!(read(&SIGNATURE[..62], "1700000000", BODY), bad);
    assert_eq!(read("sesame", "1700000000", BODY), bad);
    let unsigned = receipts(&*telegram(), "POST", URL, &[], BODY);
    assert_eq!(unsigned, Err(ReceiptRefused::Unsigned));
    assert!(telegram().verifies_receipts());
    assert_eq!(telegram().receipt_reply().body, "ok", "Telegram wants a 200");
}

#[test]
fn signature_is_good_for_five_minutes() {
    let body = report("delivered", &message_id().to_string().into());

    assert!(read_at(NOW - 300, &body).is_ok() && read_at(NOW + 300, &body).is_ok());
    assert!(read_at(NOW - 301, &body).is_err() && read_at(NOW + 301, &body).is_err());
}

/// What Telegram knows: the requests, and whether each was used to send.
#[derive(Debug, Default)]
struct Book(Mutex<HashMap<String, bool>>);

impl Book {
    /// Answers as Telegram does, and refuses whatever the documents do not allow.
    fn answer(&self, request: &Received) -> Reply {
        let error = |error: &str| Reply::json(200, &json!({"ok": false, "error": error}));
        if request.header("authorization") != "Bearer AAEtoken" {
            return error("ACCESS_TOKEN_INVALID");
        }
        if request.method != "POST" || request.header("content-type") != "application/json" {
            return error("UNKNOWN_METHOD");
        }
        let body = request.json();
        let number = body["phone_number"].as_str().unwrap_or_default();
        if !number.starts_with('+') {
            return error("PHONE_NUMBER_INVALID");
        }
        let mut requests = self.0.lock().unwrap();
        match &*request.path {
            "/checkSendAbility" if only(&body, &["phone_number"]) && number.ends_with("00") => {
                error("PHONE_NUMBER_NOT_FOUND")
            }
            "/checkSendAbility" if only(&body, &["phone_number"]) => {
                let id = format!("r{}", requests.len() + 1);
                requests.insert(id.clone(), false);
                Reply::json(
                    200,
                    &json!({"ok": true, "result": {
                        "request_id": id, "phone_number": number, "request_cost": 0.01,
                        "remaining_balance": 1.5,
                    }}),
                )
            }
            "/sendVerificationMessage" => match refusal_of(&body) {
                Some(refusal) => error(refusal),
                None => match requests.get_mut(body["request_id"].as_str().unwrap_or_default()) {
                    None => error("REQUEST_ID_INVALID"),
                    Some(true) => error("MESSAGE_ALREADY_SENT"),
                    Some(sent) => {
                        *sent = true;
                        let id = &body["request_id"];
                        Reply::json(
                            200,
                            &json!({"ok": true, "result": {
                                "request_id": id, "phone_number": number, "request_cost": 0,
                                "delivery_status": {"status": "sent", "updated_at": NOW},
                                "payload": body["payload"],
                            }}),
                        )
                    }
                },
            },
            _ => error("UNKNOWN_METHOD"),
        }
    }

    /// Returns the ids of the requests, with the letter `s` behind those that were sent.
    fn requests(&self) -> Vec<String> {
        let requests = self.0.lock().unwrap();
        let shown = |(id, sent): (&String, &bool)| format!("{id}{}", if *sent { "s" } else { "" });
        let mut all: Vec<String> = requests.iter().map(shown).collect();
        all.sort_unstable();
        all
    }
}

fn only(body: &Value, known: &[&str]) -> bool {
    body.as_object().is_some_and(|body| body.keys().all(|key| known.contains(&&**key)))
}

fn refusal_of(body: &Value) -> Option<&'static str> {
    const KNOWN: [&str; 7] =
        ["phone_number", "request_id", "sender_username", "code", "callback_url", "payload", "ttl"];
    let text = |name: &str| body[name].as_str().unwrap_or_default();
    let is_code = |code: &str| {
        (4..=8).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_digit())
    };
    if !only(body, &KNOWN) {
        return Some("UNKNOWN_METHOD");
    }
    if !is_code(text("code")) {
        return Some("CODE_INVALID");
    }
    if !body["ttl"].as_u64().is_some_and(|ttl| (30..=3_600).contains(&ttl)) {
        return Some("TTL_INVALID");
    }
    if text("payload").len() > 128 {
        return Some("PAYLOAD_INVALID");
    }
    let callback = text("callback_url");
    let is_url = callback.is_empty() || callback.starts_with("https://") && callback.len() <= 256;
    (!is_url).then_some("CALLBACK_URL_INVALID")
}

struct Service {
    book: Arc<Book>,
    fake: Fake,
    notes: Arc<Notes>,
}

impl Service {
    async fn start(notes: Notes) -> Self {
        Self::answering(notes, Book::answer).await
    }

    async fn answering(
        notes: Notes,
        rule: impl Fn(&Book, &Received) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let book = Arc::new(Book::default());
        let known = Arc::clone(&book);
        let fake = Fake::strict(move |request| rule(&known, request)).await;
        Self { book, fake, notes: Arc::new(notes) }
    }

    fn table(&self) -> Value {
        json!({"access_token": "AAEtoken", "sender_username": "shop", "url": self.fake.url()})
    }

    /// A gateway as each process has one.
    fn gateway(&self) -> HttpGateway {
        self.noting(gateway(&SPEC, &self.table()))
    }

    fn noting(&self, gateway: HttpGateway) -> HttpGateway {
        gateway.keep_notes("main".parse().unwrap(), Arc::<Notes>::clone(&self.notes));
        gateway
    }

    /// The paths that were called.
    fn called(&self) -> Vec<String> {
        self.fake.received().into_iter().map(|request| request.path).collect()
    }
}

const CHECK: &str = "/checkSendAbility";
const SEND: &str = "/sendVerificationMessage";

#[tokio::test]
async fn strict_telegram_accepts_the_requests_and_refuses_a_wrong_token() {
    let service = Service::start(Notes::default()).await;
    let mut table = service.table();
    table["access_token"] = "wrong".into();

    let good = service.gateway().send(&sms()).await;
    let wrong = gateway(&SPEC, &table).send(&sms()).await;

    assert_eq!(good, Ok(accepted("r1")));
    let detail = "status 200, code ACCESS_TOKEN_INVALID".to_owned();
    assert_eq!(wrong, Err(SendError::Misconfigured(detail)));
    assert_eq!(
        (service.called(), service.book.requests()),
        (vec![CHECK.to_owned(), SEND.to_owned(), CHECK.to_owned()], vec!["r1s".to_owned()],)
    );
}

#[tokio::test]
async fn number_that_is_not_on_telegram_is_sent_nothing() {
    let service = Service::start(Notes::default()).await;
    let mut sms = sms();
    sms.message.phone = "79991234500".parse().unwrap();

    let outcome = service.gateway().send(&sms).await;

    let detail = "status 200, code PHONE_NUMBER_NOT_FOUND".to_owned();
    assert_eq!(outcome, Err(SendError::Unroutable(detail)));
    assert_eq!(service.called(), [CHECK]);
}

#[tokio::test]
async fn repeated_call_of_another_process_sends_nothing_new() {
    let service = Service::start(Notes::default()).await;

    assert_eq!(service.gateway().send(&sms()).await, Ok(accepted("r1")));
    assert_eq!(service.gateway().send(&sms()).await, Ok(accepted("r1")));

    assert_eq!(service.called(), [CHECK, SEND, SEND]);
    assert_eq!(service.book.requests(), ["r1s"]);
}

#[tokio::test]
async fn call_without_an_answer_is_repeated_under_the_same_request() {
    let lost = Mutex::new(true);
    let service = Service::answering(Notes::default(), move |book, request| {
        let reply = book.answer(request);
        let is_lost = request.path == SEND && std::mem::take(&mut *lost.lock().unwrap());
        if is_lost { Reply::Close } else { reply }
    })
    .await;

    let first = service.gateway().send(&sms()).await;
    let second = service.gateway().send(&sms()).await;

    assert!(matches!(first, Err(SendError::Ambiguous(_))), "{first:?}");
    assert_eq!(second, Ok(accepted("r1")));
    assert_eq!(service.book.requests(), ["r1s"]);
}

#[tokio::test]
async fn call_that_another_process_overtook_uses_its_request() {
    let notes = Arc::new(Notes::default());
    let key = ("main".parse().unwrap(), message_id());
    let theirs = Arc::clone(&notes);
    let fake = Fake::strict(move |request| {
        if request.path == CHECK {
            // The other process stores its request while ours is on its way.
            theirs.kept.lock().unwrap().insert(key.clone(), "r9".to_owned());
            return Reply::json(200, &serde_json::from_str(&taken("sent")).unwrap());
        }
        assert_eq!(request.json()["request_id"], "r9");
        Reply::json(200, &json!({"ok": false, "error": "MESSAGE_ALREADY_SENT"}))
    })
    .await;
    let gateway = gateway(&SPEC, &json!({"access_token": "AAEtoken", "url": fake.url()}));
    gateway.keep_notes("main".parse().unwrap(), notes);

    assert_eq!(gateway.send(&sms()).await, Ok(accepted("r9")));
}

#[tokio::test]
async fn nothing_is_sent_without_a_stored_request() {
    let service = Service::start(Notes { is_away: true, ..Notes::default() }).await;

    let outcome = service.gateway().send(&sms()).await;

    let detail = "not called: the notes of the gateway are not available".to_owned();
    assert_eq!(outcome, Err(SendError::Unavailable { detail, retry_after: None }));
    assert_eq!(service.called(), [""; 0]);
}

#[tokio::test]
async fn check_without_an_answer_has_sent_nothing() {
    for (reply, expected) in [
        (Reply::Close, "unavailable: no answer came back"),
        (Reply::Hang, "unavailable: no answer in time"),
        (Reply::text(500, ""), "unavailable: status 500"),
        (Reply::text(200, ""), "unavailable: status 200"),
        (
            Reply::json(200, &json!({"ok": true, "result": {"request_id": "a\nb"}})),
            "unavailable: not called: the id of the provider cannot be stored",
        ),
    ] {
        let service = Service::answering(Notes::default(), move |_, _| reply.clone()).await;
        let limit = if expected.ends_with("in time") { SHORT } else { AMPLE };
        let gateway = service.noting(gateway_within(made(&SPEC, &service.table()), limit));

        let error = gateway.send(&sms()).await.unwrap_err();

        assert!(error.to_string().starts_with(expected), "{error}");
        assert_eq!(service.called(), [CHECK]);
    }
}

#[tokio::test]
async fn state_of_a_message_without_an_outcome_is_asked_for_by_its_request() {
    let service = Service::answering(Notes::default(), |book, request| {
        if request.path == "/checkVerificationStatus" {
            assert_eq!(request.json(), json!({"request_id": "r1"}));
            return Reply::json(200, &serde_json::from_str(&taken("read")).unwrap());
        }
        book.answer(request)
    })
    .await;
    let gateway = service.gateway();
    gateway.send(&sms()).await.unwrap();

    for reference in [message_id().to_string(), "r1".to_owned()] {
        assert_eq!(gateway.status(&reference).await, Some(Receipt::Delivered));
    }
}
