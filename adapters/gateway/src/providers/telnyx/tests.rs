use application::ports::{Sms, SmsGateway};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use super::*;
use crate::testing::{
    CODE, Fake, PHONE, Received, Reply, check_unexplained, class_of, cyrillic, gateway, judge,
    made, message_id, message_url, problems, receipts, request_of, routed, sms, status_of, written,
};

const NOW: u64 = 1_700_000_000;

fn table() -> Value {
    json!({"api_key": "KEY1", "from": "+15005550006"})
}

fn telnyx() -> Box<dyn Provider> {
    made(&SPEC, &table())
}

fn key_pair() -> Ed25519KeyPair {
    let seed: Vec<u8> = (0..32).collect();
    Ed25519KeyPair::from_seed_unchecked(&seed).unwrap()
}

fn signed_telnyx() -> Box<dyn Provider> {
    let mut table = table();
    table["public_key"] = STANDARD.encode(key_pair().public_key()).into();
    made(&SPEC, &table)
}

#[test]
fn request_has_an_idempotency_key() {
    let request = request_of(&*telnyx(), &sms());

    assert_eq!(
        written(&request),
        "POST https://api.telnyx.com/v2/messages\n\
         Bearer KEY1\n\
         application/json\n\
         {\"from\":\"+15005550006\",\"to\":\"+79991234567\",\"text\":\"Your code: 482915\",\
         \"webhook_url\":\"https://messager.example/v1/receipts/main?id=1&token=t\"}"
    );
    assert_eq!(request.headers()["idempotency-key"], message_id().to_string());
    assert!(telnyx().deduplicates());
}

#[test]
fn repeated_request_has_the_same_bytes() {
    let again = Sms { good_for: std::time::Duration::from_secs(240), ..sms() };
    let (first, second) = (request_of(&*telnyx(), &sms()), request_of(&*telnyx(), &again));

    assert_eq!(first.body(), second.body());
}

#[test]
fn unicode_sender_and_profile_are_said() {
    let table = json!({"api_key": "KEY1", "from": "Shop", "messaging_profile_id": "p1"});
    let provider = made(&SPEC, &table);
    let body = |sms: &Sms| -> Value {
        serde_json::from_slice(request_of(&*provider, sms).body()).unwrap()
    };

    let (own, route) = (body(&cyrillic()), body(&routed("ROUTE", &[])));

    assert_eq!((&own["encoding"], &own["messaging_profile_id"]), (&json!("ucs2"), &json!("p1")));
    assert_eq!((&own["from"], &route["from"]), (&json!("Shop"), &json!("ROUTE")));
    assert_eq!(route["encoding"], Value::Null);
}

#[test]
fn profile_is_required_for_a_name_and_without_a_sender() {
    for (table, problem) in [
        (json!({"api_key": "k"}), "from is missing, and so is messaging_profile_id"),
        (
            json!({"api_key": "k", "from": "Shop"}),
            "messaging_profile_id is missing; a sender with a name needs it",
        ),
        (
            json!({"api_key": "k", "from": "+1", "public_key": "AAAA"}),
            "public_key must be 32 bytes in base64",
        ),
    ] {
        assert_eq!(problems(&SPEC, &table), [problem]);
    }
}

fn taken(state: &str) -> String {
    json!({"data": {"id": "t1", "to": [{"phone_number": PHONE, "status": state}], "errors": []}})
        .to_string()
}

#[test]
fn queued_message_is_accepted() {
    assert_eq!(judge(&*telnyx(), 200, &taken("queued")), Ok(accepted("t1")));
    let by_reference = accepted_by_reference("t1");
    assert_eq!(judge(&*signed_telnyx(), 200, &taken("queued")), Ok(by_reference));
}

#[test]
fn failure_inside_a_200_is_no_acceptance() {
    let failed = |code: &str| {
        json!({"data": {"id": "t1", "to": [{"status": "sending_failed"}], "errors": [{"code": code}]}})
            .to_string()
    };

    assert_eq!(class_of(&*telnyx(), 200, &failed("40310")), "rejected");
    assert_eq!(class_of(&*telnyx(), 200, &failed("40999")), "unroutable");
    assert_eq!(class_of(&*telnyx(), 200, r#"{"data":{"to":[{"status":"queued"}]}}"#), "ambiguous");
}

#[test]
fn each_code_has_its_outcome() {
    let provider = telnyx();
    for (status, code, expected) in [
        (400, "40310", "rejected"),
        (400, "10016", "rejected"),
        (400, "40001", "unroutable"),
        (400, "40300", "unroutable"),
        (400, "40309", "unroutable"),
        (400, "40322", "unroutable"),
        (400, "49999", "unroutable"),
        (400, "40305", "misconfigured"),
        (409, "40312", "misconfigured"),
        (401, "10009", "misconfigured"),
        (403, "10010", "misconfigured"),
        (402, "20100", "misconfigured"),
        (400, "40318", "throttled"),
        (429, "10011", "throttled"),
        (422, "10027", "unroutable"),
        (422, "", "unroutable"),
        (400, "", "unroutable"),
        (422, "40310", "rejected"),
        (500, "10007", "ambiguous"),
        (503, "10007", "unavailable"),
    ] {
        let body = json!({"errors": [{"code": code, "title": "no", "detail": PHONE}]}).to_string();
        assert_eq!(class_of(&*provider, status, &body), expected, "{status} {code}");
    }
    let error = judge(&*provider, 400, r#"{"errors":[{"code":"40310"}]}"#).unwrap_err();
    assert_eq!(error.to_string(), "rejected: status 400, code 40310");
}

#[test]
fn unexplained_answer_is_judged_by_its_status() {
    check_unexplained(&*telnyx());
}

#[test]
fn message_names_the_final_state() {
    let provider = telnyx();

    assert_eq!(
        written(&provider.status_request("t1").unwrap()),
        "GET https://api.telnyx.com/v2/messages/t1\nBearer KEY1\n\n"
    );
    assert_eq!(status_of(&*provider, 200, &taken("delivered")), Some(Receipt::Delivered));
    assert_eq!(status_of(&*provider, 200, &taken("expired")), Some(Receipt::Undelivered));
    assert_eq!(status_of(&*provider, 200, &taken("delivery_unconfirmed")), None);
    assert_eq!(status_of(&*provider, 404, &taken("delivered")), None);
}

fn event(kind: &str, state: &str) -> String {
    json!({"data": {"event_type": kind, "payload": {"id": "t1", "to": [{"status": state}]}}})
        .to_string()
}

#[test]
fn unsigned_receipt_counts_for_the_message_of_the_url() {
    let read = |kind, state| {
        receipts(&*telnyx(), "POST", &message_url(), &[], &event(kind, state)).unwrap()
    };
    let of = |receipt| vec![GatewayReceipt { of: Reported::Message(message_id()), receipt }];

    assert_eq!(read("message.finalized", "delivered"), of(Receipt::Delivered));
    for state in ["delivery_failed", "sending_failed", "expired"] {
        assert_eq!(read("message.finalized", state), of(Receipt::Undelivered), "{state}");
    }
    assert_eq!(read("message.finalized", "delivery_unconfirmed"), []);
    assert_eq!(read("message.sent", "sent"), []);
    assert!(!telnyx().verifies_receipts());
    for body in ["", "{}", r#"{"data":{"event_type":"message.finalized"}}"#] {
        let read = receipts(&*telnyx(), "POST", &message_url(), &[], body);
        assert_eq!(read, Err(ReceiptRefused::Unreadable), "{body}");
    }
}

/// The key and the signature were made with another library.
#[test]
fn signed_receipt_counts_for_the_id_of_telnyx() {
    const PUBLIC_KEY_TEXT: &str = "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=";
    const BODY: &str = r#"{"data":{"event_type":"message.finalized","payload":{"id":"t1","to":[{"status":"delivered"}]}}}"#;
    const SIGNATURE: &str =
        "S7FCcDYg1u80Ft3H2WARP5cQbhS61p/brxmjkn81Xi6ovjHSJZmaSrfltKsRqBVojK2yKh+0KrWHT0G0oz7LCw==";
    const OLD: &str =
        "8Ygoc41X6lRQvX7TpJJPcFfrbA/tNrLs8/WjhUDoUltoSMOtgeSvWcZzYhMueTzZwJIcQ8O/kNJATWe58qHuCA==";
    let mut table = table();
    table["public_key"] = PUBLIC_KEY_TEXT.into();
    let provider = made(&SPEC, &table);
    let read = |signature, timestamp, body| {
        let headers = [("telnyx-signature-ed25519", signature), ("telnyx-timestamp", timestamp)];
        receipts(&*provider, "POST", &message_url(), &headers, body)
    };

    let of = Reported::Reference("t1".to_owned());
    let expected = vec![GatewayReceipt { of, receipt: Receipt::Delivered }];
    assert_eq!(read(SIGNATURE, "1700000000", BODY), Ok(expected));
    assert_eq!(read(SIGNATURE, "1700000001", BODY), Err(ReceiptRefused::BadSignature));
    assert_eq!(read(OLD, "1699999600", BODY), Err(ReceiptRefused::BadSignature));
    assert_eq!(read("AAAA", "1700000000", BODY), Err(ReceiptRefused::BadSignature));
    let changed = BODY.replace("t1", "t2");
    assert_eq!(read(SIGNATURE, "1700000000", &changed), Err(ReceiptRefused::BadSignature));
    let unsigned = receipts(&*provider, "POST", &message_url(), &[], BODY);
    assert_eq!(unsigned, Err(ReceiptRefused::Unsigned));
    assert!(provider.verifies_receipts());
}

#[test]
fn signature_is_good_for_five_minutes() {
    let body = event("message.finalized", "delivered");
    let at = |seconds: u64| {
        let signed = format!("{seconds}|{body}");
        let signature = STANDARD.encode(key_pair().sign(signed.as_bytes()));
        let timestamp = seconds.to_string();
        let headers =
            [("telnyx-signature-ed25519", &*signature), ("telnyx-timestamp", &*timestamp)];
        receipts(&*signed_telnyx(), "POST", &message_url(), &headers, &body).is_ok()
    };

    assert!(at(NOW - 300) && at(NOW + 300));
    assert!(!at(NOW - 301) && !at(NOW + 301));
}

/// Answers as Telnyx does, also to a repeated key.
fn strict(request: &Received) -> Reply {
    let error = |status: u16, code: &str| {
        Reply::json(status, &json!({"errors": [{"code": code, "title": "no", "detail": PHONE}]}))
    };
    if request.header("authorization") != "Bearer KEY1" {
        return error(401, "10009");
    }
    if (&*request.method, &*request.path) != ("POST", "/v2/messages") {
        return error(404, "10005");
    }
    if request.header("content-type") != "application/json" {
        return error(415, "10014");
    }
    let is_key = |byte: u8| byte.is_ascii_alphanumeric() || b"_:-".contains(&byte);
    let key = request.header("idempotency-key");
    if !(1..=255).contains(&key.len()) || !key.bytes().all(is_key) {
        return error(400, "10015");
    }
    let body = request.json();
    if !body["to"].as_str().is_some_and(|to| to.starts_with('+')) {
        return error(400, "10016");
    }
    if !body["from"].is_string() && !body["messaging_profile_id"].is_string() {
        return error(400, "40305");
    }
    if body["text"].as_str().is_none_or(str::is_empty) {
        return error(400, "40316");
    }
    Reply::json(200, &serde_json::from_str(&taken("queued")).unwrap())
}

#[tokio::test]
async fn strict_telnyx_accepts_the_request_and_refuses_a_wrong_key() {
    let fake = Fake::strict(strict).await;
    let mut table = table();
    table["url"] = fake.url().into();
    let good = gateway(&SPEC, &table).send(&sms()).await;
    table["api_key"] = "wrong".into();
    let wrong = gateway(&SPEC, &table).send(&sms()).await;

    assert_eq!(good, Ok(accepted("t1")));
    assert_eq!(wrong, Err(SendError::Misconfigured("status 401, code 10009".to_owned())));
    assert!(fake.received()[0].body.contains(CODE));
}
