use application::ports::{Accepted, Receipt, SmsGateway};
use serde_json::{Value, json};

use super::*;
use crate::testing::{
    Fake, Received, Reply, gateway, judge, made, problems, request_of,
    short::{
        ID, basic_of, check_common_answers, json_of, of_message, of_reference, posted, refused,
        sms, sms_for, sms_with, with_headers,
    },
    status_of,
};

const DELIVERED: &str = r#"{"id":"Ey6ECgOkVVFjz3CL48B8C","webhookId":"LreFUt-Z3sSq0JufY9uWB","deviceId":"dev","event":"sms:delivered","payload":{"messageId":"e5babe51-0e3a-5823-8812-6d50d82d603e","phoneNumber":"+79991234567","simNumber":1,"deliveredAt":"2026-11-30T18:00:09.000+00:00"}}"#;

/// The signature of [`DELIVERED`] under `sign-key` at 1796061660, computed with OpenSSL.
const SIGNATURE: &str = "96cbaa03daf7775bee3db475b30a31234a6a6cc0099274d4d728997b5b1867fc";

fn table(url: &str) -> Value {
    json!({"username": "user", "password": "pass", "url": format!("{url}/messages")})
}

fn smsgate() -> Box<dyn Provider> {
    made(&SPEC, &json!({"username": "user", "password": "pass"}))
}

#[test]
fn sms_is_posted_with_our_id() {
    assert_eq!(
        with_headers(&request_of(&*smsgate(), &sms())),
        "POST https://api.sms-gate.app/3rdparty/v1/messages\n\
         authorization: Basic dXNlcjpwYXNz\n\
         content-type: application/json\n\
         \n\
         {\"id\":\"e5babe51-0e3a-5823-8812-6d50d82d603e\",\"phoneNumbers\":[\"+79991234567\"],\
         \"textMessage\":{\"text\":\"Your code: 482915\"},\"ttl\":300,\"priority\":100,\
         \"withDeliveryReport\":true}"
    );
    assert!(smsgate().deduplicates());
    // The longest id that it takes.
    assert!(ID.len() <= 36);
}

#[test]
fn phone_token_and_sim_are_settings() {
    let settings = json!({"token": "t", "sim": "2", "url": "http://192.168.0.7:8080/message"});
    let request = request_of(&*made(&SPEC, &settings), &sms_with("Код"));

    assert_eq!(request.uri(), "http://192.168.0.7:8080/message");
    assert_eq!(request.headers()["authorization"], "Bearer t");
    let body: Value = serde_json::from_slice(request.body()).unwrap();
    assert_eq!((&body["simNumber"], &body["textMessage"]["text"]), (&json!(2), &json!("Код")));
}

#[test]
fn time_to_live_is_at_least_five_seconds() {
    let request = request_of(&*smsgate(), &sms_for(1));

    let body: Value = serde_json::from_slice(request.body()).unwrap();
    assert_eq!(body["ttl"], 5);
}

#[test]
fn credentials_are_a_password_or_a_token() {
    let expected = ["username must be set with `password`, or else `token`"];

    assert_eq!(problems(&SPEC, &json!({})), expected);
    assert_eq!(problems(&SPEC, &json!({"username": "u"})), expected);
    let both = json!({"username": "u", "password": "p", "token": "t"});
    assert_eq!(problems(&SPEC, &both), expected);
    let sim = json!({"token": "t", "sim": 4});
    assert_eq!(problems(&SPEC, &sim), ["sim must be a whole number from 1 to 3"]);
}

#[test]
fn accepted_has_our_id() {
    let body = json!({"id": ID, "deviceId": "d", "state": "Pending", "recipients": []});

    assert_eq!(judge(&*smsgate(), 202, &body.to_string()), Ok(accepted(ID)));
    assert_eq!(judge(&*smsgate(), 201, &body.to_string()), Ok(accepted(ID)));
}

#[test]
fn duplicate_is_accepted() {
    let body = r#"{"message":"message already exists"}"#;

    assert_eq!(judge(&*smsgate(), 409, body), Ok(Accepted::default()));
}

#[test]
fn refusals_have_the_class_of_their_status() {
    let failed = json!({"id": ID, "state": "Failed"}).to_string();
    for (status, body, expected) in [
        (202, &*failed, "unroutable: status 202, code Failed"),
        (202, r#"{"state":"Pending"}"#, "ambiguous: status 202"),
        (400, r#"{"message":"invalid phone number +79991234567"}"#, "unroutable: status 400"),
        (401, r#"{"message":"no"}"#, "misconfigured: status 401"),
        (403, "", "misconfigured: status 403"),
        (503, "", "unavailable: status 503"),
        (500, r#"{"message":"no"}"#, "ambiguous: status 500"),
    ] {
        assert_eq!(refused(&*smsgate(), status, body), expected, "{body}");
    }
}

fn webhook(event: &str, id: &str) -> String {
    json!({"event": event, "payload": {"messageId": id, "phoneNumber": "+79991234567"}}).to_string()
}

#[test]
fn delivered_and_failed_are_receipts() {
    let read = |body: &str| posted(&*smsgate(), "token=t", &[], body);

    assert_eq!(read(DELIVERED), Ok(vec![of_message(Receipt::Delivered)]));
    let failed = webhook("sms:failed", ID);
    assert_eq!(read(&failed), Ok(vec![of_message(Receipt::Undelivered)]));
    for event in ["sms:sent", "sms:received", "system:ping"] {
        assert_eq!(read(&webhook(event, ID)), Ok(vec![]));
    }
    let other = Ok(vec![of_reference("theirs", Receipt::Delivered)]);
    assert_eq!(read(&webhook("sms:delivered", "theirs")), other);
    for body in ["", "{}", r#"{"event":"sms:failed"}"#, "event=sms:failed"] {
        assert_eq!(read(body), Err(ReceiptRefused::Unreadable), "{body}");
    }
    assert!(!smsgate().verifies_receipts());
}

#[test]
fn signature_covers_body_and_timestamp() {
    let signing = json!({"token": "t", "signing_key": "sign-key"});
    let smsgate = made(&SPEC, &signing);
    let read = |body: &str, signature: &str, timestamp: &str| {
        let headers = [("x-signature", signature), ("x-timestamp", timestamp)];
        posted(&*smsgate, "", &headers, body)
    };
    let delivered = Ok(vec![of_message(Receipt::Delivered)]);

    assert!(smsgate.verifies_receipts());
    assert_eq!(read(DELIVERED, SIGNATURE, "1796061660"), delivered);
    assert_eq!(read(DELIVERED, &SIGNATURE.to_uppercase(), "1796061660"), delivered);
    let failed = DELIVERED.replace("delivered", "failed");
    for (body, signature, timestamp) in [
        (DELIVERED, SIGNATURE, "1796061661"),
        (&*failed, SIGNATURE, "1796061660"),
        (DELIVERED, &SIGNATURE[..63], "1796061660"),
        (DELIVERED, "", "1796061660"),
    ] {
        assert_eq!(read(body, signature, timestamp), Err(ReceiptRefused::BadSignature));
    }
    let unsigned = posted(&*smsgate, "token=t", &[("x-timestamp", "1796061660")], DELIVERED);
    assert_eq!(unsigned, Err(ReceiptRefused::Unsigned));
    let undated = posted(&*smsgate, "token=t", &[("x-signature", SIGNATURE)], DELIVERED);
    assert_eq!(undated, Err(ReceiptRefused::Unsigned));
}

#[test]
fn state_is_asked_for_by_the_id() {
    let request = smsgate().status_request(ID).unwrap();

    assert_eq!(request.method(), "GET");
    let url = format!("https://api.sms-gate.app/3rdparty/v1/messages/{ID}");
    assert_eq!(request.uri().to_string(), url);
    assert_eq!(request.headers()["authorization"], "Basic dXNlcjpwYXNz");
    let state = |state| status_of(&*smsgate(), 200, &json!({"id": ID, "state": state}).to_string());
    assert_eq!(state("Delivered"), Some(Receipt::Delivered));
    assert_eq!(state("Failed"), Some(Receipt::Undelivered));
    for other in ["Pending", "Processed", "Sent"] {
        assert_eq!(state(other), None);
    }
    assert_eq!(status_of(&*smsgate(), 404, r#"{"state":"Failed"}"#), None);
    let odd = smsgate().status_request("a/b?c").unwrap();
    assert!(odd.uri().to_string().ends_with("/messages/a%2Fb%3Fc"));
}

/// Answers as the interface is described, and remembers nothing: `ID` is there already.
fn server(request: &Received) -> Reply {
    if (&*request.method, &*request.path) != ("POST", "/messages") {
        return Reply::text(404, r#"{"message":"not found"}"#);
    }
    if basic_of(request) != Some(("user".to_owned(), "pass".to_owned())) {
        return Reply::text(401, r#"{"message":"unauthorized"}"#);
    }
    let Some(body) = json_of(request) else {
        return Reply::text(415, r#"{"message":"unsupported media type"}"#);
    };
    let number = body["phoneNumbers"][0].as_str().unwrap_or_default();
    let id = body["id"].as_str().unwrap_or_default();
    let text = body["textMessage"]["text"].as_str().unwrap_or_default();
    let is_good = number.starts_with('+')
        && (1..=36).contains(&id.len())
        && !text.is_empty()
        && body["ttl"].as_u64() >= Some(5);
    if !is_good {
        return Reply::text(400, r#"{"message":"validation failed"}"#);
    }
    if text.contains("again") {
        return Reply::text(409, r#"{"message":"duplicate id"}"#);
    }
    Reply::text(202, &json!({"id": id, "state": "Pending"}).to_string())
}

#[tokio::test]
async fn gateway_speaks_to_the_server() {
    let fake = Fake::strict(server).await;
    let good = gateway(&SPEC, &table(fake.url()));

    assert_eq!(good.send(&sms_with("Код: 482915")).await, Ok(accepted(ID)));
    assert_eq!(good.send(&sms_with("again")).await, Ok(Accepted::default()));
    let wrong = json!({"token": "t", "url": format!("{}/messages", fake.url())});
    let refused = gateway(&SPEC, &wrong).send(&sms()).await.unwrap_err();
    assert_eq!(refused.to_string(), "misconfigured: status 401");
}

#[tokio::test]
async fn other_answers_have_their_usual_outcome() {
    check_common_answers(&SPEC, table).await;
}
