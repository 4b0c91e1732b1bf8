use super::*;
use crate::{
    MAX_VALUE_LENGTH, encode,
    fixtures::{
        CLEAR, KEY, OTHER_KEY, PLACE, TTL, at, keys, outgoing, received, sealed, with_keys,
    },
    headers::{EXPIRY_TIME, SPEC_VERSION, TIME, TYPE},
};
use application::ports::Outgoing;

/// Decodes a record of ours with some headers changed or removed.
fn with(changes: &[(&str, Option<&str>)]) -> Result<Incoming, Unreadable> {
    let mut record = encode(&outgoing());
    for (name, text) in changes {
        match text {
            Some(text) => record.headers.insert((*name).to_owned(), text.as_bytes().to_vec()),
            None => record.headers.remove(*name),
        };
    }
    decode(PLACE, Some(&record.value), &record.headers, CLEAR)
}

/// Decodes a value without headers.
fn bare(value: &str) -> Result<Incoming, Unreadable> {
    decode(PLACE, Some(value.as_bytes()), &Headers::new(), CLEAR)
}

#[test]
fn template_beside_the_code_is_read() {
    let (code, template) = ("048291".parse().unwrap(), "login/de".parse().ok());
    let code = CarriedCode::Clear { code, template };
    let outgoing = Outgoing { message: Message { code, ..outgoing().message }, ..outgoing() };

    let record = encode(&outgoing);

    assert_eq!(
        str::from_utf8(&record.value).unwrap(),
        r#"{"phone":"79991234567","code":"048291","template":"login/de"}"#
    );
    let incoming = decode(PLACE, Some(&record.value), &record.headers, CLEAR);
    assert_eq!(incoming, Ok(received(outgoing)));
}

#[test]
fn invalid_template_is_ignored() {
    for template in ["null", "17", r#""what is this""#, r#"{"name":"login/de"}"#] {
        let value = format!(r#"{{"phone":"79991234567","code":"1234","template":{template}}}"#);

        let incoming = bare(&value).unwrap();

        assert_eq!(incoming.message.code, "1234".parse().unwrap(), "{template}");
    }
}

#[test]
fn sealed_message_is_read_with_its_key_and_stays_sealed() {
    let record = encode(&sealed());
    let with = |keys: Option<&PayloadKeys>| {
        decode(PLACE, Some(&record.value), &record.headers, DecodeSettings { keys, ..CLEAR })
    };

    let rotated = keys(&format!("{OTHER_KEY},{KEY}"));
    for keys in [keys(KEY), rotated] {
        assert_eq!(with(Some(&keys)), Ok(received(sealed())));
    }
    let unknown = Err(Unreadable("sealed with a key that is not set here"));
    assert_eq!(with(None), unknown);
    assert_eq!(with(Some(&keys(OTHER_KEY))), unknown);
}

#[test]
fn seal_is_valid_for_its_message_only() {
    let record = encode(&sealed());
    let keys = keys(KEY);
    let damaged = Err(Unreadable("sealed for another message, or damaged"));
    let another = "6f2c1a52-9d3f-4f0e-8a55-0d2f6f3b9c12".as_bytes().to_vec();
    let mut headers = record.headers.clone();

    headers.insert(ID.to_owned(), another);
    assert_eq!(decode(PLACE, Some(&record.value), &headers, with_keys(&keys)), damaged);
    headers.remove(ID);
    assert_eq!(decode(PLACE, Some(&record.value), &headers, with_keys(&keys)), damaged);
}

#[test]
fn message_in_clear_is_read_if_keys_are_set() {
    let record = encode(&outgoing());
    let keys = keys(KEY);

    let incoming = decode(PLACE, Some(&record.value), &record.headers, with_keys(&keys));

    assert_eq!(incoming, Ok(received(outgoing())));
    // A member of that name of another producer is ignored.
    let more = br#"{"phone":"79991234567","code":"048291","sealed":true}"#;
    let incoming = decode(PLACE, Some(more), &record.headers, with_keys(&keys));
    assert_eq!(incoming, Ok(received(outgoing())));
}

#[test]
fn value_without_headers_is_a_message() {
    let incoming = bare(r#"{"phone":"79991234567","code":"1234","extra":[1]}"#).unwrap();

    let id = MessageId::of_record("message", 1, 42, PLACE.written_at);
    assert_eq!(incoming.message.id, id);
    assert_eq!(
        incoming.validity,
        Some(Validity::starting_at(at(1_700_000_000_123), TTL)),
        "valid from its timestamp"
    );
    assert_eq!((incoming.trace, incoming.sequence), (None, None));
}

#[test]
fn record_without_any_time_has_no_validity() {
    let value = br#"{"phone":"79991234567","code":"1234"}"#;

    let incoming =
        decode(Place { written_at: -1, ..PLACE }, Some(value), &Headers::new(), CLEAR).unwrap();

    assert_eq!(incoming.validity, None);
}

#[test]
fn invalid_time_falls_back_to_the_timestamp_of_the_record() {
    let fallback = Some(Validity::starting_at(at(1_700_000_000_123), TTL));
    for change in [(TIME, None), (TIME, Some("yesterday")), (EXPIRY_TIME, Some("2026-09-21"))] {
        assert_eq!(with(&[change]).unwrap().validity, fallback, "{change:?}");
    }
}

#[test]
fn invalid_trace_or_sequence_is_ignored() {
    let incoming = with(&[(TRACE_PARENT, Some("00-what")), (SEQUENCE, Some("x"))]).unwrap();

    assert_eq!((incoming.trace, incoming.sequence), (None, None));
}

#[test]
fn only_later_minor_versions_are_read() {
    for (name, text, known) in [
        (SPEC_VERSION, "1.1", true),
        (SPEC_VERSION, "10.0", false),
        (SPEC_VERSION, "2.0", false),
        (TYPE, "messager.message.accepted.v1.2", true),
        (TYPE, "messager.message.accepted.v10", false),
        (TYPE, "messager.message.accepted.v2", false),
        (TYPE, "something.else", false),
    ] {
        let answer = with(&[(name, Some(text))]).map(|_| ());
        let expected = if known { Ok(()) } else { Err(Unreadable("unknown version")) };
        assert_eq!(answer, expected, "{name}: {text}");
    }
}

/// The predecessor's consumer, on `encoding/json`, accepts each of these values.
#[test]
fn value_is_parsed_as_the_go_service_parses_it() {
    let invalid_utf_8: &[u8] =
        b"{\"phone\":\"79991234567\",\"code\":\"1234\",\"note\":\"\xff\",\"\xfe\":1}";
    for value in [
        br#"{"Phone":"79991234567","Code":"1234"}"#.as_slice(),
        br#"{"PHONE":"79991234567","cOdE":"1234"}"#,
        br#"{"phone":"1","code":"12","Phone":"79991234567","code":"1234"}"#,
        br#"{"Phone":"1","phone":"79991234567","code":"1234"}"#,
        br#"{"phone":"79991234567","phone":null,"code":"1234","Code":null}"#,
        br#"{"phone":null,"Phone":"79991234567","code":"1234"}"#,
        br#"{"phone":"79991234567","code":"1234","note":"\ud800","\udfff":1}"#,
        br#"{"phone":"79991234567","code":"1234","template":"\ud800"}"#,
        br#"{"phone":"79991234567","code":"1234","sealed":1e999,"n":1e999}"#,
        br#"{"\u0070hone":"\u00379991234567","code":"1234"}"#,
        b" \r\n\t{\"phone\":\"79991234567\",\"code\":\"1234\"} \r\n\t",
        invalid_utf_8,
    ] {
        let text = String::from_utf8_lossy(value);
        let message = decode(PLACE, Some(value), &Headers::new(), CLEAR).expect(&text).message;
        assert_eq!(message.phone.as_str(), "79991234567", "{text}");
        assert_eq!(message.code.as_text(), "1234", "{text}");
    }
    let deep = format!(
        r#"{{"phone":"79991234567","code":"1234","sealed":{}1{}}}"#,
        "[".repeat(9_000),
        "]".repeat(9_000)
    );
    assert!(bare(&deep).is_ok());
}

/// The predecessor's consumer refuses each of these values, or sends it to no phone.
#[test]
fn value_that_the_go_service_refuses_is_refused() {
    for value in [
        r#"{"phone":"79991234567","code":"1234"} x"#,
        r#"{"phone":"79991234567","code":"1234"}{}"#,
        "{\"phone\":\"79991234567\",\"code\":\"1234\"}\0",
        "\u{feff}{\"phone\":\"79991234567\",\"code\":\"1234\"}",
        "{\"phone\":\"79991234567\",\"code\":\"1234\",\"note\":\"a\tb\"}",
        r#"{"phone":"79991234567","phone":79991234567,"code":"1234"}"#,
        r#"{"phone":79991234567,"Phone":"79991234567","code":"1234"}"#,
        r#"{"phone":"79991234567","code":["1234"]}"#,
        r#"{"phone":"79991234567","code":null}"#,
        r#"{"phone ":"79991234567","code":"1234"}"#,
        r#"{"phone":"7999123456\ud800","code":"1234"}"#,
        r#"[{"phone":"79991234567","code":"1234"}]"#,
        "null",
    ] {
        assert!(bare(value).is_err(), "{value}");
    }
    let invalid_utf_8 = b"{\"phone\":\"7999123456\xff\",\"code\":\"1234\"}";
    let refused = decode(PLACE, Some(invalid_utf_8), &Headers::new(), CLEAR);
    assert_eq!(refused, Err(Unreadable("the phone is invalid")));
}

#[test]
fn only_sealed_messages_are_read_if_seals_are_required() {
    let keys = keys(KEY);
    let strict = DecodeSettings { require_sealed: true, ..with_keys(&keys) };
    let refused = Err(Unreadable("not sealed, which REQUIRE_SEALED refuses"));

    let clear = encode(&outgoing());
    assert_eq!(decode(PLACE, Some(&clear.value), &clear.headers, strict), refused);
    for value in [
        br#"{"Phone":"79991234567","Code":"1234"}"#.as_slice(),
        br#"{"phone":"79991234567","code":"1234","sealed":"s1.k1.AAAA"}"#,
    ] {
        assert_eq!(decode(PLACE, Some(value), &Headers::new(), strict), refused);
    }
    let under_seal = encode(&sealed());
    let read = decode(PLACE, Some(&under_seal.value), &under_seal.headers, strict);
    assert_eq!(read, Ok(received(sealed())));
}

#[test]
fn unreadable_record_states_the_reason() {
    assert_eq!(with(&[(ID, Some("42"))]), Err(Unreadable("the id is not a UUID")));
    assert_eq!(
        decode(PLACE, None, &Headers::new(), CLEAR),
        Err(Unreadable("the record has no value"))
    );
    for (value, text) in [
        ("", "the value is not JSON"),
        ("hello", "the value is not JSON"),
        (r#"{"phone":"79991234567"}"#, "the value lacks a phone or a code as text"),
        (r#" ["79991234567","1234"]"#, "the value lacks a phone or a code as text"),
        (r#"{"phone":79991234567,"code":1}"#, "the value lacks a phone or a code as text"),
        (r#"{"phone":"+79991234567","code":"1234"}"#, "the phone is invalid"),
        (r#"{"phone":"79991234567","code":"12"}"#, "the code is invalid"),
        (r#"{"phone":"79991234567","code":"482915;login/de"}"#, "the code is invalid"),
        (r#"{"phone":"79991234567","code":"s1.k1.AAAA"}"#, "the code is invalid"),
        (r#"{"sealed":17}"#, "the value lacks a phone or a code as text"),
        (
            r#"{"phone":"79991234567","sealed":"s1.k1.AAAA"}"#,
            "the value lacks a phone or a code as text",
        ),
        (r#"{"sealed":"s9.k1.AAAA"}"#, "the seal has an unknown format"),
    ] {
        assert_eq!(bare(value), Err(Unreadable(text)), "{value}");
    }
    let padding = " ".repeat(MAX_VALUE_LENGTH);
    assert_eq!(
        bare(&format!(r#"{{"phone":"79991234567","code":"1234"}}{padding}"#)),
        Err(Unreadable("the value is too large"))
    );
}
