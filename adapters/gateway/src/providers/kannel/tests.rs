use application::ports::{Accepted, Receipt, Sms, SmsGateway};
use serde_json::{Value, json};

use super::*;
use crate::testing::{
    Fake, Received, Reply, gateway, judge, made, problems, request_of,
    short::{
        CALLBACK, ID, check_common_answers, got, of_message, refused, sms, sms_for, sms_with,
        with_callback, with_headers,
    },
};

fn table(url: &str) -> Value {
    json!({"url": url, "username": "tester", "password": "pass word", "from": "Shop"})
}

fn kannel() -> Box<dyn Provider> {
    made(&SPEC, &table("http://kannel.example:13013"))
}

#[test]
fn text_is_posted_with_headers() {
    let request = request_of(&*kannel(), &sms());

    assert_eq!(
        with_headers(&request),
        "POST http://kannel.example:13013/cgi-bin/sendsms\n\
         content-type: text/plain; charset=UTF-8\n\
         x-kannel-charset: UTF-8\n\
         x-kannel-coding: 0\n\
         x-kannel-from: Shop\n\
         x-kannel-password: pass word\n\
         x-kannel-to: +79991234567\n\
         x-kannel-username: tester\n\
         x-kannel-validity: 5\n\
         \n\
         Your code: 482915"
    );
    assert!(!format!("{request:?}").contains("pass word"));
}

#[test]
fn text_outside_gsm7_is_ucs2() {
    let header =
        |text| request_of(&*kannel(), &sms_with(text)).headers()["x-kannel-coding"].clone();

    assert_eq!(header("Код: 482915"), "2");
    assert_eq!(header("Code 😀"), "2");
    assert_eq!(header("5 € [é]"), "0");
}

#[test]
fn sms_does_not_outlive_the_code() {
    let validity = |seconds| {
        let request = request_of(&*kannel(), &sms_for(seconds));
        request.headers()["x-kannel-validity"].to_str().unwrap().to_owned()
    };

    assert_eq!(validity(300), "5");
    assert_eq!(validity(299), "4");
    assert_eq!(validity(60), "1");
    // Kannel has no smaller unit.
    assert_eq!(validity(59), "1");
}

#[test]
fn receipt_is_asked_for_with_the_escapes_of_kannel() {
    let request = request_of(&*kannel(), &with_callback());

    assert_eq!(request.headers()["x-kannel-dlr-mask"], "19");
    let url = format!("{CALLBACK}&status=%d&smsc=%i");
    assert_eq!(request.headers()["x-kannel-dlr-url"], url);
    assert_eq!(dlr_url("http://a/%D1?t=%64"), "http://a/%%D1?t=%%64&status=%d&smsc=%i");
    assert_eq!(dlr_url("http://a/b"), "http://a/b?status=%d&smsc=%i");
}

#[test]
fn sender_of_the_route_and_the_smsc_go_along() {
    let mut settings = table("http://kannel.example");
    settings["smsc"] = "local".into();
    let kannel = made(&SPEC, &settings);
    let from = |sender: &str| {
        let request = request_of(&*kannel, &Sms { sender: Some(sender.into()), ..sms() });
        assert_eq!(request.headers()["x-kannel-smsc"], "local");
        request.headers().get("x-kannel-from").cloned()
    };

    assert_eq!(from("SHOP").unwrap(), "SHOP");
    assert_eq!(from("SH\nOP"), None);
}

#[test]
fn accepted_and_queued_are_accepted() {
    for text in ["0: Accepted for delivery", "3: Queued for later delivery"] {
        assert_eq!(judge(&*kannel(), 202, text), Ok(Accepted::default()));
    }
    assert!(!kannel().deduplicates());
}

#[test]
fn refusals_have_the_class_of_their_text() {
    for (status, text, expected) in [
        (403, "Authorization failed for sendsms", "misconfigured: status 403"),
        (403, "Not routable. Do not try again.", "unavailable: status 403, code not-routable"),
        (503, "Temporal failure, try again later.", "unavailable: status 503"),
        (
            400,
            "Number(s) has/have been denied by white- and/or black-lists.",
            "unroutable: status 400, code denied",
        ),
        (400, "Missing receiver(s) number(s), rejected", "unroutable: status 400"),
        (400, "Charset or body misformed, rejected", "unroutable: status 400"),
        (
            400,
            "Sender missing and no global set, rejected",
            "misconfigured: status 400, code request",
        ),
        (400, "DLR-URL field misformed, rejected", "misconfigured: status 400, code request"),
        (404, "Unknown request.", "misconfigured: status 404"),
        (202, "Sent to <79991234567>", "ambiguous: status 202"),
    ] {
        assert_eq!(refused(&*kannel(), status, text), expected, "{text}");
    }
}

#[test]
fn receipt_is_a_call_of_our_url() {
    let read = |rest: &str| got(&*kannel(), &format!("id={ID}&token=t&{rest}"));

    assert_eq!(read("status=1&smsc=FAKE"), Ok(vec![of_message(Receipt::Delivered)]));
    assert_eq!(read("status=2&smsc=FAKE"), Ok(vec![of_message(Receipt::Undelivered)]));
    assert_eq!(read("status=16&smsc=FAKE"), Ok(vec![of_message(Receipt::Undelivered)]));
    for state in ["status=8&smsc=FAKE", "status=4&smsc=FAKE"] {
        assert_eq!(read(state), Ok(vec![]));
    }
    for state in ["status=%25d", "status=", ""] {
        assert_eq!(read(state), Err(ReceiptRefused::Unreadable));
    }
    assert_eq!(got(&*kannel(), "token=t&status=1"), Err(ReceiptRefused::Unreadable));
    assert_eq!(got(&*kannel(), "id=7&status=1"), Err(ReceiptRefused::Unreadable));
    assert!(!kannel().verifies_receipts());
}

#[test]
fn message_that_kannel_could_not_route_has_no_receipt() {
    let read = got(&*kannel(), &format!("id={ID}&token=t&status=16&smsc="));

    assert_eq!(read, Ok(vec![]));
}

#[test]
fn missing_settings_are_named() {
    let expected = ["url is missing", "username is missing", "password is missing"];
    assert_eq!(problems(&SPEC, &json!({})), expected);
}

/// Answers as smsbox 1.4.5 does.
fn smsbox(request: &Received) -> Reply {
    let text = |status, text: &str| Reply::text(status, text);
    if (&*request.method, &*request.path) != ("POST", PATH) {
        return text(404, "Unknown request.");
    }
    if !request.header("content-type").starts_with("text/plain") {
        return text(400, "Unsupported content-type, rejected");
    }
    let user = (request.header("x-kannel-username"), request.header("x-kannel-password"));
    if user != ("tester", "pass word") {
        return text(403, "Authorization failed for sendsms");
    }
    let to = request.header("x-kannel-to");
    if to.is_empty() {
        return text(400, "Missing receiver(s) number(s), rejected");
    }
    if !to.trim_start_matches('+').bytes().all(|byte| byte.is_ascii_digit()) {
        return text(400, "Number(s) has/have been denied by white- and/or black-lists.");
    }
    if request.header("x-kannel-from").is_empty() {
        return text(400, "Sender missing and no global set, rejected");
    }
    if !request.body.is_ascii() && request.header("x-kannel-coding") != "2" {
        return text(202, "0: Accepted for delivery, as question marks");
    }
    text(202, "0: Accepted for delivery")
}

#[tokio::test]
async fn gateway_speaks_to_smsbox() {
    let server = Fake::strict(smsbox).await;

    let accepted = gateway(&SPEC, &table(server.url())).send(&sms_with("Код: 482915")).await;

    assert_eq!(accepted, Ok(Accepted::default()));
    let [received] = &server.received()[..] else { panic!("one request") };
    assert_eq!(received.body, "Код: 482915");
    assert_eq!(received.header("x-kannel-coding"), "2");
}

#[tokio::test]
async fn wrong_password_and_missing_sender_are_misconfigured() {
    let server = Fake::strict(smsbox).await;
    let mut wrong = table(server.url());
    wrong["password"] = "wrong".into();
    let mut unsent = table(server.url());
    unsent["from"] = "".into();

    for (settings, expected) in
        [(wrong, "misconfigured: status 403"), (unsent, "misconfigured: status 400, code request")]
    {
        let refused = gateway(&SPEC, &settings).send(&sms()).await.unwrap_err();
        assert_eq!(refused.to_string(), expected);
    }
}

#[tokio::test]
async fn other_answers_have_their_usual_outcome() {
    check_common_answers(&SPEC, table).await;
}
