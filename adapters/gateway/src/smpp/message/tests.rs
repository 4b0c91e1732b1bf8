use std::sync::Arc;

use super::*;
use crate::smpp::{tests::settings, tests::sms};

#[track_caller]
fn check_relative(seconds: u64, expected: &str) {
    assert_eq!(relative(Duration::from_secs(seconds)), expected, "{seconds}");
}

fn octets(sms: &Sms, settings: &SmppSettings) -> Vec<Vec<u8>> {
    let messages = short_messages(sms, settings, true).unwrap();
    messages.iter().map(|message| message.encode(2)).collect()
}

#[test]
fn a_relative_time_has_sixteen_characters() {
    check_relative(0, "000000000001000R");
    check_relative(59, "000000000059000R");
    check_relative(300, "000000000500000R");
    check_relative(3_661, "000000010101000R");
    check_relative(86_400 + 7_200, "000001020000000R");
    check_relative(u64::MAX, "000030000000000R");
}

/// Written by hand from SMPP 3.4 §4.4.1.
#[test]
fn a_submit_has_the_octets_of_the_specification() {
    let octets = octets(&sms("Code 123456"), &settings());

    let expected = b"\0\0\0\x4b\0\0\0\x04\0\0\0\0\0\0\0\x02\
        \0\
        \x05\0Shop\0\
        \x01\x0179991234567\0\
        \0\0\0\
        \0\
        000000000500000R\0\
        \x01\0\0\0\
        \x0bCode 123456";
    assert_eq!(octets, [expected.to_vec()]);
}

#[test]
fn the_parts_of_a_long_text_have_a_header_and_only_the_last_asks_for_a_receipt() {
    let sms = sms(&"ж".repeat(71));
    let reference = sms.message.id.as_uuid().as_bytes()[15];

    let octets = octets(&sms, &settings());

    let tail = |part: u8, receipt: u8, length: u8| {
        let mut tail = vec![receipt, 0, 8, 0, length, 5, 0, 3, reference, 2, part];
        tail.extend([0x04, 0x36].repeat((usize::from(length) - 6) / 2));
        tail
    };
    assert!(octets[0].ends_with(&tail(1, 0, 140)));
    assert!(octets[1].ends_with(&tail(2, 1, 14)));
    // `esm_class` follows the recipient.
    let recipient = b"79991234567\0\x40\0\0";
    assert!(octets.iter().all(|it| it.windows(recipient.len()).any(|found| found == recipient)));
}

#[test]
fn without_receipts_none_is_asked_for() {
    let message = short_messages(&sms("a"), &settings(), false).unwrap().remove(0);

    assert!(message.encode(2).ends_with(b"000000000500000R\0\0\0\0\0\x01a"));
}

#[test]
fn without_validity_the_field_is_empty() {
    let settings = SmppSettings { validity: false, ..settings() };

    assert!(octets(&sms("a"), &settings)[0].ends_with(b"79991234567\0\0\0\0\0\0\x01\0\0\0\x01a"));
}

#[test]
fn the_sender_of_the_route_replaces_that_of_the_gateway() {
    let sms = Sms { sender: Some("1234".into()), ..sms("a") };

    let octets = octets(&sms, &settings());

    assert_eq!(
        octets[0][16..],
        b"\0\x03\x001234\0\x01\x0179991234567\0\0\0\0\x00000000000500000R\0\x01\0\0\0\x01a"[..]
    );
}

#[test]
fn a_sender_that_no_sms_can_carry_is_misconfigured() {
    let sms = Sms { sender: Some("A sender too long".into()), ..sms("a") };

    let refused = short_messages(&sms, &settings(), true).err();

    let text = "the sender is no number and no name".to_owned();
    assert_eq!(refused, Some(SendError::Misconfigured(text)));
}

#[test]
fn parameters_of_the_route_become_optional_parameters() {
    let with = |params: &[(&str, &str)]| {
        let params = params.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Sms { params: Arc::new(params.collect()), ..sms("a") }
    };
    let good = with(&[("tlv_1402", "77"), ("dlt_entity_id", "1201"), ("priority", "1")]);

    assert!(octets(&good, &settings())[0].ends_with(b"\x01a\x14\0\0\x041201\x14\x02\0\x0277"));
    for name in ["tlv_14", "tlv_14000", "tlv_zzzz"] {
        let refused = short_messages(&with(&[(name, "1")]), &settings(), true).err();
        assert!(matches!(refused, Some(SendError::Misconfigured(_))), "{name}");
    }
}
