use domain::{Encoding, Measure};
use proptest::prelude::*;

use super::*;

#[track_caller]
fn check(text: &str, alphabet: DefaultAlphabet, data_coding: u8, octets: &[u8]) {
    let parts = parts(text, alphabet, 0).unwrap();

    assert_eq!(parts.len(), 1, "{text}");
    assert_eq!((parts[0].esm_class, parts[0].data_coding), (0, data_coding), "{text}");
    assert_eq!(parts[0].octets, octets, "{text}");
}

#[test]
fn a_text_in_gsm_goes_out_unpacked_in_the_default_alphabet() {
    check("Code @ 1", DefaultAlphabet::Gsm, 0, b"Code \x00 1");
    check("{5 €}", DefaultAlphabet::Gsm, 0, &[0x1b, 0x28, b'5', b' ', 0x1b, 0x65, 0x1b, 0x29]);
}

#[test]
fn a_text_outside_gsm_goes_out_in_ucs2() {
    check("Код", DefaultAlphabet::Gsm, 8, &[0x04, 0x1a, 0x04, 0x3e, 0x04, 0x34]);
    check("😀", DefaultAlphabet::Gsm, 8, &[0xd8, 0x3d, 0xde, 0x00]);
    check("ç", DefaultAlphabet::Latin1, 8, &[0x00, 0xe7]);
}

#[test]
fn a_default_alphabet_of_latin1_or_ascii_has_its_own_octets() {
    check("@é_", DefaultAlphabet::Latin1, 0, &[0x40, 0xe9, 0x5f]);
    check("@_", DefaultAlphabet::Ascii, 0, &[0x40, 0x5f]);
    check("é", DefaultAlphabet::Ascii, 8, &[0x00, 0xe9]);
    check("€", DefaultAlphabet::Latin1, 8, &[0x20, 0xac]);
}

#[test]
fn each_part_of_a_long_text_has_a_header_and_at_most_153_septets() {
    let parts = parts(&"a".repeat(307), DefaultAlphabet::Gsm, 0x7f).unwrap();

    let heads: Vec<_> = parts.iter().map(|part| &part.octets[..6]).collect();
    assert_eq!(heads, [[5, 0, 3, 0x7f, 3, 1], [5, 0, 3, 0x7f, 3, 2], [5, 0, 3, 0x7f, 3, 3]]);
    let lengths: Vec<_> = parts.iter().map(|part| part.octets.len()).collect();
    assert_eq!(lengths, [159, 159, 7]);
    assert!(parts.iter().all(|part| part.esm_class == 0x40 && part.data_coding == 0));
}

#[test]
fn a_part_in_ucs2_has_at_most_140_octets() {
    let parts = parts(&"ж".repeat(71), DefaultAlphabet::Gsm, 1).unwrap();

    let lengths: Vec<_> = parts.iter().map(|part| part.octets.len()).collect();
    assert_eq!(lengths, [140, 6 + 8]);
    assert!(parts.iter().all(|part| part.data_coding == 8));
}

#[test]
fn an_escape_or_a_surrogate_is_not_split_between_parts() {
    let escaped =
        parts(&format!("{}€{}", "a".repeat(152), "a".repeat(152)), DefaultAlphabet::Gsm, 1);
    let escaped = escaped.unwrap();
    assert_eq!(escaped[0].octets.len(), 6 + 152);
    assert_eq!(escaped[1].octets[6..8], [0x1b, 0x65]);

    let paired = parts(&format!("{}😀{}", "ж".repeat(66), "ж".repeat(9)), DefaultAlphabet::Gsm, 1);
    let paired = paired.unwrap();
    assert_eq!(paired[0].octets.len(), 6 + 132);
    assert_eq!(paired[1].octets[6..10], [0xd8, 0x3d, 0xde, 0x00]);
}

#[test]
fn a_text_of_more_than_255_parts_is_refused() {
    assert_eq!(parts(&"a".repeat(153 * 255), DefaultAlphabet::Gsm, 1).unwrap().len(), 255);
    assert!(parts(&"a".repeat(153 * 255 + 1), DefaultAlphabet::Gsm, 1).is_none());
}

proptest! {
    /// The price and the limit of segments are computed with the measure.
    #[test]
    fn a_text_has_as_many_parts_as_its_measure_says(text in "[a-z€{}éж😀]{0,400}") {
        let measure = Measure::of(&text);

        let parts = parts(&text, DefaultAlphabet::Gsm, 1).unwrap();

        prop_assert_eq!(parts.len(), measure.segments);
        let coding = if measure.encoding == Encoding::Gsm7 { 0 } else { 8 };
        prop_assert!(parts.iter().all(|part| part.data_coding == coding));
    }
}
