use application::ports::{Sms, SmsGateway};

use super::*;
use crate::testing::{
    Fake, Received, Reply, gateway, judge, made, problems, request_of,
    short::{
        CALLBACK, ID, basic_of, check_common_answers, got, json_of, of_message, of_reference,
        posted, refused as refusal, sms, sms_with, with_callback, with_headers,
    },
    status_of,
};

fn table(url: &str) -> Value {
    json!({"email": "me@shop.example", "api_key": "key", "from": "Shop", "url": url})
}

fn smsaero() -> Box<dyn Provider> {
    made(&SPEC, &json!({"email": "me@shop.example", "api_key": "key", "from": "Shop"}))
}

#[test]
fn sms_is_posted_as_json() {
    assert_eq!(
        with_headers(&request_of(&*smsaero(), &sms())),
        "POST https://gate.smsaero.ru/v2/sms/send\n\
         authorization: Basic bWVAc2hvcC5leGFtcGxlOmtleQ==\n\
         content-type: application/json\n\
         \n\
         {\"number\":\"79991234567\",\"text\":\"Your code: 482915\",\"sign\":\"Shop\"}"
    );
}

#[test]
fn receipt_and_sender_go_along() {
    let sms = Sms { sender: Some("SHOP".into()), ..with_callback() };

    let body: Value = serde_json::from_slice(request_of(&*smsaero(), &sms).body()).unwrap();

    assert_eq!(body["callbackUrl"], CALLBACK);
    assert_eq!(body["callbackFormat"], "JSON");
    assert_eq!(body["sign"], "SHOP");
}

#[test]
fn missing_settings_are_named() {
    assert_eq!(problems(&SPEC, &json!({})), ["email is missing", "api_key is missing"]);
}

fn answer_with(status: u64) -> String {
    let data = json!({
        "id": 12345, "from": "Shop", "number": "79991234567", "text": "Your code: 482915",
        "status": status, "extendStatus": "queue", "channel": "FREE SIGN", "cost": 5.49,
        "dateCreate": 1_796_061_600, "dateSend": 1_796_061_600,
    });
    json!({"success": true, "data": data, "message": null}).to_string()
}

#[test]
fn success_with_an_id_is_accepted() {
    // In the queue, at the operator, in moderation.
    for status in [0, 3, 8] {
        let accepted = judge(&*smsaero(), 200, &answer_with(status));
        assert_eq!(accepted, Ok(accepted_by_reference("12345")));
    }
    let rejected = refusal(&*smsaero(), 200, &answer_with(6));
    assert_eq!(rejected, "unroutable: status 200, code status-6");
    let bare = refusal(&*smsaero(), 200, r#"{"success":true,"data":{}}"#);
    assert_eq!(bare, "ambiguous: status 200");
    assert!(!smsaero().deduplicates());
}

#[test]
fn errors_have_their_class_whatever_the_status() {
    let number = r#"{"success":false,"data":{"number":["bad"]},"message":"Validation error."}"#;
    let sign = r#"{"success":false,"data":{"sign":["bad"]},"message":"Validation error."}"#;
    let other = r#"{"success":false,"data":null,"message":"79991234567"}"#;
    for (status, body, expected) in [
        (200, r#"{"result":"no credits"}"#, "misconfigured: status 200, code no-credits"),
        (402, r#"{"result":"no credits"}"#, "misconfigured: status 402, code no-credits"),
        (200, r#"{"result":"reject","reason":"r"}"#, "unroutable: status 200, code reject"),
        (200, number, "rejected: status 200, code number"),
        (400, number, "rejected: status 400, code number"),
        (400, sign, "misconfigured: status 400, code sign"),
        (200, other, "unroutable: status 200"),
        (400, other, "unroutable: status 400"),
        (401, other, "misconfigured: status 401"),
        (429, other, "throttled: status 429"),
        (500, number, "ambiguous: status 500"),
    ] {
        assert_eq!(refusal(&*smsaero(), status, body), expected, "{status} {body}");
    }
}

#[test]
fn receipt_names_the_message_by_our_url_or_its_id() {
    let delivered = r#"{"id":12345,"status":1,"extendStatus":"delivery"}"#;

    let ours = posted(&*smsaero(), &format!("id={ID}&token=t"), &[], delivered);
    assert_eq!(ours, Ok(vec![of_message(Receipt::Delivered)]));
    let theirs = posted(&*smsaero(), "token=t", &[], delivered);
    assert_eq!(theirs, Ok(vec![of_reference("12345", Receipt::Delivered)]));
    for status in [2, 6] {
        let read = got(&*smsaero(), &format!("token=t&id=12345&status={status}"));
        assert_eq!(read, Ok(vec![of_reference("12345", Receipt::Undelivered)]));
    }
    for status in [0, 3, 4, 8] {
        let read = got(&*smsaero(), &format!("token=t&id=12345&status={status}"));
        assert_eq!(read, Ok(vec![]));
    }
}

#[test]
fn state_is_asked_for_by_the_id() {
    let request = smsaero().status_request("12345").unwrap();

    assert_eq!(
        with_headers(&request),
        "POST https://gate.smsaero.ru/v2/sms/status\n\
         authorization: Basic bWVAc2hvcC5leGFtcGxlOmtleQ==\n\
         content-type: application/json\n\
         \n\
         {\"id\":12345}"
    );
    assert!(smsaero().status_request("x").is_none());
    let state = |status: u64| status_of(&*smsaero(), 200, &answer_with(status));
    assert_eq!(state(1), Some(Receipt::Delivered));
    assert_eq!(state(2), Some(Receipt::Undelivered));
    assert_eq!(state(0), None);
    assert_eq!(status_of(&*smsaero(), 404, &answer_with(1)), None);
}

/// Answers as the vendor's SDK expects.
fn server(request: &Received) -> Reply {
    let error = |status, data: Value| {
        let body = json!({"success": false, "data": data, "message": "Validation error."});
        Reply::text(status, &body.to_string())
    };
    if (&*request.method, &*request.path) != ("POST", "/v2/sms/send") {
        return error(404, Value::Null);
    }
    if basic_of(request) != Some(("me@shop.example".to_owned(), "key".to_owned())) {
        return error(401, Value::Null);
    }
    let Some(body) = json_of(request) else { return error(415, Value::Null) };
    let text = |name: &str| body[name].as_str().unwrap_or_default();
    if text("number").len() != 11 {
        return error(400, json!({"number": ["bad"]}));
    }
    if text("sign") != "Shop" {
        return error(400, json!({"sign": ["bad"]}));
    }
    if text("text").is_empty() {
        return error(400, json!({"text": ["bad"]}));
    }
    Reply::text(200, &answer_with(0))
}

#[tokio::test]
async fn gateway_speaks_to_the_server() {
    let fake = Fake::strict(server).await;
    let good = gateway(&SPEC, &table(fake.url()));

    let sent = good.send(&sms_with("Код: 482915")).await;
    let unknown = good.send(&Sms { sender: Some("Other".into()), ..sms() }).await.unwrap_err();

    assert_eq!(sent, Ok(accepted_by_reference("12345")));
    assert_eq!(unknown.to_string(), "misconfigured: status 400, code sign");
}

#[tokio::test]
async fn other_answers_have_their_usual_outcome() {
    check_common_answers(&SPEC, table).await;
}
