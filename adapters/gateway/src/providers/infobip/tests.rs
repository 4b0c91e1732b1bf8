use application::ports::{Sms, SmsGateway};

use super::*;
use crate::testing::{
    CODE, Fake, PHONE, Received, Reply, check_unexplained, class_of, gateway, judge, made,
    message_id, problems, receipts, request_of, routed, sms, status_of, written,
};

fn table() -> Value {
    json!({"api_key": "k3y", "from": "Shop", "url": "https://abc.api.infobip.com"})
}

fn infobip() -> Box<dyn Provider> {
    made(&SPEC, &table())
}

#[test]
fn request_has_our_id_the_validity_and_the_webhook() {
    let id = message_id();
    let body = format!(
        "{{\"messages\":[{{\"content\":{{\"text\":\"Your code: {CODE}\"}},\
         \"destinations\":[{{\"messageId\":\"{id}\",\"to\":\"{PHONE}\"}}],\
         \"options\":{{\"validityPeriod\":{{\"amount\":5,\"timeUnit\":\"MINUTES\"}}}},\
         \"sender\":\"Shop\",\
         \"webhooks\":{{\"callbackData\":\"{id}\",\"contentType\":\"application/json\",\
         \"delivery\":{{\"intermediateReport\":false,\
         \"url\":\"https://messager.example/v1/receipts/main?id=1&token=t\"}}}}}}]}}"
    );

    assert_eq!(
        written(&request_of(&*infobip(), &sms())),
        format!(
            "POST https://abc.api.infobip.com/sms/3/messages\nApp k3y\napplication/json\n{body}"
        )
    );
}

#[test]
fn route_gives_the_sender_and_the_ids_of_india() {
    let sms = routed("ROUTE", &[("dlt_entity_id", "1101"), ("dlt_template_id", "1107")]);
    let sms = Sms { callback: None, ..sms };
    let body: Value = serde_json::from_slice(request_of(&*infobip(), &sms).body()).unwrap();
    let message = &body["messages"][0];

    let india = json!({"indiaDlt": {"principalEntityId": "1101", "contentTemplateId": "1107"}});
    assert_eq!(message["options"]["regional"], india);
    assert_eq!((&message["sender"], &message["webhooks"]), (&json!("ROUTE"), &Value::Null));
}

#[test]
fn personal_base_url_is_required() {
    assert_eq!(
        problems(&SPEC, &json!({"api_key": "k", "deduplicates": "maybe"})),
        ["from is missing", "url is missing", "deduplicates must be true or false"]
    );
}

#[test]
fn idempotency_is_claimed_only_if_the_account_has_it() {
    let mut table = table();
    table["deduplicates"] = true.into();

    assert!(!infobip().deduplicates());
    assert!(made(&SPEC, &table).deduplicates());
}

fn message(group: u64, name: &str) -> String {
    let status = json!({"groupId": group, "groupName": "G", "id": 7, "name": name,
        "description": format!("to {PHONE}")});
    json!({"bulkId": "b", "messages": [{"messageId": "m1", "destination": PHONE, "status": status}]})
        .to_string()
}

#[test]
fn pending_message_is_accepted_under_its_id() {
    for (group, name) in [(0, "ACCEPTED"), (1, "PENDING_ACCEPTED"), (3, "DELIVERED_TO_OPERATOR")] {
        assert_eq!(judge(&*infobip(), 200, &message(group, name)), Ok(accepted("m1")), "{name}");
    }
}

#[test]
fn repeated_id_is_a_message_that_infobip_has() {
    assert_eq!(judge(&*infobip(), 200, &message(5, DUPLICATE)), Ok(accepted("m1")));
}

#[test]
fn failure_inside_a_200_has_its_outcome() {
    let provider = infobip();
    for (group, name, expected) in [
        (5, "REJECTED_INVALID_DESTINATION", "rejected"),
        (5, "MISSING_TO", "rejected"),
        (5, "REJECTED_MESSAGE_TOO_LONG", "unroutable"),
        (5, "REJECTED_NOT_ENOUGH_CREDITS", "misconfigured"),
        (5, "REJECTED_SENDER", "misconfigured"),
        (5, "REJECTED_SYSTEM_ERROR", "unavailable"),
        (5, "REJECTED_NETWORK", "unroutable"),
        (5, "REJECTED_FLOODING_FILTER", "unroutable"),
        (5, "REJECTED_NEW", "unroutable"),
        (2, "UNDELIVERABLE_NOT_DELIVERED", "unroutable"),
        (4, "EXPIRED_EXPIRED", "unroutable"),
        (9, "NEW_GROUP", "ambiguous"),
    ] {
        assert_eq!(class_of(&*provider, 200, &message(group, name)), expected, "{name}");
    }
    for body in [r#"{"messages":[]}"#, r#"{"messages":[{"status":{"groupId":1}}]}"#] {
        assert_eq!(class_of(&*provider, 200, body), "ambiguous", "{body}");
    }
    let error = judge(&*provider, 200, &message(5, "REJECTED_NETWORK")).unwrap_err();
    assert_eq!(error.to_string(), "unroutable: status 200, code REJECTED_NETWORK");
}

#[test]
fn violations_say_what_is_wrong() {
    let provider = infobip();
    for (property, expected) in [
        ("messages[0].destinations[0].to", "rejected"),
        ("messages[0].sender", "misconfigured"),
        ("messages[0].destinations[0].messageId", "unroutable"),
        ("messages[0].content.text", "unroutable"),
        ("messages[0].webhooks.delivery.url", "unroutable"),
        ("messages[0].options.validityPeriod", "unroutable"),
    ] {
        let body = json!({"errorCode": "E400", "description": PHONE, "violations": [
            {"property": property, "violation": format!("{PHONE} is wrong")},
        ]});
        assert_eq!(class_of(&*provider, 400, &body.to_string()), expected, "{property}");
    }
    let body = r#"{"errorCode":"E401","description":"no"}"#;
    assert_eq!(class_of(&*provider, 401, body), "misconfigured");
    assert_eq!(class_of(&*provider, 500, r#"{"errorCode":"E500"}"#), "ambiguous");
}

#[test]
fn unexplained_answer_is_judged_by_its_status() {
    check_unexplained(&*infobip());
}

#[test]
fn report_names_our_id_and_the_final_state() {
    let id = message_id();
    let read = |message_id: &str, group: u64, state: u64| {
        let body = json!({"results": [{
            "messageId": message_id, "to": PHONE, "callbackData": id.to_string(),
            "status": {"groupId": group, "id": state}, "error": {"groupId": 0, "permanent": false},
        }]});
        let url = "https://sms.example/v1/receipts/main";
        receipts(&*infobip(), "POST", url, &[], &body.to_string()).unwrap()
    };
    let of = |receipt| vec![GatewayReceipt { of: Reported::Message(id), receipt }];

    assert_eq!(read(&id.to_string(), 3, 5), of(Receipt::Delivered));
    assert_eq!(read("theirs", 3, 5), of(Receipt::Delivered));
    assert_eq!(read("theirs", 3, 2), []);
    assert_eq!(read("theirs", 1, 7), []);
    assert_eq!(read("theirs", 0, 0), []);
    for group in [2, 4, 5] {
        assert_eq!(read("theirs", group, 9), of(Receipt::Undelivered), "{group}");
    }
    assert!(!infobip().verifies_receipts());
}

#[test]
fn one_call_has_many_reports() {
    let status = json!({"groupId": 3, "id": 5});
    let body = json!({"results": [
        {"messageId": "a", "status": status}, {"messageId": "b", "status": status}, {"status": status},
    ]});
    let url = "https://sms.example/v1/receipts/main";

    let read = receipts(&*infobip(), "POST", url, &[], &body.to_string()).unwrap();

    let of: Vec<_> = read.into_iter().map(|it| it.of).collect();
    assert_eq!(of, ["a", "b"].map(|id| Reported::Reference(id.to_owned())));
    for body in ["", "{}", "[]", r#"{"results":1}"#] {
        let read = receipts(&*infobip(), "POST", url, &[], body);
        assert_eq!(read, Err(ReceiptRefused::Unreadable), "{body}");
    }
}

#[test]
fn log_names_the_final_state() {
    let provider = infobip();

    assert_eq!(
        written(&provider.status_request("m 1").unwrap()),
        "GET https://abc.api.infobip.com/sms/3/logs?messageId=m+1\nApp k3y\n\n"
    );
    let log = r#"{"results":[{"messageId":"m1","status":{"groupId":3,"id":5}}]}"#;
    assert_eq!(status_of(&*provider, 200, log), Some(Receipt::Delivered));
    assert_eq!(status_of(&*provider, 500, log), None);
    assert_eq!(status_of(&*provider, 200, r#"{"results":[]}"#), None);
}

/// Answers as Infobip does.
fn strict(request: &Received) -> Reply {
    let error = |status: u16, code: &str, property: &str| {
        let violations = json!([{"property": property, "violation": "is wrong"}]);
        Reply::json(status, &json!({"errorCode": code, "violations": violations}))
    };
    if request.header("authorization") != "App k3y" {
        return error(401, "E401", "");
    }
    if (&*request.method, &*request.path) != ("POST", "/sms/3/messages") {
        return error(404, "E404", "");
    }
    if request.header("content-type") != "application/json" {
        return error(415, "E415", "");
    }
    let message = &request.json()["messages"][0];
    let to = &message["destinations"][0]["to"];
    if !to.as_str().is_some_and(|to| to.bytes().all(|byte| byte.is_ascii_digit())) {
        return error(400, "E400", "messages[0].destinations[0].to");
    }
    if !message["sender"].is_string() {
        return error(400, "E400", "messages[0].sender");
    }
    let unit = &message["options"]["validityPeriod"]["timeUnit"];
    if !message["content"]["text"].is_string() || unit != "MINUTES" {
        return error(400, "E400", "messages[0]");
    }
    let status =
        json!({"groupId": 1, "groupName": "PENDING", "id": 26, "name": "PENDING_ACCEPTED"});
    let id = &message["destinations"][0]["messageId"];
    Reply::json(200, &json!({"messages": [{"messageId": id, "status": status}]}))
}

#[tokio::test]
async fn strict_infobip_accepts_the_request_and_refuses_a_wrong_key() {
    let fake = Fake::strict(strict).await;
    let mut table = table();
    table["url"] = fake.url().into();
    let good = gateway(&SPEC, &table).send(&sms()).await;
    table["api_key"] = "wrong".into();
    let wrong = gateway(&SPEC, &table).send(&sms()).await;

    assert_eq!(good, Ok(accepted(message_id().to_string())));
    assert_eq!(wrong, Err(SendError::Misconfigured("status 401, code E401".to_owned())));
}
