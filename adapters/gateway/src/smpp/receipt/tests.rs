use proptest::prelude::*;
use smpp34::TlvTag;

use super::*;

fn report(esm_class: u8, text: &str, parameters: Vec<Tlv>) -> Report {
    read(&Delivery { esm_class, data_coding: 0, text: text.as_bytes(), parameters })
}

fn id(id: &str) -> Tlv {
    Tlv::from_c_string(TlvTag::ReceiptedMessageId, id)
}

fn state(state: u8) -> Tlv {
    Tlv::from_u8(TlvTag::MessageStateTlv, state)
}

fn delivered(id: &str) -> Report {
    Report::Final { id: id.to_owned(), receipt: Receipt::Delivered }
}

fn undelivered(id: &str) -> Report {
    Report::Final { id: id.to_owned(), receipt: Receipt::Undelivered }
}

#[track_caller]
fn check(text: &str, expected: &Report) {
    assert_eq!(report(4, text, vec![]), *expected, "{text}");
}

#[test]
fn the_text_of_appendix_b_is_a_receipt() {
    check(
        "id:0123456789 sub:001 dlvrd:001 submit date:2011301200 done date:2011301201 \
         stat:DELIVRD err:000 text:Your code",
        &delivered("0123456789"),
    );
}

#[test]
fn fields_have_any_order_and_any_case() {
    check("STAT:delivrd ERR:0 Id:aB-1", &delivered("aB-1"));
    check("err:001 stat:Undeliv sub:1 id:7 dlvrd:0", &undelivered("7"));
    check("id:7\rstat:REJECTD\nerr:1", &undelivered("7"));
    check("id:7,stat:EXPIRED;err:1", &undelivered("7"));
    check("id: 7 stat: DELETED", &undelivered("7"));
    check("message_id:9 id:7 stat:DELIVERED", &delivered("9"));
}

#[test]
fn a_field_in_the_text_of_the_sms_does_not_count() {
    check("id:7 stat:UNDELIV text:id:8 stat:DELIVRD", &undelivered("7"));
    check("text:Hello id:7 stat:DELIVRD", &delivered("7"));
}

#[test]
fn states_on_the_way_are_intermediate() {
    for word in ["ENROUTE", "ACCEPTD", "UNKNOWN"] {
        check(&format!("id:7 stat:{word}"), &Report::Intermediate);
    }
    for number in [0, 1, 6, 7] {
        assert_eq!(report(4, "", vec![id("7"), state(number)]), Report::Intermediate, "{number}");
    }
    assert_eq!(report(0x20, "id:7 stat:DELIVRD", vec![]), Report::Intermediate);
}

#[test]
fn parameters_are_a_receipt_without_a_text() {
    assert_eq!(report(4, "", vec![id("7f"), state(2)]), delivered("7f"));
    for failed in [3, 4, 5, 8, 9] {
        assert_eq!(report(4, "", vec![id("7f"), state(failed)]), undelivered("7f"), "{failed}");
    }
    let unterminated = Tlv::from_tag(TlvTag::ReceiptedMessageId, b"7f".to_vec());
    assert_eq!(report(4, "", vec![unterminated, state(2)]), delivered("7f"));
}

#[test]
fn the_text_gives_what_the_parameters_lack() {
    let text = "id:7 stat:DELIVRD err:000";

    assert_eq!(report(4, text, vec![id("8")]), delivered("8"));
    assert_eq!(report(4, text, vec![state(5)]), undelivered("7"));
    assert_eq!(report(4, text, vec![id(""), state(200)]), delivered("7"));
}

#[test]
fn a_text_counts_only_if_the_class_says_receipt() {
    let text = "id:7 stat:DELIVRD err:000";

    assert_eq!(report(0, text, vec![]), Report::NoReceipt);
    assert_eq!(report(0, text, vec![id("7")]), Report::NoReceipt);
    assert_eq!(report(0, text, vec![id("7"), state(2)]), delivered("7"));
    assert_eq!(report(0x08, text, vec![]), Report::NoReceipt);
    assert_eq!(report(0x44, "\x05\x00\x03\x01\x01\x01id:7 stat:DELIVRD", vec![]), delivered("7"));
}

#[test]
fn a_receipt_without_id_or_known_state_is_unreadable() {
    for text in ["", "Hello", "id:7", "stat:DELIVRD", "id: stat:DELIVRD", "id:7 stat:MAYBE"] {
        check(text, &Report::Unreadable);
    }
}

#[test]
fn a_text_may_be_in_the_payload_or_in_ucs2() {
    let text = b"id:7 stat:DELIVRD".to_vec();
    let payload = vec![Tlv::from_tag(TlvTag::MessagePayload, text.clone())];
    assert_eq!(report(4, "", payload), delivered("7"));

    let wide: Vec<u8> = text.iter().flat_map(|octet| [0, *octet]).collect();
    let wide = Delivery { esm_class: 4, data_coding: 8, text: &wide, parameters: vec![] };
    assert_eq!(read(&wide), delivered("7"));
}

#[test]
fn an_id_matches_in_any_case_with_and_without_zeros() {
    for id in ["1A2B", "1a2b", "00001a2B", " 1a2b "] {
        assert_eq!(canonical(id), "1a2b", "{id}");
    }
    assert_eq!(canonical("0000"), "0000");
    assert_eq!(canonical("A1-B2"), "a1-b2");
    assert_eq!(canonical("a\u{7}b"), "ab");
    assert_eq!(canonical(&"x".repeat(201)).len(), 200);
}

#[test]
fn the_settings_can_name_the_one_spelling() {
    assert_eq!(ReceiptIds::Same.reference("06699"), "6699");
    assert_eq!(ReceiptIds::Decimal.reference("06699"), "1a2b");
    assert_eq!(ReceiptIds::Hexadecimal.reference("1A2B"), "6699");
    assert_eq!(ReceiptIds::Decimal.reference("x9"), "x9");
    assert_eq!(ReceiptIds::Hexadecimal.reference("x9"), "x9");
}

proptest! {
    #[test]
    fn no_delivery_is_too_strange_to_read(
        esm_class in any::<u8>(),
        data_coding in any::<u8>(),
        text in prop::collection::vec(any::<u8>(), 0..300),
        tag in any::<u16>(),
        value in prop::collection::vec(any::<u8>(), 0..70),
    ) {
        let parameters = vec![Tlv::new(tag, value)];
        read(&Delivery { esm_class, data_coding, text: &text, parameters });
    }
}
