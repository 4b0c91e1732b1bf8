use application::ports::{Sms, SmsGateway};
use serde_json::json;

use super::*;
use crate::{
    signing::{hex, hmac},
    testing::{
        CODE, Fake, PHONE, Received, Reply, check_unexplained, class_of, cyrillic, gateway, judge,
        made, message_id, message_url, problems, receipts, request_of, routed, sms, written,
    },
};

const NOW: u64 = 1_700_000_000;

fn table() -> Value {
    json!({"api_key": "key", "api_secret": "s3cret", "from": "Shop"})
}

fn vonage() -> Box<dyn Provider> {
    made(&SPEC, &table())
}

fn signed_vonage(method: &str) -> Box<dyn Provider> {
    let mut table = table();
    table["signature_secret"] = "sign".into();
    table["signature_method"] = method.into();
    made(&SPEC, &table)
}

#[test]
fn request_is_a_form_with_our_id_and_the_validity() {
    let id = message_id();

    assert_eq!(
        written(&request_of(&*vonage(), &sms())),
        format!(
            "POST https://rest.nexmo.com/sms/json\n\n\
             application/x-www-form-urlencoded\n\
             api_key=key&api_secret=s3cret&from=Shop&to=79991234567&text=Your+code%3A+482915\
             &type=text&ttl=300000&client-ref={id}&callback=https%3A%2F%2Fmessager.example%2Fv1\
             %2Freceipts%2Fmain%3Ftoken%3Dt"
        )
    );
}

#[test]
fn unicode_sender_and_ids_of_india_are_said() {
    let sms = routed("ROUTE", &[("dlt_entity_id", "1101"), ("dlt_template_id", "1107")]);
    let sms = Sms { text: cyrillic().text, ..sms };
    let request = request_of(&*vonage(), &sms);
    let body = str::from_utf8(request.body()).unwrap();

    for part in ["from=ROUTE&", "type=unicode&", "&entity-id=1101", "&content-id=1107"] {
        assert!(body.contains(part), "{body}");
    }
}

#[test]
fn callback_that_vonage_does_not_take_is_left_out() {
    for (length, expected) in [(100, true), (101, false)] {
        let callback = Some(format!("https://a.example/?id=1&token={}", "x".repeat(length - 25)));
        let sms = Sms { callback, ..sms() };
        let request = request_of(&*vonage(), &sms);
        let body = str::from_utf8(request.body()).unwrap();

        assert_eq!(body.contains("callback="), expected, "{length}");
    }
}

#[test]
fn settings_are_required() {
    assert_eq!(
        problems(&SPEC, &json!({"signature_method": "md5"})),
        [
            "api_key is missing",
            "api_secret is missing",
            "from is missing",
            "signature_method must be one of: sha256, sha512, sha1, md5hash",
        ]
    );
}

fn segments(statuses: &[&str]) -> String {
    let messages: Vec<_> = statuses
        .iter()
        .enumerate()
        .map(|(at, status)| json!({"to": PHONE, "message-id": format!("m{at}"), "status": status}))
        .collect();
    json!({"message-count": statuses.len().to_string(), "messages": messages}).to_string()
}

#[test]
fn message_is_accepted_if_all_its_segments_are() {
    assert_eq!(judge(&*vonage(), 200, &segments(&["0"])), Ok(accepted("m0")));
    assert_eq!(judge(&*vonage(), 200, &segments(&["0", "0"])), Ok(accepted("m0")));
}

#[test]
fn failure_inside_a_200_has_its_outcome() {
    let provider = vonage();
    for (statuses, expected) in [
        (&["1"][..], "throttled"),
        (&["10"], "throttled"),
        (&["2"], "misconfigured"),
        (&["3"], "unroutable"),
        (&["4"], "misconfigured"),
        (&["5"], "ambiguous"),
        (&["6"], "unroutable"),
        (&["7"], "unroutable"),
        (&["8"], "misconfigured"),
        (&["9"], "misconfigured"),
        (&["13"], "unavailable"),
        (&["15"], "unroutable"),
        (&["29"], "unroutable"),
        (&["77"], "unroutable"),
        (&["0", "1"], "ambiguous"),
        (&["9", "0"], "ambiguous"),
        (&["1", "1"], "throttled"),
    ] {
        assert_eq!(class_of(&*provider, 200, &segments(statuses)), expected, "{statuses:?}");
    }
    for body in [r#"{"messages":[]}"#, r#"{"messages":[{"status":"0"}]}"#] {
        assert_eq!(class_of(&*provider, 200, body), "ambiguous", "{body}");
    }
    let error = judge(&*provider, 200, &segments(&["9"])).unwrap_err();
    assert_eq!(error.to_string(), "misconfigured: status 200, code 9");
}

#[test]
fn unexplained_answer_is_judged_by_its_status() {
    check_unexplained(&*vonage());
}

fn of(reported: Reported, receipt: Receipt) -> Vec<GatewayReceipt> {
    vec![GatewayReceipt { of: reported, receipt }]
}

#[test]
fn receipt_comes_as_a_query_a_form_or_json() {
    let id = message_id().to_string();
    let provider = vonage();
    let pairs = [
        ("msisdn", PHONE),
        ("to", "Shop"),
        ("messageId", "m0"),
        ("status", "delivered"),
        ("err-code", "0"),
        ("client-ref", &*id),
    ];
    let form = crate::request::form(&pairs);
    let json = serde_json::to_string(&BTreeMap::from(pairs)).unwrap();
    let url = "https://sms.example/v1/receipts/main?token=t";
    let expected = Ok(of(Reported::Message(message_id()), Receipt::Delivered));

    assert_eq!(receipts(&*provider, "GET", &format!("{url}&{form}"), &[], ""), expected);
    assert_eq!(receipts(&*provider, "POST", url, &[], &form), expected);
    assert_eq!(receipts(&*provider, "POST", url, &[], &json), expected);
    assert!(!provider.verifies_receipts());
}

#[test]
fn receipt_without_our_reference_is_found_by_the_url_or_by_the_message_id() {
    let provider = vonage();
    let form = "messageId=m0&status=failed";
    let read = |url: &str| receipts(&*provider, "POST", url, &[], form).unwrap();

    let by_url = read(&message_url());
    let by_id = read("https://sms.example/v1/receipts/main?token=t");

    assert_eq!(by_url, of(Reported::Message(message_id()), Receipt::Undelivered));
    assert_eq!(by_id, of(Reported::Reference("m0".to_owned()), Receipt::Undelivered));
}

#[test]
fn each_state_is_final_or_none() {
    for (status, expected) in [
        ("delivered", Some(Receipt::Delivered)),
        ("expired", Some(Receipt::Undelivered)),
        ("failed", Some(Receipt::Undelivered)),
        ("rejected", Some(Receipt::Undelivered)),
        ("accepted", None),
        ("buffered", None),
        ("unknown", None),
    ] {
        assert_eq!(receipt(status), expected, "{status}");
    }
    for (method, body) in [("POST", ""), ("POST", "[]"), ("POST", "status=delivered"), ("GET", "")]
    {
        let url = "https://sms.example/v1/receipts/main";
        let read = receipts(&*vonage(), method, url, &[], body);
        assert_eq!(read, Err(ReceiptRefused::Unreadable), "{method} {body}");
    }
}

#[test]
fn receipt_signed_with_a_token_is_checked_against_its_body() {
    let provider = signed_vonage("sha256");
    let body =
        format!(r#"{{"messageId":"m0","status":"delivered","client-ref":"{}"}}"#, message_id());
    let token = |hash: &str, exp: u64| {
        let claims = json!({"iss": "Vonage", "payload_hash": hash, "exp": exp});
        format!("Bearer {}", jwt::sign(&claims, b"sign"))
    };
    let read = |header: &str, body: &str| {
        let headers = [("authorization", header)];
        receipts(&*provider, "POST", &message_url(), &headers, body)
    };
    let hash = sha256_hex(body.as_bytes());

    let good = read(&token(&hash, NOW + 60), &body);
    assert_eq!(good, Ok(of(Reported::Message(message_id()), Receipt::Delivered)));
    let changed = body.replace("delivered", "rejected");
    assert_eq!(read(&token(&hash, NOW + 60), &changed), Err(ReceiptRefused::BadSignature));
    assert_eq!(read(&token(&hash, NOW - 61), &body), Err(ReceiptRefused::BadSignature));
    let foreign = format!("Bearer {}", jwt::sign(&json!({"payload_hash": hash}), b"other"));
    assert_eq!(read(&foreign, &body), Err(ReceiptRefused::BadSignature));
    let without_hash = format!("Bearer {}", jwt::sign(&json!({"iss": "Vonage"}), b"sign"));
    assert_eq!(read(&without_hash, &body), Err(ReceiptRefused::BadSignature));
    assert_eq!(read("Basic x", &body), Err(ReceiptRefused::Unsigned));
    assert!(provider.verifies_receipts());
}

fn sign(method: &str, text: &str) -> String {
    let algorithm = match method {
        "sha1" => HMAC_SHA1_FOR_LEGACY_USE_ONLY,
        "sha256" => HMAC_SHA256,
        "sha512" => HMAC_SHA512,
        _ => return md5_hex(&format!("{text}sign")),
    };
    hex(hmac(algorithm, b"sign", &[text.as_bytes()]).as_ref()).to_uppercase()
}

#[test]
fn receipt_signed_with_a_parameter_is_checked() {
    for name in ["sha1", "sha256", "sha512", "md5hash"] {
        let provider = signed_vonage(name);
        let read = |timestamp: u64, status: &str, signed_status: &str| {
            let time = timestamp.to_string();
            let text = format!(
                "&client-ref=a_b_c&messageId=m0&nonce=n&status={signed_status}&timestamp={time}"
            );
            let sig = sign(name, &text);
            let form = crate::request::form(&[
                ("messageId", "m0"),
                ("status", status),
                ("nonce", "n"),
                ("timestamp", &time),
                ("client-ref", "a&b=c"),
                ("sig", &sig),
            ]);
            receipts(&*provider, "GET", &format!("{}&{form}", message_url()), &[], "")
        };

        // The signature does not cover our id in the URL.
        let good = Ok(of(Reported::Reference("m0".to_owned()), Receipt::Delivered));
        assert_eq!(read(NOW, "delivered", "delivered"), good, "{name}");
        assert_eq!(read(NOW, "failed", "delivered"), Err(ReceiptRefused::BadSignature));
        assert_eq!(read(NOW - 400, "delivered", "delivered"), Err(ReceiptRefused::BadSignature));
    }
    let unsigned =
        receipts(&*signed_vonage("sha256"), "POST", &message_url(), &[], "status=failed");
    assert_eq!(unsigned, Err(ReceiptRefused::Unsigned));
}

/// Answers as Vonage does: 200 with the error inside.
fn strict(request: &Received) -> Reply {
    let reply = |status: &str| {
        Reply::json(
            200,
            &json!({"message-count": "1", "messages": [
                {"to": PHONE, "message-id": "m0", "status": status, "error-text": format!("to {PHONE}")},
            ]}),
        )
    };
    if request.method != "POST" || request.path != "/sms/json" {
        return Reply::text(404, "");
    }
    if request.header("content-type") != "application/x-www-form-urlencoded" {
        return reply("2");
    }
    let form: BTreeMap<_, _> = request.form().into_iter().collect();
    let field = |name: &str| form.get(name).map_or("", String::as_str);
    if ["api_key", "api_secret", "from", "to", "text"].iter().any(|name| field(name).is_empty()) {
        return reply("2");
    }
    if (field("api_key"), field("api_secret")) != ("key", "s3cret") {
        return reply("4");
    }
    let ttl = field("ttl").parse().unwrap_or(0);
    let is_number = field("to").bytes().all(|byte| byte.is_ascii_digit());
    let is_text = field("text").is_ascii() == (field("type") == "text");
    let is_short = field("callback").len() <= 100 && field("client-ref").len() <= 100;
    let is_good = is_number && is_text && is_short && (20_000..=604_800_000).contains(&ttl);
    reply(if is_good { "0" } else { "3" })
}

#[tokio::test]
async fn strict_vonage_accepts_the_request_and_refuses_a_wrong_secret() {
    let fake = Fake::strict(strict).await;
    let mut table = table();
    table["url"] = fake.url().into();
    let good = gateway(&SPEC, &table).send(&sms()).await;
    let unicode = gateway(&SPEC, &table).send(&cyrillic()).await;
    table["api_secret"] = "wrong".into();
    let wrong = gateway(&SPEC, &table).send(&sms()).await;

    assert_eq!((good, unicode), (Ok(accepted("m0")), Ok(accepted("m0"))));
    assert_eq!(wrong, Err(SendError::Misconfigured("status 200, code 4".to_owned())));
    assert!(fake.received()[0].body.contains(CODE));
}
