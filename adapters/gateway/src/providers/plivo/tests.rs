use application::ports::{Sms, SmsGateway};
use serde_json::json;

use super::*;
use crate::testing::{
    CODE, Fake, PHONE, Received, Reply, check_unexplained, class_of, gateway, judge, made,
    message_id, message_url, problems, receipts, request_of, routed, sms, status_of, written,
};

/// Made with Python's `hmac`, of the URL of [`message_url`] and the nonce.
const SIGNATURE: &str = "wi7j3hc0GOXv6KSqqspfpnE4HYv251755tTCciyRqzs=";
const NONCE: &str = "05429567804466091622";

fn table() -> Value {
    json!({"auth_id": "MA1", "auth_token": "tok3n", "from": "Shop"})
}

fn plivo() -> Box<dyn Provider> {
    made(&SPEC, &table())
}

#[test]
fn request_has_the_validity_and_the_callback() {
    assert_eq!(
        written(&request_of(&*plivo(), &sms())),
        format!(
            "POST https://api.plivo.com/v1/Account/MA1/Message/\n\
             Basic TUExOnRvazNu\n\
             application/json\n\
             {{\"src\":\"Shop\",\"dst\":\"{PHONE}\",\"text\":\"Your code: {CODE}\",\"type\":\"sms\",\
             \"message_expiry\":300,\
             \"url\":\"https://messager.example/v1/receipts/main?id=1&token=t\",\
             \"method\":\"POST\"}}"
        )
    );
}

#[test]
fn route_gives_the_sender_and_the_ids_of_india() {
    let table = json!({"auth_id": "MA1", "auth_token": "t", "powerpack_uuid": "p1"});
    let provider = made(&SPEC, &table);
    let body = |sms: &Sms| -> Value {
        serde_json::from_slice(request_of(&*provider, sms).body()).unwrap()
    };
    let params =
        [("dlt_entity_id", "1"), ("dlt_template_id", "2"), ("dlt_template_category", "otp")];

    let own = body(&sms());
    let route = body(&Sms { callback: None, ..routed("ROUTE", &params) });

    assert_eq!((&own["powerpack_uuid"], own.get("src")), (&json!("p1"), None));
    assert_eq!((route.get("powerpack_uuid"), &route["src"]), (None, &json!("ROUTE")));
    assert_eq!((route.get("url"), route.get("method")), (None, None));
    for (name, value) in params {
        assert_eq!(route[name], value);
    }
}

#[test]
fn one_of_sender_and_powerpack_is_required() {
    for (table, problem) in [
        (json!({"auth_id": "a", "auth_token": "t"}), "from is missing, and so is powerpack_uuid"),
        (
            json!({"auth_id": "a", "auth_token": "t", "from": "a", "powerpack_uuid": "b"}),
            "from excludes powerpack_uuid: Plivo takes one of them",
        ),
    ] {
        assert_eq!(problems(&SPEC, &table), [problem]);
    }
}

#[test]
fn queued_message_is_accepted() {
    let body = r#"{"message":"message(s) queued","message_uuid":["u1"],"api_id":"a"}"#;

    assert_eq!(judge(&*plivo(), 202, body), Ok(accepted("u1")));
    assert_eq!(class_of(&*plivo(), 202, r#"{"message_uuid":[]}"#), "ambiguous");
}

#[test]
fn refusal_has_its_outcome() {
    let body = format!(r#"{{"api_id":"a","error":"{PHONE} is not a number"}}"#);
    for (status, expected) in [
        (400, "unroutable"),
        (401, "misconfigured"),
        (402, "misconfigured"),
        (404, "misconfigured"),
        (405, "misconfigured"),
        (429, "throttled"),
        (500, "ambiguous"),
        (503, "unavailable"),
    ] {
        assert_eq!(class_of(&*plivo(), status, &body), expected, "{status}");
    }
    assert_eq!(class_of(&*plivo(), 400, ""), "unroutable");
}

#[test]
fn unexplained_answer_is_judged_by_its_status() {
    check_unexplained(&*plivo());
}

fn read(url: &str, signature: &str, form: &str) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
    let headers = [("x-plivo-signature-v2", signature), ("x-plivo-signature-v2-nonce", NONCE)];
    receipts(&*plivo(), "POST", url, &headers, form)
}

#[test]
fn signed_receipt_names_the_final_state() {
    let state = |state: &str| {
        let form = format!("MessageUUID=u1&Status={state}&To={PHONE}&ErrorCode=000");
        read(&message_url(), SIGNATURE, &form).unwrap()
    };
    let of = |receipt| vec![GatewayReceipt { of: Reported::Message(message_id()), receipt }];

    assert_eq!(state("delivered"), of(Receipt::Delivered));
    for name in ["undelivered", "failed", "rejected"] {
        assert_eq!(state(name), of(Receipt::Undelivered), "{name}");
    }
    for name in ["queued", "sent", ""] {
        assert_eq!(state(name), [], "{name}");
    }
}

#[test]
fn receipt_without_our_id_in_the_url_is_found_by_the_uuid() {
    let url = "https://messager.example/v1/receipts/main?token=t";
    let query = format!("{url}&MessageUUID=u1&Status=delivered");
    let headers = [("x-plivo-signature-ma-v2", SIGNATURE), ("x-plivo-signature-v2-nonce", NONCE)];
    let of = Reported::Reference("u1".to_owned());
    let expected = Ok(vec![GatewayReceipt { of, receipt: Receipt::Delivered }]);

    assert_eq!(read(url, SIGNATURE, "MessageUUID=u1&Status=delivered"), expected);
    assert_eq!(receipts(&*plivo(), "GET", &query, &headers, ""), expected);
}

#[test]
fn wrong_signature_is_refused_and_a_good_one_does_not_replace_the_token() {
    let form = "MessageUUID=u1&Status=delivered";
    let other = "https://messager.example/v1/receipts/other?token=t";

    assert_eq!(read(other, SIGNATURE, form), Err(ReceiptRefused::BadSignature));
    for signature in ["AAAA", "not base64", ""] {
        assert_eq!(read(&message_url(), signature, form), Err(ReceiptRefused::BadSignature));
    }
    let unsigned = receipts(&*plivo(), "POST", &message_url(), &[], form);
    assert_eq!(unsigned, Err(ReceiptRefused::Unsigned));
    assert_eq!(read(&message_url(), SIGNATURE, ""), Err(ReceiptRefused::Unreadable));
    assert!(!plivo().verifies_receipts());
}

#[test]
fn message_names_the_final_state() {
    let provider = plivo();

    assert_eq!(
        written(&provider.status_request("u1").unwrap()),
        "GET https://api.plivo.com/v1/Account/MA1/Message/u1/\nBasic TUExOnRvazNu\n\n"
    );
    let delivered = r#"{"message_uuid":"u1","message_state":"delivered"}"#;
    assert_eq!(status_of(&*provider, 200, delivered), Some(Receipt::Delivered));
    assert_eq!(status_of(&*provider, 200, r#"{"message_state":"sent"}"#), None);
    assert_eq!(status_of(&*provider, 404, delivered), None);
}

/// Answers as Plivo does.
fn strict(request: &Received) -> Reply {
    let error = |status: u16| {
        Reply::json(status, &json!({"api_id": "a", "error": format!("no to {PHONE}")}))
    };
    if request.basic() != Some(("MA1".to_owned(), "tok3n".to_owned())) {
        return Reply::text(401, "Could not verify your access level for that URL.");
    }
    if (&*request.method, &*request.path) != ("POST", "/v1/Account/MA1/Message/") {
        return error(404);
    }
    if request.header("content-type") != "application/json" {
        return error(400);
    }
    let body = request.json();
    let is_number =
        |it: &Value| it.as_str().is_some_and(|it| it.bytes().all(|byte| byte.is_ascii_digit()));
    let is_good = is_number(&body["dst"])
        && body["text"].is_string()
        && body["src"].is_string() != body["powerpack_uuid"].is_string()
        && body["message_expiry"].as_u64().is_some_and(|it| (5..=10_799).contains(&it));
    if !is_good {
        return error(400);
    }
    Reply::json(202, &json!({"message": "message(s) queued", "message_uuid": ["u1"]}))
}

#[tokio::test]
async fn strict_plivo_accepts_the_request_and_refuses_a_wrong_token() {
    let fake = Fake::strict(strict).await;
    let mut table = table();
    table["url"] = fake.url().into();
    let good = gateway(&SPEC, &table).send(&sms()).await;
    table["auth_token"] = "wrong".into();
    let wrong = gateway(&SPEC, &table).send(&sms()).await;

    assert_eq!(good, Ok(accepted("u1")));
    assert_eq!(wrong, Err(SendError::Misconfigured("status 401".to_owned())));
}
