use serde_json::{Value, json};

use super::*;

fn read_all(table: &Value) -> (Option<SmppSettings>, Vec<String>) {
    let mut fields = Fields::new(FIELDS, table.as_object().unwrap());
    let settings = read(&mut fields, Duration::from_secs(10));
    (settings, fields.into_problems().iter().map(ToString::to_string).collect())
}

/// Reads good settings with one more field.
fn with(name: &str, value: Value) -> (Option<SmppSettings>, Vec<String>) {
    let mut table = json!({"host": "smsc.example", "system_id": "me", "password": "secret"});
    table[name] = value;
    read_all(&table)
}

#[test]
fn defaults_are_those_of_common_smscs() {
    let (settings, problems) =
        read_all(&json!({"host": "smsc.example", "system_id": "me", "password": "secret"}));
    let settings = settings.unwrap();

    assert_eq!(problems, [""; 0]);
    assert_eq!(
        (settings.host.as_str(), settings.port, settings.tls),
        ("smsc.example", 2775, false)
    );
    assert_eq!((settings.window, settings.connections), (10, 1));
    assert_eq!(settings.enquire_link_interval, Duration::from_secs(30));
    assert_eq!(settings.default_alphabet, DefaultAlphabet::Gsm);
    assert_eq!(settings.receipt_ids, ReceiptIds::Any);
    assert!(settings.validity && settings.receipts && settings.from.is_empty());
    assert_eq!(settings.source, Numbering::default());
}

#[test]
fn a_url_names_host_port_and_tls() {
    let place = |url: &str| {
        let (settings, problems) =
            read_all(&json!({"url": url, "system_id": "me", "password": "secret"}));
        settings.map(|it| (it.host, it.port, it.tls)).ok_or(problems)
    };

    let good = |host: &str, port, tls| Ok((host.to_owned(), port, tls));
    assert_eq!(place("smpp://smsc.example:2776"), good("smsc.example", 2776, false));
    assert_eq!(place("smpps://smsc.example"), good("smsc.example", 2775, true));
    assert_eq!(place("ssmpp://10.0.0.1:3550/"), good("10.0.0.1", 3550, true));
    assert_eq!(place("smpp://[::1]:2775"), good("::1", 2775, false));
    for url in [
        "smsc.example",
        "http://smsc.example",
        "smpp://",
        "smpp://me@smsc",
        "smpp://a:99999",
        "smpp://a:",
        "smpp://::1",
    ] {
        let problem = "url must be smpp://host:port or smpps://host:port".to_owned();
        assert_eq!(place(url), Err(vec![problem]), "{url}");
    }
}

#[test]
fn each_bad_field_is_a_problem() {
    let problems = |name, value| with(name, value).1;

    assert_eq!(problems("from", json!("A sender too long")).len(), 1);
    assert_eq!(problems("system_type", json!("тип")), ["system_type must be ASCII"]);
    assert_eq!(problems("source_ton", json!(256)).len(), 1);
    assert_eq!(problems("url", json!("smpp://a")), ["host cannot be set together with url"]);
    let (settings, problems) = read_all(&json!({}));
    assert_eq!(settings, None);
    assert_eq!(
        problems,
        ["url is missing, and so is host", "system_id is missing", "password is missing"]
    );
}

#[test]
fn words_and_numbers_are_read() {
    let settings = |name, value| with(name, value).0.unwrap();

    assert_eq!(
        settings("default_alphabet", json!("latin1")).default_alphabet,
        DefaultAlphabet::Latin1
    );
    assert_eq!(settings("receipt_ids", json!("decimal")).receipt_ids, ReceiptIds::Decimal);
    assert_eq!(settings("source_ton", json!(5)).source, Numbering { ton: Some(5), npi: None });
    assert_eq!(settings("destination_npi", json!("0")).destination.npi, Some(0));
    assert_eq!(settings("window", json!(50)).window, 50);
}

#[test]
fn the_credentials_are_not_shown() {
    let settings = with("from", json!("Shop")).0.unwrap();

    let shown = format!("{settings:?}");
    assert!(!shown.contains("secret") && !shown.contains("\"me\""), "{shown}");
}
