use application::ports::{Sms, SmsGateway};
use serde_json::{Value, json};

use super::*;
use crate::{
    signing::hmac,
    testing::{
        CODE, Fake, PHONE, Received, Reply, check_unexplained, class_of, cyrillic, gateway, judge,
        made, message_id, message_url, problems, receipts, request_of, routed, sms, status_of,
        written,
    },
};

fn table() -> Value {
    json!({"account_sid": "AC1", "auth_token": "12345", "from": "+15005550006"})
}

fn twilio() -> Box<dyn Provider> {
    made(&SPEC, &table())
}

#[test]
fn request_is_a_form_with_the_callback_and_the_validity() {
    let request = request_of(&*twilio(), &sms());

    assert_eq!(
        written(&request),
        "POST https://api.twilio.com/2010-04-01/Accounts/AC1/Messages.json\n\
         Basic QUMxOjEyMzQ1\n\
         application/x-www-form-urlencoded\n\
         To=%2B79991234567&From=%2B15005550006&Body=Your+code%3A+482915&ValidityPeriod=300\
         &StatusCallback=https%3A%2F%2Fmessager.example%2Fv1%2Freceipts%2Fmain%3Fid%3D1%26token%3Dt"
    );
}

#[test]
fn request_without_a_callback_has_none() {
    let request = request_of(&*twilio(), &Sms { callback: None, ..cyrillic() });

    let body = str::from_utf8(request.body()).unwrap();
    assert!(!body.contains("StatusCallback"), "{body}");
    assert!(body.contains("Body=%D0%92%D0%B0%D1%88+"), "{body}");
}

#[test]
fn messaging_service_chooses_the_sender_unless_the_route_does() {
    let table = json!({
        "account_sid": "AC1", "auth_token": "12345", "from": "Shop", "messaging_service_sid": "MG1",
    });
    let provider = made(&SPEC, &table);
    let body = |sms: &Sms| String::from_utf8(request_of(&*provider, sms).body().to_vec()).unwrap();

    let own = body(&sms());
    let route = body(&routed("ROUTE", &[]));

    assert!(own.contains("&MessagingServiceSid=MG1&") && !own.contains("From="), "{own}");
    assert!(route.contains("&From=ROUTE&") && !route.contains("MessagingServiceSid"), "{route}");
}

#[test]
fn sender_is_required_in_one_of_two_fields() {
    assert_eq!(
        problems(&SPEC, &json!({"auth_token": "t", "url": "x"})),
        [
            "account_sid is missing",
            "url must be a URL that begins with http:// or https:// and a host, without \
             credentials and query",
            "from is missing, and so is messaging_service_sid",
        ]
    );
}

#[test]
fn debug_hides_the_token() {
    let shown = format!("{:?}", twilio());

    assert!(!shown.contains("12345") && !shown.contains("QUMx"), "{shown}");
}

#[test]
fn created_message_is_accepted_under_its_sid() {
    let body = r#"{"sid":"SM1","status":"queued","error_code":null,"num_segments":"1"}"#;

    assert_eq!(judge(&*twilio(), 201, body), Ok(accepted("SM1")));
}

#[test]
fn failure_inside_a_success_is_no_acceptance() {
    let provider = twilio();
    for (body, expected) in [
        (r#"{"sid":"SM1","status":"failed","error_code":21211}"#, "rejected"),
        (r#"{"sid":"SM1","status":"failed","error_code":30002}"#, "misconfigured"),
        (r#"{"sid":"SM1","status":"failed","error_code":99999}"#, "unroutable"),
        (r#"{"status":"queued"}"#, "ambiguous"),
        (r#"{"sid":""}"#, "ambiguous"),
    ] {
        assert_eq!(class_of(&*provider, 201, body), expected, "{body}");
    }
}

#[test]
fn each_code_has_its_outcome() {
    let provider = twilio();
    for (status, code, expected) in [
        (400, 21211, "rejected"),
        (400, 21614, "rejected"),
        (400, 21408, "unroutable"),
        (400, 21608, "unroutable"),
        (400, 21610, "unroutable"),
        (400, 21612, "unroutable"),
        (400, 99999, "unroutable"),
        (400, 21212, "misconfigured"),
        (400, 21606, "misconfigured"),
        (400, 21703, "misconfigured"),
        (400, 21611, "throttled"),
        (401, 20003, "misconfigured"),
        (404, 20404, "misconfigured"),
        (429, 20429, "throttled"),
        (500, 20500, "ambiguous"),
        (503, 20503, "unavailable"),
    ] {
        let body = format!(r#"{{"code":{code},"message":"to {PHONE}","status":{status}}}"#);
        assert_eq!(class_of(&*provider, status, &body), expected, "{status} {code}");
    }
    let detail = judge(&*provider, 400, r#"{"code":21211}"#).unwrap_err();
    assert_eq!(detail.to_string(), "rejected: status 400, code 21211");
}

#[test]
fn unexplained_answer_is_judged_by_its_status() {
    check_unexplained(&*twilio());
}

#[test]
fn status_query_names_the_final_state() {
    let provider = twilio();
    let request = provider.status_request("SM/1").unwrap();

    assert_eq!(
        written(&request),
        "GET https://api.twilio.com/2010-04-01/Accounts/AC1/Messages/SM%2F1.json\n\
         Basic QUMxOjEyMzQ1\n\n"
    );
    for (status, body, expected) in [
        (200, r#"{"status":"delivered"}"#, Some(Receipt::Delivered)),
        (200, r#"{"status":"undelivered"}"#, Some(Receipt::Undelivered)),
        (200, r#"{"status":"failed"}"#, Some(Receipt::Undelivered)),
        (200, r#"{"status":"sent"}"#, None),
        (404, r#"{"status":"failed"}"#, None),
        (200, "", None),
    ] {
        assert_eq!(status_of(&*provider, status, body), expected, "{body}");
    }
}

/// The call and the signature that Twilio's documents and SDKs have as their example.
const URL: &str = "https://mycompany.com/myapp.php?foo=1&bar=2";
const FORM: &str = "CallSid=CA1234567890ABCDE&Caller=%2B12349013030&Digits=1234&From=%2B12349013030\
                    &To=%2B18005551212";
const SIGNATURE: &str = "0/KCTR6DLpKmkAf8muzZqo1nDgQ=";

#[test]
fn published_signature_is_accepted() {
    let read = |url, signature, form| {
        receipts(&*twilio(), "POST", url, &[("x-twilio-signature", signature)], form)
    };

    // The call is signed, and it is none about a message.
    assert_eq!(read(URL, SIGNATURE, FORM), Err(ReceiptRefused::Unreadable));
    let with_port = "https://mycompany.com:443/myapp.php?foo=1&bar=2";
    assert_eq!(read(with_port, SIGNATURE, FORM), Err(ReceiptRefused::Unreadable));
    let other_url = "https://mycompany.com/myapp.php?foo=1&bar=3";
    assert_eq!(read(other_url, SIGNATURE, FORM), Err(ReceiptRefused::BadSignature));
    let other_form = FORM.replace("1234&", "1235&");
    assert_eq!(read(URL, SIGNATURE, &other_form), Err(ReceiptRefused::BadSignature));
    assert_eq!(read(URL, "AAAA", FORM), Err(ReceiptRefused::BadSignature));
    assert_eq!(read(URL, "not base64", FORM), Err(ReceiptRefused::BadSignature));
    assert_eq!(receipts(&*twilio(), "POST", URL, &[], FORM), Err(ReceiptRefused::Unsigned));
}

/// Reads a form that is signed as Twilio signs it.
fn read_signed(url: &str, pairs: &[(&str, &str)]) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
    let sorted: BTreeSet<_> = pairs.iter().collect();
    let text: String = sorted.iter().flat_map(|(name, value)| [*name, *value]).collect();
    let parts = [url.as_bytes(), text.as_bytes()];
    let signature = STANDARD.encode(hmac(HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"12345", &parts));
    let form = crate::request::form(pairs);
    receipts(&*twilio(), "POST", url, &[("x-twilio-signature", &signature)], &form)
}

#[test]
fn receipt_names_the_message_of_the_url_or_else_the_sid() {
    let of = |url: &str, status| {
        let pairs = [("MessageSid", "SM1"), ("MessageStatus", status), ("ErrorCode", "30003")];
        read_signed(url, &pairs).unwrap()
    };
    let message = |receipt| vec![GatewayReceipt { of: Reported::Message(message_id()), receipt }];

    assert_eq!(of(&message_url(), "delivered"), message(Receipt::Delivered));
    assert_eq!(of(&message_url(), "undelivered"), message(Receipt::Undelivered));
    assert_eq!(of(&message_url(), "failed"), message(Receipt::Undelivered));
    for status in ["accepted", "scheduled", "queued", "sending", "sent", "receiving", "new"] {
        assert_eq!(of(&message_url(), status), [], "{status}");
    }
    let by_sid = of("https://sms.example/v1/receipts/main?token=t", "delivered");
    let of = Reported::Reference("SM1".to_owned());
    assert_eq!(by_sid, [GatewayReceipt { of, receipt: Receipt::Delivered }]);
    assert!(twilio().verifies_receipts());
}

#[test]
fn repeated_parameters_are_signed_once_each_in_order() {
    let pairs = [
        ("MessageStatus", "delivered"),
        ("MessageSid", "SM1"),
        ("Tag", "b"),
        ("Tag", "a"),
        ("Tag", "b"),
    ];

    assert_eq!(read_signed(&message_url(), &pairs).unwrap().len(), 1);
}

#[test]
fn body_that_is_no_form_is_signed_by_its_hash() {
    let body = r#"{"MessageSid":"SM1"}"#;
    let url = format!("https://sms.example/r?bodySHA256={}", sha256_hex(body.as_bytes()));
    let tag = hmac(HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"12345", &[url.as_bytes()]);
    let headers = [("x-twilio-signature", &*STANDARD.encode(tag))];
    let read = |body| receipts(&*twilio(), "POST", &url, &headers, body);

    assert_eq!(read(body), Err(ReceiptRefused::Unreadable));
    assert_eq!(read("{}"), Err(ReceiptRefused::BadSignature));
}

/// Answers as Twilio does: it refuses wrong credentials, types and fields.
fn strict(request: &Received) -> Reply {
    let error = |status: u16, code: u32| {
        Reply::json(status, &json!({"code": code, "message": "no", "status": status}))
    };
    let form: std::collections::BTreeMap<_, _> = request.form().into_iter().collect();
    let field = |name: &str| form.get(name).map_or("", String::as_str);
    if request.basic() != Some(("AC1".to_owned(), "12345".to_owned())) {
        return error(401, 20003);
    }
    if request.path != "/2010-04-01/Accounts/AC1/Messages.json" || request.method != "POST" {
        return error(404, 20404);
    }
    if request.header("content-type") != "application/x-www-form-urlencoded" {
        return error(415, 20415);
    }
    match (field("To"), field("From"), field("Body"), field("ValidityPeriod").parse()) {
        ("", ..) => error(400, 21604),
        (to, ..) if !to.starts_with('+') => error(400, 21211),
        (_, "", ..) => error(400, 21603),
        (_, _, "", _) => error(400, 21602),
        (_, _, _, Ok(1..=36_000)) => Reply::json(
            201,
            &json!({"sid": "SM1", "status": "queued", "error_code": null, "body": field("Body")}),
        ),
        _ => error(400, 21640),
    }
}

#[tokio::test]
async fn strict_twilio_accepts_the_request_and_refuses_a_wrong_token() {
    let fake = Fake::strict(strict).await;
    let mut table = table();
    table["url"] = fake.url().into();
    let good = gateway(&SPEC, &table).send(&sms()).await;
    table["auth_token"] = "wrong".into();
    let wrong = gateway(&SPEC, &table).send(&sms()).await;

    assert_eq!(good, Ok(accepted("SM1")));
    let detail = "status 401, code 20003".to_owned();
    assert_eq!(wrong, Err(SendError::Misconfigured(detail)));
    let received = fake.received();
    assert!(received[0].body.contains(CODE) && received.len() == 2);
}
