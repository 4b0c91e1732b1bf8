use application::ports::{Receipt, Sms, SmsGateway};
use serde_json::{Value, json};

use super::*;
use crate::testing::{
    Fake, Received, Reply, gateway, judge, made, problems, request_of,
    short::{
        CALLBACK, ID, check_common_answers, json_of, of_message, of_reference, posted, refused,
        sms, sms_with, with_callback, with_headers,
    },
    status_of,
};

fn table(url: &str) -> Value {
    json!({"login": "project", "from": "Code7", "url": url})
}

fn messaggio() -> Box<dyn Provider> {
    made(&SPEC, &json!({"login": "project", "from": "Code7"}))
}

#[test]
fn sms_is_posted_with_our_id_and_the_login() {
    let request = request_of(&*messaggio(), &sms());

    assert_eq!(
        with_headers(&request),
        "POST https://msg.messaggio.com/api/v1/send\n\
         content-type: application/json\n\
         messaggio-login: project\n\
         \n\
         {\"recipients\":[{\"phone\":\"79991234567\"}],\"channels\":[\"sms\"],\
         \"options\":{\"ttl\":300,\"external_id\":\"e5babe51-0e3a-5823-8812-6d50d82d603e\"},\
         \"sms\":{\"from\":\"Code7\",\"content\":[{\"type\":\"text\",\"text\":\"Your code: 482915\"}]}}"
    );
    assert!(!format!("{request:?}").contains("project"));
}

#[test]
fn receipt_and_the_sender_of_the_route_go_along() {
    let sms = Sms { sender: Some("Code8".into()), ..with_callback() };

    let body: Value = serde_json::from_slice(request_of(&*messaggio(), &sms).body()).unwrap();

    assert_eq!(body["options"]["dlr_callback_url"], CALLBACK);
    assert_eq!(body["sms"]["from"], "Code8");
}

#[test]
fn missing_settings_are_named() {
    assert_eq!(problems(&SPEC, &json!({})), ["login is missing", "from is missing"]);
}

fn answer_for(message: &Value) -> String {
    json!({"messages": [message]}).to_string()
}

#[test]
fn id_without_an_error_is_accepted() {
    let message = json!({"message_id": "m-1", "recipient": {"phone": "79991234567"}});

    assert_eq!(judge(&*messaggio(), 200, &answer_for(&message)), Ok(accepted("m-1")));
    let null = json!({"message_id": "m-1", "error": null});
    assert_eq!(judge(&*messaggio(), 200, &answer_for(&null)), Ok(accepted("m-1")));
    assert!(!messaggio().deduplicates());
}

#[test]
fn error_of_the_recipient_is_inside_an_ok() {
    let error = json!({"title": "Bad recipient", "detail": "79991234567 is no number"});
    for message in [
        json!({"message_id": "", "error": error}),
        json!({"message_id": "m-1", "error": error}),
        json!({"error": error}),
    ] {
        let refused = refused(&*messaggio(), 200, &answer_for(&message));
        assert_eq!(refused, "unroutable: status 200, code recipient");
    }
}

#[test]
fn other_answers_have_the_class_of_their_status() {
    let error = r#"{"title":"Bad request","detail":"phone 79991234567"}"#;
    for (status, body, expected) in [
        (200, r#"{"messages":[]}"#, "ambiguous: status 200"),
        (200, r#"{"messages":[{"message_id":""}]}"#, "ambiguous: status 200"),
        (400, error, "unroutable: status 400"),
        (422, error, "unroutable: status 422"),
        (403, error, "misconfigured: status 403"),
        (500, error, "ambiguous: status 500"),
    ] {
        assert_eq!(refused(&*messaggio(), status, body), expected, "{status} {body}");
    }
}

fn receipt(code: u64) -> Value {
    json!({
        "type": "status", "message_id": "m-1", "external_id": ID, "status": code,
        "timestamp": "2026-11-30T18:00:09Z",
    })
}

#[test]
fn receipt_has_our_id_and_a_code() {
    let read = |body: &Value| posted(&*messaggio(), "token=t", &[], &body.to_string());

    assert_eq!(read(&receipt(70)), Ok(vec![of_message(Receipt::Delivered)]));
    assert_eq!(read(&receipt(60)), Ok(vec![of_message(Receipt::Undelivered)]));
    assert_eq!(read(&receipt(196)), Ok(vec![of_message(Receipt::Undelivered)]));
    // Accepted, handed to the carrier, unknown.
    for code in [200, 100, 1] {
        assert_eq!(read(&receipt(code)), Ok(vec![]));
    }
    let mut foreign = receipt(67);
    foreign["external_id"] = "theirs".into();
    assert_eq!(read(&foreign), Ok(vec![of_reference("m-1", Receipt::Delivered)]));
    let several = json!([receipt(70), {"type": "message"}, foreign]);
    assert_eq!(read(&several).unwrap().len(), 2);
    let unreadable = Err(ReceiptRefused::Unreadable);
    assert_eq!(read(&json!({"type": "message", "status": 70})), unreadable);
    assert_eq!(posted(&*messaggio(), "token=t", &[], "status=70"), unreadable);
    assert!(!messaggio().verifies_receipts());
}

#[test]
fn codes_are_settings() {
    let table = json!({"login": "p", "from": "f", "delivered": "1", "undelivered": "70"});
    let read = |code| posted(&*made(&SPEC, &table), "", &[], &receipt(code).to_string());

    assert_eq!(read(1), Ok(vec![of_message(Receipt::Delivered)]));
    assert_eq!(read(70), Ok(vec![of_message(Receipt::Undelivered)]));
    assert_eq!(read(60), Ok(vec![]));
}

#[test]
fn state_is_asked_for_by_the_id_of_messaggio() {
    let request = messaggio().status_request("m-1").unwrap();

    assert_eq!(
        with_headers(&request),
        "POST https://msg.messaggio.com/api/v1/statuses\n\
         content-type: application/json\n\
         messaggio-login: project\n\
         \n\
         {\"channels\":[\"sms\"],\"recipients\":[{\"id\":\"m-1\"}],\"sms\":[{\"from\":\"Code7\"}]}"
    );
    let state = |code: u64| {
        let status = json!({"channel": "sms", "status": code});
        let body = json!({"statuses": [{"message_id": "m-1", "type": "status", "status": status}]});
        status_of(&*messaggio(), 200, &body.to_string())
    };
    assert_eq!(state(70), Some(Receipt::Delivered));
    assert_eq!(state(60), Some(Receipt::Undelivered));
    assert_eq!(state(100), None);
    assert_eq!(status_of(&*messaggio(), 200, r#"{"statuses":[]}"#), None);
}

/// Answers as the implementations expect.
fn server(request: &Received) -> Reply {
    let error = |status| Reply::text(status, r#"{"title":"t","detail":"d"}"#);
    if (&*request.method, &*request.path) != ("POST", "/api/v1/send") {
        return error(404);
    }
    if request.header("messaggio-login") != "project" {
        return error(401);
    }
    let Some(body) = json_of(request) else { return error(415) };
    let text = body["sms"]["content"][0]["text"].as_str().unwrap_or_default();
    if body["channels"] != json!(["sms"]) || body["sms"]["from"] != "Code7" || text.is_empty() {
        return error(400);
    }
    let phone = body["recipients"][0]["phone"].as_str().unwrap_or_default();
    if phone.len() != 11 || !phone.bytes().all(|byte| byte.is_ascii_digit()) {
        return Reply::text(200, &answer_for(&json!({"message_id": "", "error": {"title": "t"}})));
    }
    Reply::text(200, &answer_for(&json!({"message_id": "m-1", "recipient": {"phone": phone}})))
}

#[tokio::test]
async fn gateway_speaks_to_the_server() {
    let fake = Fake::strict(server).await;

    let sent = gateway(&SPEC, &table(fake.url())).send(&sms_with("Код: 482915")).await;

    assert_eq!(sent, Ok(accepted("m-1")));
    let wrong = json!({"login": "other", "from": "Code7", "url": fake.url()});
    let refused = gateway(&SPEC, &wrong).send(&sms()).await.unwrap_err();
    assert_eq!(refused.to_string(), "misconfigured: status 401");
}

#[tokio::test]
async fn answers_of_other_servers_have_their_usual_outcome() {
    check_common_answers(&SPEC, table).await;
}
