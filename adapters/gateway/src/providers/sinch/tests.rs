use application::ports::{Sms, SmsGateway};
use serde_json::json;

use super::*;
use crate::testing::{
    CODE, Fake, PHONE, Received, Reply, check_unexplained, class_of, gateway, judge, made,
    message_id, message_url, problems, receipts, request_of, routed, sms, status_of, written,
};

fn table() -> Value {
    json!({"service_plan_id": "plan", "api_token": "t0k3n", "from": "Shop"})
}

fn sinch() -> Box<dyn Provider> {
    made(&SPEC, &table())
}

#[test]
fn request_has_our_id_the_expiry_and_the_callback() {
    let id = message_id();

    assert_eq!(
        written(&request_of(&*sinch(), &sms())),
        format!(
            "POST https://us.sms.api.sinch.com/xms/v1/plan/batches\n\
             Bearer t0k3n\n\
             application/json\n\
             {{\"from\":\"Shop\",\"to\":[\"{PHONE}\"],\"body\":\"Your code: {CODE}\",\
             \"type\":\"mt_text\",\"delivery_report\":\"per_recipient\",\
             \"expire_at\":\"2023-11-14T22:18:20.123Z\",\"client_reference\":\"{id}\",\
             \"callback_url\":\"https://messager.example/v1/receipts/main?id=1&token=t\"}}"
        )
    );
}

#[test]
fn without_a_callback_no_report_is_asked_for() {
    let sms = Sms { callback: None, ..routed("ROUTE", &[]) };
    let body: Value = serde_json::from_slice(request_of(&*sinch(), &sms).body()).unwrap();

    assert_eq!((&body["delivery_report"], &body["from"]), (&json!("none"), &json!("ROUTE")));
}

#[test]
fn expiry_is_within_three_days() {
    let good_for = Duration::from_secs(400_000);
    let sms = Sms { good_for, expires_at: sms().expires_at - sms().good_for + good_for, ..sms() };
    let body: Value = serde_json::from_slice(request_of(&*sinch(), &sms).body()).unwrap();

    assert_eq!(body["expire_at"], "2023-11-17T22:13:20.123Z");
}

#[test]
fn region_or_url_names_the_host() {
    let host = |name: &str, value: &str| {
        let mut table = table();
        table[name] = value.into();
        request_of(&*made(&SPEC, &table), &sms()).uri().host().unwrap().to_owned()
    };

    assert_eq!(host("region", "eu"), "eu.sms.api.sinch.com");
    assert_eq!(host("url", "https://proxy.example/sinch"), "proxy.example");
    assert_eq!(
        problems(&SPEC, &json!({"region": "asia", "url": "x"})),
        [
            "service_plan_id is missing",
            "api_token is missing",
            "from is missing",
            "region must be one of: us, eu, au, br, ca",
            "url must be a URL that begins with http:// or https:// and a host, without \
             credentials and query",
        ]
    );
}

#[test]
fn created_batch_is_accepted() {
    assert_eq!(judge(&*sinch(), 201, r#"{"id":"b1","canceled":false}"#), Ok(accepted("b1")));
}

#[test]
fn refusal_has_its_outcome() {
    let provider = sinch();
    for (status, code, expected) in [
        (400, "syntax_constraint_violation", "unroutable"),
        (400, "syntax_invalid_parameter_format", "unroutable"),
        (400, "", "unroutable"),
        (401, "", "misconfigured"),
        (402, "", "misconfigured"),
        (403, "missing_callback_url", "misconfigured"),
        (404, "resource_not_found", "misconfigured"),
        (429, "", "throttled"),
        (500, "", "ambiguous"),
        (503, "", "unavailable"),
    ] {
        let body = json!({"code": code, "text": format!("{PHONE} is wrong")}).to_string();
        assert_eq!(class_of(&*provider, status, &body), expected, "{status} {code}");
    }
    let body = r#"{"code":"syntax_constraint_violation","text":"no"}"#;
    let error = judge(&*provider, 400, body).unwrap_err();
    assert_eq!(error.to_string(), "unroutable: status 400, code syntax_constraint_violation");
}

#[test]
fn unexplained_answer_is_judged_by_its_status() {
    check_unexplained(&*sinch());
}

fn report(status: &str, reference: Option<&str>) -> String {
    json!({
        "type": "recipient_delivery_report_sms", "batch_id": "b1", "recipient": PHONE, "code": 0,
        "status": status, "client_reference": reference, "at": "2023-11-14T22:13:21Z",
    })
    .to_string()
}

fn of(reported: Reported, receipt: Receipt) -> Vec<GatewayReceipt> {
    vec![GatewayReceipt { of: reported, receipt }]
}

#[test]
fn report_of_a_recipient_names_the_final_state() {
    let id = message_id();
    let reference = id.to_string();
    let read = |status: &str| {
        let body = report(status, Some(&reference));
        receipts(&*sinch(), "POST", "https://sms.example/r", &[], &body).unwrap()
    };

    for status in ["Delivered", "DELIVERED"] {
        assert_eq!(read(status), of(Reported::Message(id), Receipt::Delivered));
    }
    for status in ["Failed", "Expired", "Rejected", "Aborted", "Cancelled", "DELETED"] {
        assert_eq!(read(status), of(Reported::Message(id), Receipt::Undelivered), "{status}");
    }
    for status in ["Queued", "Dispatched", "Unknown", ""] {
        assert_eq!(read(status), [], "{status}");
    }
    assert!(!sinch().verifies_receipts());
}

#[test]
fn report_without_our_reference_is_found_by_the_url_or_by_the_batch() {
    let read =
        |url: &str| receipts(&*sinch(), "POST", url, &[], &report("Delivered", None)).unwrap();

    let by_url = read(&message_url());
    let by_batch = read("https://sms.example/r");

    assert_eq!(by_url, of(Reported::Message(message_id()), Receipt::Delivered));
    assert_eq!(by_batch, of(Reported::Reference("b1".to_owned()), Receipt::Delivered));
}

#[test]
fn report_of_a_batch_has_one_state() {
    let body = |statuses: &[&str]| {
        let statuses: Vec<_> =
            statuses.iter().map(|it| json!({"code": 0, "status": it, "count": 1})).collect();
        json!({"type": "delivery_report_sms", "batch_id": "b1", "statuses": statuses}).to_string()
    };
    let provider = sinch();

    let read = receipts(&*provider, "POST", &message_url(), &[], &body(&["Failed"])).unwrap();
    assert_eq!(read, of(Reported::Message(message_id()), Receipt::Undelivered));
    assert_eq!(
        written(&provider.status_request("b1").unwrap()),
        "GET https://us.sms.api.sinch.com/xms/v1/plan/batches/b1/delivery_report\n\
         Bearer t0k3n\n\n"
    );
    assert_eq!(status_of(&*provider, 200, &body(&["Delivered"])), Some(Receipt::Delivered));
    assert_eq!(status_of(&*provider, 200, &body(&["Queued"])), None);
    assert_eq!(status_of(&*provider, 200, &body(&["Delivered", "Failed"])), None);
    assert_eq!(status_of(&*provider, 404, &body(&["Delivered"])), None);
}

#[test]
fn message_whose_answer_was_lost_is_found_by_our_id() {
    let provider = sinch();
    let id = message_id();
    let found = |status: &str| {
        let report =
            json!({"batch_id": "b1", "client_reference": id.to_string(), "status": status});
        json!({"count": 1, "page": 0, "delivery_reports": [report]}).to_string()
    };

    assert_eq!(
        written(&provider.status_request(&id.to_string()).unwrap()),
        format!(
            "GET https://us.sms.api.sinch.com/xms/v1/plan/delivery_reports?client_reference={id}\n\
             Bearer t0k3n\n\n"
        )
    );
    assert_eq!(status_of(&*provider, 200, &found("Delivered")), Some(Receipt::Delivered));
    assert_eq!(status_of(&*provider, 200, &found("EXPIRED")), Some(Receipt::Undelivered));
    assert_eq!(status_of(&*provider, 200, &found("Dispatched")), None);
    assert_eq!(status_of(&*provider, 200, r#"{"count":0,"delivery_reports":[]}"#), None);
}

#[test]
fn other_bodies_are_unreadable() {
    for body in ["", "[]", "{}", r#"{"batch_id":"b1"}"#, r#"{"batch_id":"b1","type":"mo_text"}"#] {
        let read = receipts(&*sinch(), "POST", &message_url(), &[], body);
        assert_eq!(read, Err(ReceiptRefused::Unreadable), "{body}");
    }
}

/// Answers as Sinch does.
fn strict(request: &Received) -> Reply {
    let error = |status: u16, code: &str| {
        Reply::json(status, &json!({"code": code, "text": format!("no to {PHONE}")}))
    };
    if request.header("authorization") != "Bearer t0k3n" {
        return Reply::text(401, "");
    }
    if (&*request.method, &*request.path) != ("POST", "/xms/v1/plan/batches") {
        return error(404, "resource_not_found");
    }
    if request.header("content-type") != "application/json" {
        return error(415, "unsupported_media_type");
    }
    let body = request.json();
    let expires = body["expire_at"].as_str().unwrap_or_default();
    let is_good = body["to"].as_array().is_some_and(|to| to.len() == 1)
        && body["from"].is_string()
        && body["body"].is_string()
        && DateTime::parse_from_rfc3339(expires).is_ok();
    if !is_good {
        return error(400, "syntax_constraint_violation");
    }
    Reply::json(201, &json!({"id": "b1", "to": body["to"], "canceled": false}))
}

#[tokio::test]
async fn strict_sinch_accepts_the_request_and_refuses_a_wrong_token() {
    let fake = Fake::strict(strict).await;
    let mut table = table();
    table["url"] = fake.url().into();
    let good = gateway(&SPEC, &table).send(&sms()).await;
    table["api_token"] = "wrong".into();
    let wrong = gateway(&SPEC, &table).send(&sms()).await;

    assert_eq!(good, Ok(accepted("b1")));
    assert_eq!(wrong, Err(SendError::Misconfigured("status 401".to_owned())));
}
