use application::ports::{Receipt, Sms, SmsGateway};

use super::*;
use crate::testing::{
    Fake, Received, Reply, gateway, judge, made, problems, request_of,
    short::{
        CALLBACK, ID, check_common_answers, json_of, of_message, of_reference, posted, refused,
        sms, sms_for, sms_with, with_callback, with_headers,
    },
};

fn table(url: &str) -> Value {
    json!({"api_key": "key", "from": "Shop", "url": url})
}

fn devino() -> Box<dyn Provider> {
    made(&SPEC, &json!({"api_key": "key", "from": "Shop"}))
}

#[test]
fn sms_is_posted_in_a_list() {
    assert_eq!(
        with_headers(&request_of(&*devino(), &sms())),
        "POST https://api.devino.online/sms/messages\n\
         authorization: Key key\n\
         content-type: application/json\n\
         \n\
         {\"messages\":[{\"from\":\"Shop\",\"priority\":3,\"text\":\"Your code: 482915\",\
         \"to\":\"79991234567\",\"validity\":300}]}"
    );
}

#[test]
fn unit_of_the_validity_is_a_setting() {
    let validity = |unit: &str, seconds| {
        let devino = made(&SPEC, &json!({"api_key": "k", "from": "f", "validity": unit}));
        let request = request_of(&*devino, &sms_for(seconds));
        let body: Value = serde_json::from_slice(request.body()).unwrap();
        body["messages"][0]["validity"].clone()
    };

    assert_eq!(validity("seconds", 119), 119);
    assert_eq!(validity("minutes", 119), 1);
    assert_eq!(validity("minutes", 1), 1);
    assert_eq!(validity("off", 119), Value::Null);
}

#[test]
fn receipt_and_sender_go_along() {
    let sms = Sms { sender: Some("SHOP".into()), ..with_callback() };
    let body = |devino: &dyn Provider| -> Value {
        serde_json::from_slice(request_of(devino, &sms).body()).unwrap()
    };

    assert_eq!(body(&*devino())["messages"][0]["callback_url"], CALLBACK);
    assert_eq!(body(&*devino())["messages"][0]["from"], "SHOP");
    let other = json!({"api_key": "k", "from": "f", "callback_field": "callbackUrl"});
    assert_eq!(body(&*made(&SPEC, &other))["messages"][0]["callbackUrl"], CALLBACK);
}

#[test]
fn missing_settings_are_named() {
    assert_eq!(problems(&SPEC, &json!({})), ["api_key is missing", "from is missing"]);
}

#[test]
fn result_may_be_in_a_list() {
    let list = r#"{"result":[{"code":"OK","messageId":"3085400000001"}]}"#;
    let bare = r#"{"code":"OK","messageId":"3085400000001","segmentsId":null}"#;

    for body in [list, bare] {
        assert_eq!(judge(&*devino(), 200, body), Ok(accepted_by_reference("3085400000001")));
    }
    assert!(!devino().deduplicates());
}

#[test]
fn rejection_is_inside_an_ok() {
    let reason = |key: &str, field: &str| {
        let reasons = json!([{"key": key, "ref": field}]);
        let result = json!({"code": "REJECTED", "description": "79991234567", "reasons": reasons});
        refused(&*devino(), 200, &json!({"result": [result]}).to_string())
    };

    assert_eq!(reason("invalid", "to"), "rejected: status 200, code to");
    assert_eq!(reason("must.be.not.null", "messages[0].to"), "rejected: status 200, code to");
    assert_eq!(reason("invalid", "from"), "misconfigured: status 200, code invalid");
    assert_eq!(reason("billing.error", ""), "misconfigured: status 200, code billing");
    assert_eq!(reason("forbidden", "from"), "misconfigured: status 200, code forbidden");
    assert_eq!(reason("too.many.messages", ""), "throttled: status 200, code too-many");
    assert_eq!(reason("length.too.long", "text"), "unroutable: status 200, code too-long");
    assert_eq!(reason("unknown", ""), "unroutable: status 200, code REJECTED");
    let bare = refused(&*devino(), 200, r#"{"code":"REJECTED"}"#);
    assert_eq!(bare, "unroutable: status 200, code REJECTED");
}

#[test]
fn answer_without_a_code_or_an_id_is_ambiguous() {
    for body in [r#"{"result":[]}"#, r#"{"code":"OK"}"#, r#"{"code":"LATER","messageId":"1"}"#] {
        assert_eq!(refused(&*devino(), 200, body), "ambiguous: status 200", "{body}");
    }
}

#[test]
fn receipt_names_the_message_by_our_url_or_its_id() {
    let body = r#"{"messageId":"3085400000001","status":"DELIVERED"}"#;

    let ours = posted(&*devino(), &format!("id={ID}&token=t"), &[], body);
    assert_eq!(ours, Ok(vec![of_message(Receipt::Delivered)]));
    let theirs = posted(&*devino(), "token=t", &[], body);
    assert_eq!(theirs, Ok(vec![of_reference("3085400000001", Receipt::Delivered)]));
    let expired = body.replace("DELIVERED", "EXPIRED");
    let theirs = posted(&*devino(), "token=t", &[], &expired);
    assert_eq!(theirs, Ok(vec![of_reference("3085400000001", Receipt::Undelivered)]));
}

/// Answers as the implementations expect.
fn server(request: &Received) -> Reply {
    if (&*request.method, &*request.path) != ("POST", "/sms/messages") {
        return Reply::text(404, "");
    }
    if request.header("authorization") != "Key key" {
        return Reply::text(401, r#"{"code":"UNAUTHORIZED"}"#);
    }
    let Some(body) = json_of(request) else { return Reply::text(415, "") };
    let message = &body["messages"][0];
    let to = message["to"].as_str().unwrap_or_default();
    let reason = |key: &str, field: &str| {
        let reasons = json!([{"key": key, "ref": field}]);
        let result = json!({"code": "REJECTED", "reasons": reasons});
        Reply::text(200, &json!({"result": [result]}).to_string())
    };
    match message {
        _ if to.len() != 11 => reason("invalid", "to"),
        it if it["from"] != "Shop" => reason("forbidden", "from"),
        it if it["text"].as_str().is_none_or(str::is_empty) => reason("must.be.not.null", "text"),
        it if it["validity"].as_u64().is_none() => reason("invalid", "validity"),
        _ => Reply::text(200, r#"{"result":[{"code":"OK","messageId":"1"}]}"#),
    }
}

#[tokio::test]
async fn gateway_speaks_to_the_server() {
    let fake = Fake::strict(server).await;

    let sent = gateway(&SPEC, &table(fake.url())).send(&sms_with("Код: 482915")).await;

    assert_eq!(sent, Ok(accepted_by_reference("1")));
    let unknown = Sms { sender: Some("Other".into()), ..sms() };
    let refused = gateway(&SPEC, &table(fake.url())).send(&unknown).await.unwrap_err();
    assert_eq!(refused.to_string(), "misconfigured: status 200, code forbidden");
}

#[tokio::test]
async fn other_answers_have_their_usual_outcome() {
    check_common_answers(&SPEC, table).await;
}
