use application::ports::{Receipt, Sms, SmsGateway};
use serde_json::{Value, json};

use super::*;
use crate::testing::{
    Fake, Received, Reply, gateway, judge, made, problems, request_of,
    short::{
        ID, check_common_answers, form_of, got, of_reference, posted, refused, sms, sms_for,
        sms_with, with_headers,
    },
};

/// `sha1sum` and `md5sum` of `12345:79991234567:1:word`.
const SHA1: &str = "9d836637a3453a3b270b39d64883d17ac71649ea";
const MD5: &str = "fac575928e8ff574a5080ad61a5226d7";

fn table(url: &str) -> Value {
    json!({"login": "shop", "password": "pass&word", "url": url})
}

fn smsc() -> Box<dyn Provider> {
    made(&SPEC, &json!({"login": "shop", "password": "pass&word"}))
}

#[test]
fn sms_is_posted_as_a_form() {
    assert_eq!(
        with_headers(&request_of(&*smsc(), &sms())),
        "POST https://smsc.ru/sys/send.php\n\
         content-type: application/x-www-form-urlencoded\n\
         \n\
         login=shop&psw=pass%26word&phones=79991234567&mes=Your+code%3A+482915&charset=utf-8&fmt=3\
         &valid=00%3A05"
    );
}

#[test]
fn key_and_sender_go_along() {
    let smsc = made(&SPEC, &json!({"api_key": "k", "from": "Shop"}));
    let body = |sms| String::from_utf8(request_of(&*smsc, &sms).body().to_vec()).unwrap();

    assert_eq!(
        body(sms_with("Код")),
        "apikey=k&phones=79991234567&mes=%D0%9A%D0%BE%D0%B4&charset=utf-8&fmt=3&valid=00%3A05\
         &sender=Shop"
    );
    assert!(body(Sms { sender: Some("SHOP".into()), ..sms() }).ends_with("&sender=SHOP"));
}

#[test]
fn validity_is_hours_and_minutes_rounded_down() {
    let valid = |seconds| {
        let request = request_of(&*smsc(), &sms_for(seconds));
        let body = String::from_utf8(request.body().to_vec()).unwrap();
        body.rsplit_once("valid=").unwrap().1.replace("%3A", ":")
    };

    let all = [valid(1), valid(119), valid(3_900), valid(1_000_000)];
    assert_eq!(all, ["00:01", "00:01", "01:05", "24:00"]);
}

#[test]
fn credentials_are_a_key_or_a_login() {
    let expected = ["api_key must be set, or else `login` and `password`"];

    assert_eq!(problems(&SPEC, &json!({})), expected);
    assert_eq!(problems(&SPEC, &json!({"login": "l"})), expected);
    let both = json!({"login": "l", "password": "p", "api_key": "k"});
    assert_eq!(problems(&SPEC, &both), expected);
}

#[test]
fn accepted_has_the_id_by_which_receipts_come() {
    assert_eq!(judge(&*smsc(), 200, r#"{"id":1,"cnt":1}"#), Ok(accepted_by_reference("1")));
    let more = r#"{"id":"12345","cnt":2,"cost":"1.40","balance":"100.50"}"#;
    assert_eq!(judge(&*smsc(), 200, more), Ok(accepted_by_reference("12345")));
    assert!(!smsc().deduplicates());
}

#[test]
fn error_inside_an_ok_has_its_class() {
    let code = |code: u64| {
        let body = json!({"error": "invalid number 79991234567", "error_code": code, "id": 7});
        refused(&*smsc(), 200, &body.to_string())
    };

    for account in 1..=6 {
        assert_eq!(code(account), format!("misconfigured: status 200, code {account}"));
    }
    assert_eq!(code(7), "rejected: status 200, code 7");
    assert_eq!(code(8), "unroutable: status 200, code 8");
    assert_eq!(code(9), "throttled: status 200, code 9");
    assert_eq!(code(99), "unroutable: status 200, code 99");
}

#[test]
fn answer_without_an_id_or_a_count_is_ambiguous() {
    for body in [r#"{"id":1}"#, r#"{"cnt":1}"#, "OK - 1 SMS, ID - 1234", "[]"] {
        assert_eq!(refused(&*smsc(), 200, body), "ambiguous: status 200", "{body}");
    }
}

fn signing() -> Box<dyn Provider> {
    made(&SPEC, &json!({"api_key": "k", "receipt_secret": "word"}))
}

#[test]
fn receipt_is_a_get_or_a_form() {
    let receipt = "id=12345&phone=79991234567&status=1&err=0&ts=1796061600";
    let delivered = Ok(vec![of_reference("12345", Receipt::Delivered)]);

    assert_eq!(got(&*smsc(), &format!("token=t&{receipt}")), delivered);
    assert_eq!(posted(&*smsc(), "token=t", &[], receipt), delivered);
    assert!(!smsc().verifies_receipts());
    for missing in ["token=t&id=1", "token=t&status=1", "token=t"] {
        assert_eq!(got(&*smsc(), missing), Err(ReceiptRefused::Unreadable));
    }
}

#[test]
fn digest_covers_id_phone_status_and_secret() {
    let receipt = "id=12345&phone=79991234567&status=1&err=0";
    let read = |digests: &str| posted(&*signing(), "", &[], &format!("{receipt}&{digests}"));
    let delivered = Ok(vec![of_reference("12345", Receipt::Delivered)]);

    assert!(signing().verifies_receipts());
    assert_eq!(read(&format!("md5={MD5}&sha1={SHA1}")), delivered);
    assert_eq!(read(&format!("sha1={}", SHA1.to_uppercase())), delivered);
    assert_eq!(read(&format!("md5={MD5}")), delivered);
    for wrong in [format!("md5={SHA1}"), format!("sha1={MD5}&md5={MD5}"), "sha1=&md5=".to_owned()] {
        assert_eq!(read(&wrong), Err(ReceiptRefused::BadSignature), "{wrong}");
    }
    assert_eq!(read("token=t"), Err(ReceiptRefused::Unsigned));
    let other = format!("id=12345&phone=79991234567&status=20&sha1={SHA1}");
    assert_eq!(got(&*signing(), &other), Err(ReceiptRefused::BadSignature));
    // The query cannot add what the signed body has already.
    let query = format!("id={ID}&status=20");
    let read = posted(&*signing(), &query, &[], &format!("{receipt}&sha1={SHA1}"));
    assert_eq!(read, delivered);
}

#[test]
fn states_that_are_final() {
    for (status, expected) in [
        ("-3", None),
        ("-1", None),
        ("0", None),
        ("1", Some(Receipt::Delivered)),
        ("2", Some(Receipt::Delivered)),
        ("4", Some(Receipt::Delivered)),
        ("3", Some(Receipt::Undelivered)),
        ("20", Some(Receipt::Undelivered)),
        ("22", Some(Receipt::Undelivered)),
        ("23", Some(Receipt::Undelivered)),
        ("24", Some(Receipt::Undelivered)),
        ("25", Some(Receipt::Undelivered)),
        ("99", None),
    ] {
        let receipts = expected.map(|it| of_reference("1", it)).into_iter().collect();
        assert_eq!(got(&*smsc(), &format!("id=1&status={status}")), Ok(receipts), "{status}");
    }
}

/// Answers as the documentation says.
fn server(request: &Received) -> Reply {
    let error =
        |code: u64| Reply::text(200, &json!({"error": "…", "error_code": code}).to_string());
    if (&*request.method, &*request.path) != ("POST", "/sys/send.php") {
        return Reply::text(404, "");
    }
    let Some(form) = form_of(request) else { return error(1) };
    let field = |name: &str| form.get(name).map_or("", String::as_str);
    if (field("login"), field("psw")) != ("shop", "pass&word") {
        return error(2);
    }
    if field("fmt") != "3" {
        return Reply::text(200, "OK - 1 SMS, ID - 1234");
    }
    if field("charset") != "utf-8" || field("mes").is_empty() || field("valid").len() != 5 {
        return error(1);
    }
    if field("phones").len() != 11 {
        return error(7);
    }
    Reply::text(200, r#"{"id":1234,"cnt":1}"#)
}

#[tokio::test]
async fn gateway_speaks_to_the_server() {
    let fake = Fake::strict(server).await;

    let accepted = gateway(&SPEC, &table(fake.url())).send(&sms_with("Код: 482915")).await;

    assert_eq!(accepted, Ok(accepted_by_reference("1234")));
    assert_eq!(form_of(&fake.received()[0]).unwrap()["mes"], "Код: 482915");
    let wrong = json!({"login": "shop", "password": "wrong", "url": fake.url()});
    let refused = gateway(&SPEC, &wrong).send(&sms()).await.unwrap_err();
    assert_eq!(refused.to_string(), "misconfigured: status 200, code 2");
}

#[tokio::test]
async fn other_answers_have_their_usual_outcome() {
    check_common_answers(&SPEC, table).await;
}
