use application::ports::{Sms, SmsGateway};
use serde_json::json;

use super::*;
use crate::testing::{
    CODE, Fake, PHONE, Received, Reply, check_unexplained, class_of, cyrillic, gateway, judge,
    made, message_id, message_url, problems, receipts, request_of, routed, sms, status_of, written,
};

const NOW: u64 = 1_700_000_000;

fn table() -> Value {
    json!({"access_key": "k3y", "from": "Shop"})
}

fn messagebird() -> Box<dyn Provider> {
    made(&SPEC, &table())
}

#[test]
fn request_has_our_reference_the_validity_and_the_report_url() {
    let id = message_id();

    assert_eq!(
        written(&request_of(&*messagebird(), &sms())),
        format!(
            "POST https://rest.messagebird.com/messages\n\
             AccessKey k3y\n\
             application/json\n\
             {{\"originator\":\"Shop\",\"recipients\":\"{PHONE}\",\"body\":\"Your code: {CODE}\",\
             \"reference\":\"{id}\",\"validity\":300,\"datacoding\":\"plain\",\
             \"reportUrl\":\"https://messager.example/v1/receipts/main?token=t\"}}"
        )
    );
}

#[test]
fn unicode_and_the_sender_of_the_route_are_said() {
    let sms = Sms { text: cyrillic().text, callback: None, ..routed("R", &[]) };
    let body: Value = serde_json::from_slice(request_of(&*messagebird(), &sms).body()).unwrap();

    assert_eq!((&body["datacoding"], &body["originator"]), (&json!("unicode"), &json!("R")));
    assert_eq!(body.get("reportUrl"), None);
}

#[test]
fn name_of_a_sender_has_at_most_11_characters() {
    let problem = "from must have at most 11 characters, if it is a name";

    assert_eq!(problems(&SPEC, &json!({"access_key": "k", "from": "ABCDEFGHIJKL"})), [problem]);
    made(&SPEC, &json!({"access_key": "k", "from": "ABCDEFGHIJK"}));
    made(&SPEC, &json!({"access_key": "k", "from": "+31612345678"}));
}

fn message(status: &str) -> String {
    let item = json!({"recipient": 79_991_234_567_u64, "status": status, "statusErrorCode": 104});
    json!({"id": "m1", "recipients": {"totalCount": 1, "items": [item]}}).to_string()
}

#[test]
fn created_message_is_accepted() {
    assert_eq!(judge(&*messagebird(), 201, &message("sent")), Ok(accepted("m1")));
}

#[test]
fn failure_inside_a_201_is_no_acceptance() {
    let error = judge(&*messagebird(), 201, &message("delivery_failed")).unwrap_err();

    assert_eq!(error.to_string(), "unroutable: status 201, code 104");
    assert_eq!(class_of(&*messagebird(), 201, r#"{"recipients":{}}"#), "ambiguous");
}

#[test]
fn each_code_has_its_outcome() {
    let provider = messagebird();
    for (status, code, parameter, expected) in [
        (401, 2, "access_key", "misconfigured"),
        (422, 9, "recipients", "rejected"),
        (422, 10, "recipients", "rejected"),
        (422, 9, "originator", "misconfigured"),
        (422, 10, "body", "unroutable"),
        (422, 21, "", "unroutable"),
        (422, 25, "", "misconfigured"),
        (404, 20, "", "misconfigured"),
        (404, 98, "", "misconfigured"),
        (422, 99, "", "ambiguous"),
        (422, 77, "", "unroutable"),
        (429, 0, "", "throttled"),
        (500, 0, "", "ambiguous"),
    ] {
        let error = json!({"code": code, "description": PHONE, "parameter": parameter});
        let body = json!({"errors": [error]}).to_string();
        assert_eq!(class_of(&*provider, status, &body), expected, "{status} {code} {parameter}");
    }
}

#[test]
fn unexplained_answer_is_judged_by_its_status() {
    check_unexplained(&*messagebird());
}

fn of(reported: Reported, receipt: Receipt) -> Vec<GatewayReceipt> {
    vec![GatewayReceipt { of: reported, receipt }]
}

#[test]
fn receipt_is_a_query_with_our_reference() {
    let id = message_id();
    let read = |status: &str| {
        let query = format!("id=m1&reference={id}&recipient={PHONE}&status={status}");
        let url = format!("https://sms.example/r?token=t&{query}");
        receipts(&*messagebird(), "GET", &url, &[], "").unwrap()
    };

    assert_eq!(read("delivered"), of(Reported::Message(id), Receipt::Delivered));
    assert_eq!(read("delivery_failed"), of(Reported::Message(id), Receipt::Undelivered));
    assert_eq!(read("expired"), of(Reported::Message(id), Receipt::Undelivered));
    for status in ["scheduled", "sent", "buffered", ""] {
        assert_eq!(read(status), [], "{status}");
    }
    assert!(!messagebird().verifies_receipts());
}

#[test]
fn receipt_without_our_reference_is_found_by_their_id() {
    let read = |url: &str| receipts(&*messagebird(), "GET", url, &[], "");
    // It has the form of a UUID without dashes, as one of ours might have.
    let theirs = "e8077d803532c0b5937c639b60216938";

    let by_id =
        read(&format!("https://sms.example/r?token=t&id={theirs}&status=delivered")).unwrap();

    assert_eq!(by_id, of(Reported::Reference(theirs.to_owned()), Receipt::Delivered));
    assert_eq!(read("https://sms.example/r"), Err(ReceiptRefused::Unreadable));
    let nameless = "https://sms.example/r?status=delivered";
    assert_eq!(read(nameless), Err(ReceiptRefused::Unreadable));
}

fn claims(url: &str, payload: Option<&str>) -> Value {
    json!({
        "iss": "MessageBird", "nbf": NOW - 1, "exp": NOW + 60, "jti": "1",
        "url_hash": sha256_hex(url.as_bytes()),
        "payload_hash": payload.map(|body| sha256_hex(body.as_bytes())),
    })
}

#[test]
fn signed_receipt_is_checked_against_its_url_and_body() {
    let mut table = table();
    table["signing_key"] = "s1gn".into();
    let provider = made(&SPEC, &table);
    let url = format!("{}&reference={}&status=delivered", message_url(), message_id());
    let read = |url: &str, claims: &Value, key: &[u8], body: &str| {
        let token = jwt::sign(claims, key);
        receipts(&*provider, "GET", url, &[("messagebird-signature-jwt", &token)], body)
    };
    let good = claims(&url, None);

    let expected = of(Reported::Message(message_id()), Receipt::Delivered);
    assert_eq!(read(&url, &good, b"s1gn", ""), Ok(expected.clone()));
    assert_eq!(read(&url, &claims(&url, Some("{}")), b"s1gn", "{}"), Ok(expected));
    let other = url.replace("delivered", "expired");
    for (url, claims, key, body) in [
        (&other, good.clone(), &b"s1gn"[..], ""),
        (&url, good.clone(), b"other", ""),
        (&url, good.clone(), b"s1gn", "{}"),
        (&url, claims(&url, Some("{}")), b"s1gn", ""),
        (&url, json!({"iss": "Other", "url_hash": good["url_hash"]}), b"s1gn", ""),
        (&url, json!({"iss": "MessageBird", "url_hash": good["url_hash"]}), b"s1gn", ""),
    ] {
        let read = read(url, &claims, key, body);
        assert_eq!(read, Err(ReceiptRefused::BadSignature), "{claims}");
    }
    let unsigned = receipts(&*provider, "GET", &url, &[], "");
    assert_eq!(unsigned, Err(ReceiptRefused::Unsigned));
    assert!(provider.verifies_receipts());
}

#[test]
fn message_names_the_final_state() {
    let provider = messagebird();

    assert_eq!(
        written(&provider.status_request("m1").unwrap()),
        "GET https://rest.messagebird.com/messages/m1\nAccessKey k3y\n\n"
    );
    assert_eq!(status_of(&*provider, 200, &message("delivered")), Some(Receipt::Delivered));
    assert_eq!(status_of(&*provider, 200, &message("expired")), Some(Receipt::Undelivered));
    assert_eq!(status_of(&*provider, 200, &message("sent")), None);
    assert_eq!(status_of(&*provider, 404, &message("delivered")), None);
}

/// Answers as MessageBird does.
fn strict(request: &Received) -> Reply {
    let error = |status: u16, code: u32, parameter: &str| {
        let error = json!({"code": code, "description": PHONE, "parameter": parameter});
        Reply::json(status, &json!({"errors": [error]}))
    };
    if request.header("authorization") != "AccessKey k3y" {
        return error(401, 2, "access_key");
    }
    if (&*request.method, &*request.path) != ("POST", "/messages") {
        return error(404, 98, "");
    }
    if request.header("content-type") != "application/json" {
        return error(422, 9, "originator");
    }
    let body = request.json();
    for field in ["originator", "recipients", "body", "reference"] {
        if body[field].as_str().is_none_or(str::is_empty) {
            return error(422, 9, field);
        }
    }
    let is_plain = body["body"].as_str().is_some_and(str::is_ascii);
    if body["datacoding"] != if is_plain { "plain" } else { "unicode" } {
        return error(422, 10, "datacoding");
    }
    Reply::json(201, &serde_json::from_str(&message("sent")).unwrap())
}

#[tokio::test]
async fn strict_messagebird_accepts_the_request_and_refuses_a_wrong_key() {
    let fake = Fake::strict(strict).await;
    let mut table = table();
    table["url"] = fake.url().into();
    let good = gateway(&SPEC, &table).send(&sms()).await;
    let unicode = gateway(&SPEC, &table).send(&cyrillic()).await;
    table["access_key"] = "wrong".into();
    let wrong = gateway(&SPEC, &table).send(&sms()).await;

    assert_eq!((good, unicode), (Ok(accepted("m1")), Ok(accepted("m1"))));
    assert_eq!(wrong, Err(SendError::Misconfigured("status 401, code 2".to_owned())));
}
