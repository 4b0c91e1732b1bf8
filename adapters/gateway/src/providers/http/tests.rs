//! Two invented providers: each has a strict fake, and is described by settings alone.

use std::{collections::BTreeSet, time::Duration};

use application::ports::{Receipt, Reported, Sms, SmsGateway};
use proptest::prelude::*;
use ring::hmac;
use serde_json::{Value as Json, json};

use super::*;
use crate::{
    answer::{accepted, accepted_by_reference},
    signing::{hex, is_hmac},
    testing::{
        AMPLE, CODE, Fake, PHONE, Received, Reply, assert_tells_nothing, cyrillic, http_gateway,
        judge, judge_with, made, now, problems, receipts, request_of, routed, sms,
    },
};

mod meaning;
mod wrong;

/// The settings of a provider that takes a form, signed with HMAC-SHA-256, and answers in a form of
/// its own. docs/gateways.md has the same.
fn form_settings(url: &str) -> Json {
    json!({
        "url": format!("{url}/gw/send.php"),
        "secret": "k3y",
        "sender": "Shop",
        "headers": {"X-Account": "acme", "X-Time": "{{ timestamp }}"},
        "body_format": "form",
        "body": {
            "msisdn": "{{ phone }}",
            "message": "{{ text }}",
            "from": "{{ sender }}",
            "coding": "{{ 2 if unicode else 0 }}",
            "ttl": "{{ validity }}",
            "ref": "{{ id }}",
            "report_to": "{{ callback }}",
        },
        "signature": {
            "header": "X-Signature",
            "prefix": "HMAC ",
            "sign": "{{ method }}\n{{ path }}\n{{ timestamp }}\n{{ body }}",
        },
        "answer": "form",
        "message_id": "msgid",
        "error_code": "err",
        "rules": [
            {"path": "err", "equals": [11, 12], "outcome": "rejected"},
            {"path": "err", "equals": 20, "outcome": "throttled", "retry_after": "again"},
            {"path": "err", "equals": [30, 31], "outcome": "misconfigured"},
            {"path": "err", "equals": 40, "outcome": "unroutable"},
        ],
        "receipts": {
            "format": "form",
            "id": "ref",
            "state": "final",
            "delivered": ["DLVRD"],
            "undelivered": ["UNDLV", "EXPRD"],
            "signature": {"header": "X-Signature", "prefix": "HMAC ", "sign": "{{ body }}"},
            "reply": "ACK",
        },
    })
}

/// Refuses what that provider refuses.
fn form_provider(request: &Received) -> Reply {
    let refuse = |err: u16| Reply::text(200, &format!("result=error&err={err}"));
    if (request.method.as_str(), request.path.as_str()) != ("POST", "/gw/send.php") {
        return Reply::text(404, "");
    }
    if request.header("content-type") != "application/x-www-form-urlencoded" {
        return refuse(31);
    }
    let signed = format!("POST\n/gw/send.php\n{}\n{}", request.header("x-time"), request.body);
    let tag = request.header("x-signature").strip_prefix("HMAC ");
    let tag = tag.and_then(crate::signing::hex_decoded).unwrap_or_default();
    let is_signed = is_hmac(hmac::HMAC_SHA256, b"k3y", &[signed.as_bytes()], &tag);
    if request.header("x-account") != "acme" || !is_signed {
        return refuse(30);
    }
    let form = request.form();
    let field =
        |name: &str| form.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str());
    match (field("msisdn"), field("message")) {
        (Some(to), _) if !to.bytes().all(|byte| byte.is_ascii_digit()) => refuse(11),
        (_, Some(text)) if field("coding") == Some("0") && !text.is_ascii() => refuse(12),
        (Some(_), Some(_)) => Reply::text(200, "result=ok&msgid=a-1\n"),
        _ => refuse(12),
    }
}

/// The settings of a provider that takes JSON with a bearer token. docs/gateways.md has the same.
fn json_settings(url: &str) -> Json {
    json!({
        "url": format!("{url}/v3/{{{{ username }}}}/messages"),
        "auth": "bearer",
        "username": "acme/eu",
        "token": "t0ken",
        "headers": {"Idempotency-Key": "{{ id }}"},
        "body": {
            "to": [{"number": "{{ e164 }}"}],
            "text": "{{ text }}",
            "sender": "{{ sender }}",
            "options": {
                "ttl": "{{ validity }}", "unicode": "{{ unicode }}", "flash": false,
                "entity": "{{ params.dlt_entity_id }}",
            },
            "webhook": "{{ callback }}",
        },
        "message_id": "data.0.id",
        "error_code": "error.code",
        "rules": [
            {"status": 422, "path": "error.code", "equals": "region_blocked", "outcome": "unroutable"},
            {"status": "4xx", "path": "error.code", "contains": "balance", "outcome": "misconfigured"},
            {"status": 200, "path": "error", "exists": true, "outcome": "rejected"},
        ],
        "deduplicates": true,
        "receipts": {
            "list": "events",
            "message_id": "message.id",
            "state": "type",
            "delivered": "delivered",
            "undelivered": ["failed", "expired"],
        },
    })
}

fn json_provider(request: &Received) -> Reply {
    let error = |status, code: &str| Reply::json(status, &json!({"error": {"code": code}}));
    if (request.method.as_str(), request.path.as_str()) != ("POST", "/v3/acme%2Feu/messages") {
        return error(404, "no_route");
    }
    if request.header("authorization") != "Bearer t0ken" {
        return error(401, "token");
    }
    if request.header("content-type") != "application/json" {
        return error(415, "type");
    }
    let body = request.json();
    let is_good = body["to"][0]["number"].as_str().is_some_and(|it| it.starts_with('+'))
        && body["text"].is_string()
        && body["options"]["ttl"].is_u64()
        && body["options"]["unicode"].is_boolean();
    if !is_good {
        return error(422, "invalid");
    }
    Reply::json(200, &json!({"data": [{"id": 17}]}))
}

#[tokio::test]
async fn form_with_a_signature_is_accepted_by_its_provider() {
    let fake = Fake::strict(form_provider).await;
    let gateway = http_gateway(made(&SPEC, &form_settings(fake.url())), AMPLE);

    for sms in [sms(), cyrillic(), Sms { callback: None, ..routed("Bank", &[]) }] {
        assert_eq!(gateway.send(&sms).await, Ok(accepted("a-1")));
    }

    let [plain, unicode, without_callback] = fake.received().try_into().unwrap();
    let id = sms().message.id.to_string();
    let expected = [
        ("coding", "0"),
        ("from", "Shop"),
        ("message", "Your code: 482915"),
        ("msisdn", PHONE),
        ("ref", &id),
        ("report_to", sms().callback.as_deref().unwrap_or_default()),
        ("ttl", "300"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(plain.form(), expected);
    assert_eq!(plain.header("x-time"), "1700000000");
    assert!(unicode.form().contains(&("coding".to_owned(), "2".to_owned())));
    let names: Vec<String> = without_callback.form().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["coding", "from", "message", "msisdn", "ref", "ttl"]);
    assert!(!gateway.deduplicates());
}

#[tokio::test]
async fn json_with_a_token_is_accepted_by_its_provider() {
    let fake = Fake::strict(json_provider).await;
    let gateway = http_gateway(made(&SPEC, &json_settings(fake.url())), AMPLE);

    let sms = routed("Bank", &[("dlt_entity_id", "0017")]);
    assert_eq!(gateway.send(&sms).await, Ok(accepted_by_reference("17")));
    assert_eq!(
        gateway.send(&Sms { callback: None, ..cyrillic() }).await,
        Ok(accepted_by_reference("17"))
    );

    let [first, second] = fake.received().try_into().unwrap();
    assert_eq!(
        first.json(),
        json!({
            "to": [{"number": "+79991234567"}], "text": "Your code: 482915", "sender": "Bank",
            "options": {"ttl": 300, "unicode": false, "flash": false, "entity": "0017"},
            "webhook": sms.callback,
        })
    );
    assert_eq!(first.header("idempotency-key"), sms.message.id.to_string());
    assert_eq!(
        second.json(),
        json!({
            "to": [{"number": "+79991234567"}], "text": "Ваш код: 482915",
            "options": {"ttl": 300, "unicode": true, "flash": false},
        })
    );
    assert!(gateway.deduplicates());
}

#[tokio::test]
async fn query_with_basic_authentication_is_accepted_by_its_provider() {
    let fake = Fake::strict(|request: &Received| {
        let is_good = request.method == "GET"
            && request.header("authorization") == "Basic YWNtZTpwQHNz"
            && request.header("content-type").is_empty()
            && request.body.is_empty()
            && request.path == "/http";
        if is_good { Reply::text(200, "OK: 42,1\n") } else { Reply::text(200, "ERR 1") }
    })
    .await;
    let settings = json!({
        "url": format!("{}/http?v=2", fake.url()), "method": "GET", "auth": "basic",
        "username": "acme", "password": "p@ss",
        "query": {"to": "{{ phone }}", "text": "{{ text }}", "tag": ["otp", "{{ params.tag }}"]},
        "answer": "text", "message_id_after": "OK:",
        "rules": [{"body_contains": "ERR", "outcome": "misconfigured"}],
    });
    let gateway = http_gateway(made(&SPEC, &settings), AMPLE);

    assert_eq!(gateway.send(&cyrillic()).await, Ok(accepted("42")));

    let [request] = fake.received().try_into().unwrap();
    let expected = [("v", "2"), ("tag", "otp"), ("text", "Ваш код: 482915"), ("to", PHONE)];
    assert_eq!(request.query_pairs(), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
}

#[test]
fn signature_is_hexadecimal_or_base64_of_each_algorithm() {
    let signed = |signature: Json, secret: &str| {
        let settings = json!({
            "url": "https://a.example/x", "secret": secret, "signature": signature,
            "body": {"t": "{{ text }}"},
        });
        let request = request_of(&*made(&SPEC, &settings), &sms());
        request.headers()["x-s"].to_str().unwrap().to_owned()
    };
    // RFC 4231 and RFC 2202, test case 2.
    let text = "what do ya want for nothing?";
    for (algorithm, encoding, expected) in [
        ("sha256", "hex", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
        ("sha256", "HEX", "5BDCC146BF60754E6A042426089575C75A003F089D2739839DEC58B964EC3843"),
        ("sha256", "base64", "W9zBRr9gdU5qBCQmCJV1x1oAPwidJzmDnexYuWTsOEM="),
        ("sha1", "hex", "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
    ] {
        let signature =
            json!({"header": "x-s", "algorithm": algorithm, "encoding": encoding, "sign": text});
        assert_eq!(signed(signature, "Jefe"), expected, "{algorithm} {encoding}");
    }
    for (key_encoding, secret) in [("hex", "4a656665"), ("base64", "SmVmZQ==")] {
        let signature = json!({
            "header": "x-s", "prefix": "v1,", "algorithm": "sha512", "encoding": "hex",
            "key_encoding": key_encoding, "sign": text,
        });
        let value = signed(signature, secret);
        assert!(
            value.starts_with("v1,164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd6"),
            "{value}"
        );
    }
    let parts = json!({"header": "x-s", "sign": "{{ method }} {{ host }} {{ path }} {{ query }} {{ url }} {{ id }}"});
    assert_eq!(signed(parts, "k").len(), 64);
}

fn receipt_of(form: &str, key: &str) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
    let provider = made(&SPEC, &form_settings("https://a.example"));
    let tag = crate::signing::hmac(hmac::HMAC_SHA256, key.as_bytes(), &[form.as_bytes()]);
    let signature = format!("HMAC {}", hex(tag.as_ref()));
    let headers = [("x-signature", signature.as_str())];
    receipts(&*provider, "POST", "https://m.example/v1/receipts/main", &headers, form)
}

#[test]
fn signed_receipt_names_our_id() {
    let id = sms().message.id;
    let receipt = |receipt| Ok(vec![GatewayReceipt { of: Reported::Message(id), receipt }]);

    for (state, expected) in [
        ("DLVRD", receipt(Receipt::Delivered)),
        ("dlvrd", receipt(Receipt::Delivered)),
        ("UNDLV", receipt(Receipt::Undelivered)),
        ("EXPRD", receipt(Receipt::Undelivered)),
        ("SENT", Ok(Vec::new())),
    ] {
        assert_eq!(receipt_of(&format!("ref={id}&final={state}"), "k3y"), expected, "{state}");
    }
    let refused = |form: &str| receipt_of(form, "k3y").unwrap_err().to_string();
    assert_eq!(refused(&format!("ref={id}")), "the receipt has no state at the path final");
    assert_eq!(refused("ref=1&final=DLVRD"), "the receipt has no id of a message at the path ref");
    let forged = receipt_of(&format!("ref={id}&final=DLVRD"), "other");
    assert_eq!(forged, Err(ReceiptRefused::BadSignature));
    let provider = made(&SPEC, &form_settings("https://a.example"));
    let read = |headers: &[(&str, &str)]| {
        receipts(&*provider, "POST", "https://m.example/", headers, "final=DLVRD")
    };
    assert_eq!(read(&[]), Err(ReceiptRefused::Unsigned));
    for value in ["HMAC ", "HMAC zz", "00", "HMAC 00"] {
        assert_eq!(read(&[("x-signature", value)]), Err(ReceiptRefused::BadSignature), "{value}");
    }
    assert!(provider.verifies_receipts());
    assert_eq!(provider.receipt_reply().body, "ACK");
}

#[test]
fn list_of_receipts_names_the_providers_ids_and_leaves_out_what_is_not_ours() {
    let provider = made(&SPEC, &json_settings("https://a.example"));
    let read = |body: &Json| {
        receipts(&*provider, "POST", "https://m.example/?token=t", &[], &body.to_string())
    };

    let several = read(&json!({"events": [
        {"type": "sent", "message": {"id": 1}},
        {"type": "delivered", "message": {"id": 17}},
        {"type": "failed", "message": {"id": "b"}},
        {"type": "failed"},
        {"message": {"id": "c"}},
    ]}));

    let reference = |reference: &str| Reported::Reference(reference.to_owned());
    let expected = vec![
        GatewayReceipt { of: reference("17"), receipt: Receipt::Delivered },
        GatewayReceipt { of: reference("b"), receipt: Receipt::Undelivered },
    ];
    assert_eq!(several, Ok(expected));
    assert_eq!(read(&json!({"events": []})), Ok(Vec::new()));
    for other in [json!({}), json!({"events": {}}), json!("events")] {
        let lacks = ReceiptRefused::Lacks("list at the path events".to_owned());
        assert_eq!(read(&other), Err(lacks), "{other}");
    }
    assert!(!provider.verifies_receipts());
    assert_eq!(provider.receipt_reply(), ReceiptReply::EMPTY);
}

#[test]
fn receipt_without_a_path_of_an_id_is_of_the_message_in_the_url() {
    let settings = json!({
        "url": "https://a.example/x",
        "receipts": {"format": "query", "state": "status", "delivered": 1, "undelivered": [2, 16]},
    });
    let provider = made(&SPEC, &settings);
    let id = sms().message.id;
    let read = |query: &str| {
        receipts(&*provider, "GET", &format!("https://m.example/v1/receipts/main?{query}"), &[], "")
    };

    let of = Reported::Message(id);
    let undelivered = GatewayReceipt { of, receipt: Receipt::Undelivered };
    assert_eq!(read(&format!("id={id}&token=t&status=16")), Ok(vec![undelivered]));
    assert_eq!(read(&format!("id={id}&token=t&status=8")), Ok(Vec::new()));
    let lacks = ReceiptRefused::Lacks("id of a message in its URL".to_owned());
    assert_eq!(read("status=1"), Err(lacks));
}

#[test]
fn receipt_may_be_signed_with_a_time_in_a_header() {
    let settings = json!({
        "url": "https://a.example/x", "secret": "other", "receipt_secret": "k",
        "receipts": {
            "id": "id", "state": "s", "delivered": "d", "undelivered": "u",
            "signature": {
                "header": "x-s", "encoding": "base64", "algorithm": "sha1",
                "sign": "{{ headers['x-time'] }}.{{ body }}",
            },
        },
    });
    let provider = made(&SPEC, &settings);
    let body = json!({"id": sms().message.id.to_string(), "s": "d"}).to_string();
    let signed = format!("7.{body}");
    let tag = crate::signing::hmac(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"k", &[signed.as_bytes()]);
    let signature = {
        use base64::{Engine, engine::general_purpose::STANDARD};
        STANDARD.encode(tag)
    };
    let read = |time: &str| {
        let headers = [("x-s", signature.as_str()), ("x-time", time)];
        receipts(&*provider, "POST", "https://m.example/", &headers, &body)
    };

    assert_eq!(read("7").unwrap().len(), 1);
    assert_eq!(read("8"), Err(ReceiptRefused::BadSignature));
}

#[test]
fn provider_without_receipts_takes_none() {
    let provider = made(&SPEC, &json!({"url": "https://a.example/x"}));

    let refused = receipts(&*provider, "POST", "https://m.example/", &[], "{}");

    assert_eq!(refused, Err(ReceiptRefused::Unreadable));
    assert!(!provider.verifies_receipts());
    assert_eq!(provider.receipt_reply(), ReceiptReply::EMPTY);
}

#[test]
fn samples_have_the_variables_of_an_sms() {
    let own = Own::default();
    let names = |value: &Value| -> BTreeSet<String> {
        value.try_iter().unwrap().map(|name| name.to_string()).collect()
    };
    let sms = sms();
    let real = names(&variables::of(&Outgoing::new(&sms, "1"), &own));

    for sample in variables::samples(&own) {
        assert_eq!(names(&sample), real);
    }
    assert_eq!(real, variables::NAMES.iter().map(|name| (*name).to_owned()).collect());
}

#[test]
fn times_are_those_of_the_call() {
    let settings = json!({
        "url": "https://a.example/x",
        "body": {
            "a": "{{ timestamp }}", "b": "{{ timestamp_ms }}", "c": "{{ now }}",
            "d": "{{ expires_at }}", "e": "{{ expires_unix }}", "f": "{{ validity_minutes }}",
            "g": "{{ segments }}", "h": "{{ code }}",
        },
    });

    let request = request_of(&*made(&SPEC, &settings), &sms());

    let body: Json = serde_json::from_slice(request.body()).unwrap();
    let expected = json!({
        "a": 1_700_000_000, "b": 1_700_000_000_123_u64, "c": "2023-11-14T22:13:20.123Z",
        "d": "2023-11-14T22:18:20.123Z", "e": 1_700_000_300, "f": 5, "g": 1, "h": CODE,
    });
    assert_eq!(body, expected);
    assert_eq!(now() + Duration::from_secs(300), sms().expires_at);
}

#[test]
fn template_that_fails_for_one_sms_is_misconfigured_and_tells_nothing() {
    let settings = json!({
        "url": "https://a.example/x", "body": {"n": "{{ 1 // (phone | int - 79991234567) }}"},
    });
    let provider = made(&SPEC, &settings);

    let sms = sms();
    let error = provider.prepare(&Outgoing::new(&sms, "1")).unwrap_err();

    let expected = "not called: the template body.n cannot be rendered".to_owned();
    assert_eq!(error, SendError::Misconfigured(expected));
}

#[test]
fn debug_shows_no_secret() {
    let shown = format!("{:?}", made(&SPEC, &form_settings("https://a.example/path")));

    for secret in ["k3y", "path", "acme"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert_tells_nothing(&shown);
}

proptest! {
    #[test]
    fn no_text_breaks_out_of_a_request(text in any::<String>(), sender in any::<String>()) {
        let sms = Sms { text: text.clone(), ..routed(&sender, &[("p", &text)]) };
        let with = |more: Json| {
            let mut settings = json!({
                "url": "https://a.example/x/{{ text }}?a={{ text }}",
                "query": {"b": "{{ text }}", "c": "-{{ sender }}-"},
                "headers": {"x-text": "{{ text }}"},
            });
            settings.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
            request_of(&*made(&SPEC, &settings), &sms)
        };
        let tree = json!({"t": "{{ text }}", "u": "<{{ text }}>", "s": "{{ sender }}", "z": 1});

        let json_request = with(json!({"body": {"deep": [tree.clone()]}}));
        let form_request = with(json!({"body_format": "form", "body": tree}));

        let body: Json = serde_json::from_slice(json_request.body()).unwrap();
        let expected = json!({"t": text, "u": format!("<{text}>"), "s": sender, "z": 1});
        prop_assert_eq!(body, json!({"deep": [expected]}));
        let pairs = |form: &[u8]| -> Vec<(String, String)> {
            form_urlencoded::parse(form).into_owned().collect()
        };
        let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let expected = [
            own("s", &sender), own("t", &text), own("u", &format!("<{text}>")), own("z", "1"),
        ];
        prop_assert_eq!(pairs(form_request.body()), expected);
        let uri = form_request.uri();
        prop_assert_eq!(uri.authority().unwrap().as_str(), "a.example");
        prop_assert_eq!(uri.path().matches('/').count(), 2);
        let query = pairs(uri.query().unwrap().as_bytes());
        let expected = [own("a", &text), own("b", &text), own("c", &format!("-{sender}-"))];
        prop_assert_eq!(query, expected);
        let plain: String = text.chars().filter(|char| !char.is_control()).collect();
        prop_assert_eq!(form_request.headers()["x-text"].as_bytes(), plain.as_bytes());
        prop_assert!(form_request.headers().len() <= 2);
    }
}
