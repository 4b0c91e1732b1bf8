use application::ports::SmsGateway;
use serde_json::json;

use super::*;
use crate::testing::{
    CODE, Fake, PHONE, Received, Reply, check_unexplained, class_of, gateway, judge, judge_with,
    made, message_id, problems, receipts, request_of, routed, sms, written,
};

const TOPIC: &str = "arn:aws:sns:eu-central-1:123456789012:sms";
const URL: &str = "https://messager.example/v1/receipts/main?token=t";

fn table() -> Value {
    json!({
        "region": "eu-central-1", "access_key_id": "AKIDEXAMPLE", "secret_access_key": "s3cret",
        "from": "Shop", "configuration_set": "set", "topic_arn": TOPIC,
    })
}

fn aws() -> Box<dyn Provider> {
    made(&SPEC, &table())
}

/// The signatures were made with botocore.
#[test]
fn request_is_signed_as_botocore_signs_it() {
    let id = message_id();
    let request = request_of(&*aws(), &sms());

    assert_eq!(
        written(&request),
        format!(
            "POST https://sms-voice.eu-central-1.amazonaws.com/\n\
             AWS4-HMAC-SHA256 \
             Credential=AKIDEXAMPLE/20231114/eu-central-1/sms-voice/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date;x-amz-target, \
             Signature=97e4dbe7bd79692657af7d7b2f630cf38aa7562324dd8f00df094eb0a9704886\n\
             application/x-amz-json-1.0\n\
             {{\"DestinationPhoneNumber\":\"+{PHONE}\",\"OriginationIdentity\":\"Shop\",\
             \"MessageBody\":\"Your code: {CODE}\",\"MessageType\":\"TRANSACTIONAL\",\
             \"TimeToLive\":300,\"ConfigurationSetName\":\"set\",\
             \"Context\":{{\"messager_id\":\"{id}\"}}}}"
        )
    );
    assert_eq!(request.headers()["x-amz-date"], "20231114T221320Z");
    assert_eq!(request.headers()["x-amz-target"], "PinpointSMSVoiceV2.SendTextMessage");
}

#[test]
fn session_token_is_signed() {
    let mut table = table();
    table["session_token"] = "s3ss10n".into();
    let request = request_of(&*made(&SPEC, &table), &sms());

    let authorization = request.headers()["authorization"].to_str().unwrap();
    assert!(
        authorization.ends_with(
            "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target, \
             Signature=d4bac171ac0f95ab0ab950f9a4350623594a11bc0a709715cd9507f93e2db49a"
        ),
        "{authorization}"
    );
    assert_eq!(request.headers()["x-amz-security-token"], "s3ss10n");
}

#[test]
fn route_gives_the_sender_and_the_ids_of_india() {
    let sms = routed("ROUTE", &[("dlt_entity_id", "1101"), ("dlt_template_id", "1107")]);
    let body: Value = serde_json::from_slice(request_of(&*aws(), &sms).body()).unwrap();

    let india = json!({"IN_ENTITY_ID": "1101", "IN_TEMPLATE_ID": "1107"});
    assert_eq!(body["DestinationCountryParameters"], india);
    assert_eq!(body["OriginationIdentity"], "ROUTE");
}

#[test]
fn without_a_sender_aws_chooses_one() {
    let table = json!({"region": "us-east-1", "access_key_id": "A", "secret_access_key": "s"});
    let body: Value =
        serde_json::from_slice(request_of(&*made(&SPEC, &table), &sms()).body()).unwrap();

    for field in ["OriginationIdentity", "ConfigurationSetName", "DestinationCountryParameters"] {
        assert_eq!(body.get(field), None, "{field}");
    }
}

#[test]
fn settings_are_checked() {
    assert_eq!(
        problems(&SPEC, &json!({"region": "eu/../x"})),
        [
            "access_key_id is missing",
            "secret_access_key is missing",
            "region must have letters, digits and dashes only",
        ]
    );
}

#[test]
fn debug_hides_the_secrets() {
    let mut table = table();
    table["session_token"] = "s3ss10n".into();
    let provider = made(&SPEC, &table);
    let shown = format!("{provider:?} {:?}", request_of(&*provider, &sms()).headers());

    for secret in ["s3cret", "s3ss10n", "Signature"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn message_id_is_the_reference() {
    assert_eq!(judge(&*aws(), 200, r#"{"MessageId":"m1"}"#), Ok(accepted("m1")));
}

fn error(kind: &str, reason: &str) -> String {
    json!({"__type": kind, "Message": format!("no to {PHONE}"), "Reason": reason}).to_string()
}

#[test]
fn each_error_has_its_outcome() {
    let provider = aws();
    for (status, kind, reason, expected) in [
        (400, "ThrottlingException", "", "throttled"),
        (400, "com.amazonaws.smsvoice#ThrottlingException", "", "throttled"),
        (500, "InternalServerException", "", "ambiguous"),
        (503, "ServiceUnavailable", "", "unavailable"),
        (400, "AccessDeniedException", "ACCOUNT_DISABLED", "misconfigured"),
        (
            400,
            "ServiceQuotaExceededException",
            "MONTHLY_SPEND_LIMIT_REACHED_FOR_TEXT",
            "misconfigured",
        ),
        (400, "ResourceNotFoundException", "", "misconfigured"),
        (400, "UnrecognizedClientException", "", "misconfigured"),
        (400, "ExpiredTokenException", "", "misconfigured"),
        (403, "InvalidSignatureException", "", "misconfigured"),
        (400, "ValidationException", "DESTINATION_COUNTRY_BLOCKED", "unroutable"),
        (400, "ValidationException", "COUNTRY_NOT_ENABLED", "unroutable"),
        (400, "ValidationException", "SENDER_ID_NOT_SUPPORTED", "unroutable"),
        (400, "ValidationException", "PRICE_OVER_THRESHOLD", "unroutable"),
        (400, "ValidationException", "INVALID_ARN", "misconfigured"),
        (400, "ConflictException", "DESTINATION_PHONE_NUMBER_OPTED_OUT", "unroutable"),
        (400, "ConflictException", "DESTINATION_PHONE_NUMBER_NOT_VERIFIED", "unroutable"),
        (400, "ConflictException", "NO_ORIGINATION_IDENTITIES_FOUND", "unroutable"),
        (400, "ConflictException", "RESOURCE_NOT_ACTIVE", "misconfigured"),
        (400, "SerializationException", "", "unroutable"),
    ] {
        assert_eq!(class_of(&*provider, status, &error(kind, reason)), expected, "{kind} {reason}");
    }
    let refused = judge(&*provider, 400, &error("ConflictException", "RESOURCE_NOT_ACTIVE"));
    let detail = "status 400, code RESOURCE_NOT_ACTIVE".to_owned();
    assert_eq!(refused, Err(SendError::Misconfigured(detail)));
}

#[test]
fn field_that_is_wrong_decides() {
    let provider = aws();
    for (field, expected) in [
        ("DestinationPhoneNumber", "rejected"),
        ("OriginationIdentity", "misconfigured"),
        ("ConfigurationSetName", "misconfigured"),
        ("MessageBody", "unroutable"),
    ] {
        let body = json!({
            "__type": "ValidationException", "Reason": "FIELD_VALIDATION_FAILED",
            "Fields": [{"Name": field, "Message": PHONE}],
        });
        assert_eq!(class_of(&*provider, 400, &body.to_string()), expected, "{field}");
    }
}

#[test]
fn kind_of_an_error_may_be_in_a_header() {
    let kind = "ThrottlingException:http://internal.amazon.com/coral/";
    let headers = [("x-amzn-errortype", kind), ("retry-after", "3")];

    let error = judge_with(&*aws(), 400, &headers, Some("{}")).unwrap_err();

    let detail = "status 400, code ThrottlingException".to_owned();
    let retry_after = Some(std::time::Duration::from_secs(3));
    assert_eq!(error, SendError::Throttled { detail, retry_after });
}

#[test]
fn unexplained_answer_is_judged_by_its_status() {
    check_unexplained(&*aws());
}

fn event(kind: &str, is_final: bool, context: &Value) -> String {
    json!({
        "eventType": kind, "eventVersion": "1.0", "isFinal": is_final, "messageId": "m1",
        "destinationPhoneNumber": format!("+{PHONE}"), "context": context,
    })
    .to_string()
}

fn notification(topic: &str, message: &str) -> String {
    json!({"Type": "Notification", "MessageId": "n1", "TopicArn": topic, "Message": message})
        .to_string()
}

fn read(body: &str) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
    receipts(&*aws(), "POST", URL, &[("x-amz-sns-message-type", "Notification")], body)
}

#[test]
fn notification_brings_the_final_state_of_our_message() {
    let context = json!({"messager_id": message_id().to_string()});
    let state =
        |kind, is_final| read(&notification(TOPIC, &event(kind, is_final, &context))).unwrap();
    let of = |receipt| vec![GatewayReceipt { of: Reported::Message(message_id()), receipt }];

    assert_eq!(state("TEXT_DELIVERED", true), of(Receipt::Delivered));
    for kind in [
        "TEXT_INVALID",
        "TEXT_INVALID_MESSAGE",
        "TEXT_UNREACHABLE",
        "TEXT_CARRIER_UNREACHABLE",
        "TEXT_BLOCKED",
        "TEXT_CARRIER_BLOCKED",
        "TEXT_SPAM",
        "TEXT_TTL_EXPIRED",
        "TEXT_PROTECT_BLOCKED",
    ] {
        assert_eq!(state(kind, true), of(Receipt::Undelivered), "{kind}");
        assert_eq!(state(kind, false), [], "{kind}");
    }
    for kind in ["TEXT_QUEUED", "TEXT_PENDING", "TEXT_SENT", "TEXT_SUCCESSFUL", "TEXT_UNKNOWN"] {
        assert_eq!(state(kind, true), [], "{kind}");
    }
    assert!(!aws().verifies_receipts());
}

#[test]
fn event_without_our_context_is_found_by_the_message_id() {
    let body = notification(TOPIC, &event("TEXT_DELIVERED", true, &json!({})));

    let of = Reported::Reference("m1".to_owned());
    assert_eq!(read(&body), Ok(vec![GatewayReceipt { of, receipt: Receipt::Delivered }]));
}

#[test]
fn event_may_come_without_an_envelope() {
    let body = event("TEXT_DELIVERED", true, &json!({}));
    let raw = |topic| {
        let headers = [("x-amz-sns-rawdelivery", "true"), ("x-amz-sns-topic-arn", topic)];
        receipts(&*aws(), "POST", URL, &headers, &body)
    };

    assert_eq!(raw(TOPIC).unwrap().len(), 1);
    assert_eq!(raw("arn:aws:sns:eu-central-1:1:other"), Err(ReceiptRefused::Unreadable));
}

#[test]
fn other_topics_and_bodies_are_refused() {
    let good = event("TEXT_DELIVERED", true, &json!({}));
    for body in [
        notification("arn:aws:sns:eu-central-1:1:other", &good),
        notification(TOPIC, "not json"),
        good.clone(),
        String::new(),
        json!({"Type": "Else", "TopicArn": TOPIC}).to_string(),
        json!({"Type": "SubscriptionConfirmation", "TopicArn": TOPIC, "Token": "a b"}).to_string(),
        json!({"Type": "SubscriptionConfirmation", "TopicArn": "other", "Token": "a"}).to_string(),
    ] {
        assert_eq!(read(&body), Err(ReceiptRefused::Unreadable), "{body}");
    }
    let mut table = table();
    table["topic_arn"] = "".into();
    let without_topic = made(&SPEC, &table);
    let read = receipts(&*without_topic, "POST", URL, &[], &notification(TOPIC, &good));
    assert_eq!(read, Err(ReceiptRefused::Unreadable));
}

#[test]
fn questions_of_sns_are_no_receipts() {
    for kind in ["SubscriptionConfirmation", "UnsubscribeConfirmation"] {
        let body = json!({"Type": kind, "TopicArn": TOPIC, "Token": "2336412f37"}).to_string();
        assert_eq!(read(&body), Ok(Vec::new()), "{kind}");
    }
}

/// Answers as AWS does: it computes the signature again.
fn strict(request: &Received) -> Reply {
    let error = |status: u16, kind: &str| Reply::json(status, &json!({"__type": kind}));
    let names = ["content-type", "host", "x-amz-date", "x-amz-target"];
    let headers: Vec<_> = names.iter().map(|name| (*name, request.header(name))).collect();
    let signer = Signer {
        access_key_id: "AKIDEXAMPLE",
        secret_access_key: "s3cret",
        region: "eu-central-1",
        service: "sms-voice",
    };
    let date = request.header("x-amz-date");
    let expected = signer.authorization(&request.method, &headers, date, request.body.as_bytes());
    if request.header("authorization") != expected || request.path != "/" {
        return error(400, "InvalidSignatureException");
    }
    if request.header("x-amz-target") != TARGET {
        return error(400, "UnknownOperationException");
    }
    if request.header("content-type") != "application/x-amz-json-1.0" {
        return error(400, "SerializationException");
    }
    let body = request.json();
    if !body["DestinationPhoneNumber"].as_str().is_some_and(|to| to.starts_with('+')) {
        let fields = json!([{"Name": "DestinationPhoneNumber"}]);
        let body = json!({"__type": "ValidationException", "Fields": fields});
        return Reply::json(400, &body);
    }
    if !body["TimeToLive"].as_u64().is_some_and(|it| (5..=259_200).contains(&it)) {
        return error(400, "ValidationException");
    }
    Reply::json(200, &json!({"MessageId": "m1"}))
}

#[tokio::test]
async fn strict_aws_accepts_the_request_and_refuses_a_wrong_secret() {
    let fake = Fake::strict(strict).await;
    let mut table = table();
    table["url"] = fake.url().into();
    let good = gateway(&SPEC, &table).send(&sms()).await;
    table["secret_access_key"] = "wrong".into();
    let wrong = gateway(&SPEC, &table).send(&sms()).await;

    assert_eq!(good, Ok(accepted("m1")));
    let detail = "status 400, code InvalidSignatureException".to_owned();
    assert_eq!(wrong, Err(SendError::Misconfigured(detail)));
    // One `Host`, which is the one that was signed.
    assert_eq!(fake.received()[0].headers.get_all("host").iter().count(), 1);
}
