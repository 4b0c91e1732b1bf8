use application::ports::{Receipt, Sms, SmsGateway};
use serde_json::{Value, json};

use super::*;
use crate::testing::{
    Fake, Received, Reply, gateway, judge, made, problems, request_of,
    short::{
        check_common_answers, json_of, of_reference, posted, refused, sms, sms_with, with_headers,
    },
};

fn table(url: &str) -> Value {
    json!({"api_key": "key", "from": "79581234567", "url": url})
}

fn exolve() -> Box<dyn Provider> {
    made(&SPEC, &json!({"api_key": "key", "from": "79581234567"}))
}

#[test]
fn number_is_the_sender_and_destination_the_recipient() {
    assert_eq!(
        with_headers(&request_of(&*exolve(), &sms())),
        "POST https://api.exolve.ru/messaging/v1/SendSMS\n\
         authorization: Bearer key\n\
         content-type: application/json\n\
         \n\
         {\"number\":\"79581234567\",\"destination\":\"79991234567\",\"text\":\"Your code: 482915\"}"
    );
}

#[test]
fn sender_and_template_of_the_route_go_along() {
    let settings = json!({"api_key": "key", "from": "Shop", "template": "1"});
    let exolve = made(&SPEC, &settings);
    let body =
        |sms: &Sms| -> Value { serde_json::from_slice(request_of(&*exolve, sms).body()).unwrap() };

    assert_eq!(body(&sms())["template_resource_id"], "1");
    let params = [("template".to_owned(), "2".to_owned())].into();
    let route = Sms { sender: Some("SHOP".into()), params: std::sync::Arc::new(params), ..sms() };
    assert_eq!(body(&route)["template_resource_id"], "2");
    assert_eq!(body(&route)["number"], "SHOP");
}

#[test]
fn missing_settings_are_named() {
    assert_eq!(problems(&SPEC, &json!({})), ["api_key is missing", "from is missing"]);
}

#[test]
fn id_keeps_all_its_digits() {
    let long = r#"{"message_id":575976245313935471}"#;

    assert_eq!(judge(&*exolve(), 200, long), Ok(accepted_by_reference("575976245313935471")));
    let text = r#"{"message_id":"575976245313935471"}"#;
    assert_eq!(judge(&*exolve(), 200, text), Ok(accepted_by_reference("575976245313935471")));
    assert!(!exolve().deduplicates());
}

#[test]
fn errors_have_the_class_of_their_status_and_the_code() {
    let error = r#"{"error":{"code":"3","message":"79991234567 is no number","details":"d"}}"#;
    for (status, body, expected) in [
        (200, error, "unroutable: status 200, code 3"),
        (200, r#"{"error":"no"}"#, "unroutable: status 200"),
        (200, r#"{"message_id":""}"#, "ambiguous: status 200"),
        (400, error, "unroutable: status 400, code 3"),
        (401, error, "misconfigured: status 401, code 3"),
        (402, "", "misconfigured: status 402"),
        (500, error, "ambiguous: status 500, code 3"),
    ] {
        assert_eq!(refused(&*exolve(), status, body), expected, "{status} {body}");
    }
}

#[test]
fn receipt_names_the_message_by_its_reference() {
    let read = |body: &str| posted(&*exolve(), "token=t", &[], body);

    let delivered = r#"{"message_id":575976245313935471,"status":"Delivered"}"#;
    let expected = Ok(vec![of_reference("575976245313935471", Receipt::Delivered)]);
    assert_eq!(read(delivered), expected);
    let failed = Ok(vec![of_reference("5", Receipt::Undelivered)]);
    assert_eq!(read(r#"{"message_id":"5","status":"undelivered"}"#), failed);
    assert_eq!(read(r#"{"message_id":"5","status":"sent"}"#), Ok(vec![]));
    assert_eq!(read("{}"), Err(ReceiptRefused::Unreadable));
    assert!(!exolve().verifies_receipts());
}

/// Answers as the documentation says.
fn server(request: &Received) -> Reply {
    let error = |status| Reply::text(status, r#"{"error":{"message":"m"}}"#);
    if (&*request.method, &*request.path) != ("POST", "/messaging/v1/SendSMS") {
        return error(404);
    }
    if request.header("authorization") != "Bearer key" {
        return error(401);
    }
    let Some(body) = json_of(request) else { return error(415) };
    let text = |name: &str| body[name].as_str().unwrap_or_default();
    let destination = text("destination");
    let is_number = destination.len() == 11 && destination.bytes().all(|it| it.is_ascii_digit());
    if !is_number || text("number").is_empty() || text("text").is_empty() {
        return error(400);
    }
    Reply::text(200, r#"{"message_id":"439166150911234567"}"#)
}

#[tokio::test]
async fn gateway_speaks_to_the_server() {
    let fake = Fake::strict(server).await;

    let sent = gateway(&SPEC, &table(fake.url())).send(&sms_with("Код: 482915")).await;

    assert_eq!(sent, Ok(accepted_by_reference("439166150911234567")));
    let wrong = json!({"api_key": "other", "from": "Shop", "url": fake.url()});
    let refused = gateway(&SPEC, &wrong).send(&sms()).await.unwrap_err();
    assert_eq!(refused.to_string(), "misconfigured: status 401");
}

#[tokio::test]
async fn other_answers_have_their_usual_outcome() {
    check_common_answers(&SPEC, table).await;
}
