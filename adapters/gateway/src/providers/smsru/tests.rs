use application::ports::{Receipt, Sms, SmsGateway};
use serde_json::{Value, json};

use super::*;
use crate::{
    request::form,
    testing::{
        Fake, Received, Reply, gateway, judge, made, problems, request_of,
        short::{
            check_common_answers, form_of, of_reference, posted, refused, sms, sms_for, sms_with,
            with_headers,
        },
        status_of,
    },
};

const API_ID: &str = "11111111-2222-3333-4444-555555555555";
const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

fn table(url: &str) -> Value {
    json!({"api_id": API_ID, "url": url})
}

fn smsru() -> Box<dyn Provider> {
    made(&SPEC, &json!({"api_id": API_ID}))
}

#[test]
fn sms_is_posted_as_a_form() {
    assert_eq!(
        with_headers(&request_of(&*smsru(), &sms())),
        "POST https://sms.ru/sms/send\n\
         content-type: application/x-www-form-urlencoded\n\
         \n\
         api_id=11111111-2222-3333-4444-555555555555&to=79991234567&msg=Your+code%3A+482915&json=1&ttl=5"
    );
}

#[test]
fn sender_and_test_go_along() {
    let smsru = made(&SPEC, &json!({"api_id": "a", "from": "Shop", "test": true}));
    let body = |sms| String::from_utf8(request_of(&*smsru, &sms).body().to_vec()).unwrap();

    assert_eq!(
        body(sms_with("Код")),
        "api_id=a&to=79991234567&msg=%D0%9A%D0%BE%D0%B4&json=1&ttl=5&from=Shop&test=1"
    );
    let other = Sms { sender: Some("SHOP".into()), ..sms() };
    assert!(body(other).ends_with("&ttl=5&from=SHOP&test=1"));
}

#[test]
fn time_to_live_is_rounded_down_and_bounded() {
    let ttl = |seconds| {
        let request = request_of(&*smsru(), &sms_for(seconds));
        let body = String::from_utf8(request.body().to_vec()).unwrap();
        body.rsplit_once("ttl=").unwrap().1.to_owned()
    };

    assert_eq!([ttl(1), ttl(119), ttl(120), ttl(1_000_000)], ["1", "1", "2", "1440"]);
}

fn answer_for(recipient: &Value) -> String {
    json!({
        "status": "OK", "status_code": 100, "sms": {"79991234567": recipient}, "balance": 4122.56,
    })
    .to_string()
}

#[test]
fn accepted_has_the_id_by_which_receipts_come() {
    let recipient = json!({"status": "OK", "status_code": 100, "sms_id": "000000-10000000"});

    let accepted = judge(&*smsru(), 200, &answer_for(&recipient));

    assert_eq!(accepted, Ok(accepted_by_reference("000000-10000000")));
    assert!(!smsru().deduplicates());
}

#[test]
fn error_of_the_recipient_is_inside_an_ok() {
    let code = |code| {
        let text = "Неправильно указан номер 79991234567";
        let recipient = json!({"status": "ERROR", "status_code": code, "status_text": text});
        refused(&*smsru(), 200, &answer_for(&recipient))
    };

    for number in [202, 203, 205, 207, 209, 214, 230, 232, 233, 999] {
        assert_eq!(code(number), format!("unroutable: status 200, code {number}"));
    }
    for account in [201, 204, 206] {
        assert_eq!(code(account), format!("misconfigured: status 200, code {account}"));
    }
    assert_eq!(code(231), "throttled: status 200, code 231");
}

#[test]
fn error_of_the_request_has_its_class() {
    let code = |code: u64| {
        let body = json!({"status": "ERROR", "status_code": code, "status_text": "…"});
        refused(&*smsru(), 200, &body.to_string())
    };

    for account in [200, 201, 206, 208, 210, 211, 300, 301, 302] {
        assert_eq!(code(account), format!("misconfigured: status 200, code {account}"));
    }
    assert_eq!(code(212), "unroutable: status 200, code 212");
    assert_eq!(code(220), "unavailable: status 200, code 220");
    assert_eq!(code(500), "ambiguous: status 200, code 500");
}

#[test]
fn acceptance_without_an_id_is_ambiguous() {
    for body in [
        answer_for(&json!({"status": "OK", "status_code": 100})),
        answer_for(&json!({"status": "OK"})),
        json!({"status": "OK", "status_code": 100}).to_string(),
        json!({"status": "OK", "status_code": 100, "sms": []}).to_string(),
        "100\n201523-1000007\nbalance=52.54".to_owned(),
    ] {
        assert_eq!(refused(&*smsru(), 200, &body), "ambiguous: status 200", "{body}");
    }
}

fn signed(records: &[&str]) -> String {
    let hash = sha256_hex((API_ID.to_owned() + &records.concat()).as_bytes());
    let names: Vec<_> = (0..records.len()).map(|number| format!("data[{number}]")).collect();
    let mut pairs: Vec<(&str, &str)> =
        names.iter().map(String::as_str).zip(records.iter().copied()).collect();
    pairs.push(("hash", &hash));
    form(&pairs)
}

#[test]
fn post_has_several_receipts() {
    let body = signed(&[
        "sms_status\n000000-1\n103\n1796061600",
        "sms_status\n000000-2\n104\n1796061600",
        "sms_status\n000000-3\n102\n1796061600",
        "callcheck_status\n000000-4\n401\n1796061600",
        "test\n1796061600",
        "sms_status\r\n000000-5\r\n110\r\n1796061600",
        "sms_status\n000000-6",
    ]);

    let read = posted(&*smsru(), "", &[FORM], &body).unwrap();

    assert_eq!(
        read,
        [
            of_reference("000000-1", Receipt::Delivered),
            of_reference("000000-2", Receipt::Undelivered),
            of_reference("000000-5", Receipt::Delivered),
        ]
    );
    assert_eq!(smsru().receipt_reply(), ReceiptReply::text("100"));
    assert!(smsru().verifies_receipts());
}

#[test]
fn states_that_are_final() {
    for (code, expected) in [
        (100, None),
        (101, None),
        (102, None),
        (103, Some(Receipt::Delivered)),
        (104, Some(Receipt::Undelivered)),
        (105, Some(Receipt::Undelivered)),
        (106, Some(Receipt::Undelivered)),
        (107, Some(Receipt::Undelivered)),
        (108, Some(Receipt::Undelivered)),
        (110, Some(Receipt::Delivered)),
        (150, Some(Receipt::Undelivered)),
        (130, None),
    ] {
        assert_eq!(state(code), expected, "{code}");
    }
}

/// The hash was computed with `sha256sum`.
#[test]
fn hash_is_that_of_the_id_and_all_records() {
    let record = "sms_status%0A201737-100000%0A103%0A1786346415";
    let hash = "457f312eccd7df78d9b9ea87fde75313780da201a6a7e31affea01edca00df50";
    let read = |body: &str| posted(&*smsru(), "", &[FORM], body);

    let delivered = Ok(vec![of_reference("201737-100000", Receipt::Delivered)]);
    assert_eq!(read(&format!("data%5B0%5D={record}&hash={hash}")), delivered);
    assert_eq!(read(&format!("data[]={record}&hash={}", hash.to_uppercase())), delivered);
    let other = record.replace("103", "104");
    let bad = Err(ReceiptRefused::BadSignature);
    assert_eq!(read(&format!("data[0]={other}&hash={hash}")), bad);
    assert_eq!(read(&format!("data[0]={record}&data[1]={record}&hash={hash}")), bad);
    assert_eq!(read(&format!("data[0]={record}&hash=")), bad);
    assert_eq!(read(&format!("data[0]={record}")), Err(ReceiptRefused::Unsigned));
}

#[test]
fn records_are_hashed_in_the_order_of_their_numbers() {
    let pairs: Vec<_> = ["data[10]", "data[2]", "hash", "data[x]", "data"]
        .iter()
        .map(|name| ((*name).to_owned(), format!("<{name}>")))
        .collect();

    assert_eq!(records(&pairs), ["<data[2]>", "<data[10]>"]);
}

#[test]
fn without_the_hash_the_token_is_required() {
    let smsru = made(&SPEC, &json!({"api_id": API_ID, "receipt_hash": "false"}));

    let read = posted(&*smsru, "token=t", &[FORM], "data[0]=sms_status%0A1%0A103%0A1");

    assert!(!smsru.verifies_receipts());
    assert_eq!(read, Ok(vec![of_reference("1", Receipt::Delivered)]));
    let nothing = posted(&*smsru, "token=t", &[FORM], "a=b");
    assert_eq!(nothing, Err(ReceiptRefused::Unreadable));
}

#[test]
fn state_is_asked_for_by_the_id() {
    let request = smsru().status_request("000000-1").unwrap();

    assert_eq!(
        with_headers(&request),
        "POST https://sms.ru/sms/status\n\
         content-type: application/x-www-form-urlencoded\n\
         \n\
         api_id=11111111-2222-3333-4444-555555555555&sms_id=000000-1&json=1"
    );
    let state = |code: i64| {
        let body = json!({
            "status": "OK", "status_code": 100,
            "sms": {"000000-1": {"status": "OK", "status_code": code}},
        });
        status_of(&*smsru(), 200, &body.to_string())
    };
    assert_eq!(state(103), Some(Receipt::Delivered));
    assert_eq!(state(104), Some(Receipt::Undelivered));
    assert_eq!(state(102), None);
    assert_eq!(state(-1), None);
    assert_eq!(status_of(&*smsru(), 200, ""), None);
}

#[test]
fn missing_id_is_named() {
    assert_eq!(problems(&SPEC, &json!({})), ["api_id is missing"]);
}

/// Answers as the documentation says.
fn server(request: &Received) -> Reply {
    let error =
        |code: u64| Reply::text(200, &json!({"status": "ERROR", "status_code": code}).to_string());
    if request.path != "/sms/send" {
        return error(211);
    }
    if request.method != "POST" {
        return error(210);
    }
    let Some(form) = form_of(request) else { return error(202) };
    let field = |name: &str| form.get(name).map_or("", String::as_str);
    if field("api_id") != API_ID {
        return error(200);
    }
    if field("json") != "1" {
        return Reply::text(200, "100\n000000-1\nbalance=1");
    }
    let ttl: u64 = field("ttl").parse().unwrap_or(0);
    if !(1..=1440).contains(&ttl) {
        return error(208);
    }
    let recipient = match (field("to"), field("msg")) {
        (to, _) if to.len() != 11 => json!({"status": "ERROR", "status_code": 202}),
        (_, "") => json!({"status": "ERROR", "status_code": 203}),
        _ => json!({"status": "OK", "status_code": 100, "sms_id": "000000-1"}),
    };
    Reply::text(200, &answer_for(&recipient))
}

#[tokio::test]
async fn gateway_speaks_to_the_server() {
    let fake = Fake::strict(server).await;

    let accepted = gateway(&SPEC, &table(fake.url())).send(&sms_with("Код: 482915")).await;

    assert_eq!(accepted, Ok(accepted_by_reference("000000-1")));
    assert_eq!(form_of(&fake.received()[0]).unwrap()["msg"], "Код: 482915");
    let wrong = json!({"api_id": "wrong", "url": fake.url()});
    let refused = gateway(&SPEC, &wrong).send(&sms()).await.unwrap_err();
    assert_eq!(refused.to_string(), "misconfigured: status 200, code 200");
}

#[tokio::test]
async fn other_answers_have_their_usual_outcome() {
    check_common_answers(&SPEC, table).await;
}
