use proptest::prelude::*;

use super::*;

#[track_caller]
fn learnt(receipts: &[(&str, &[&str])]) -> Spelling {
    let spelling = Spelling::new(ReceiptIds::Any);
    for (id, known) in receipts {
        let known: Vec<String> = known.iter().map(|it| (*it).to_owned()).collect();
        spelling.learn(id, &known);
    }
    spelling
}

#[test]
fn an_id_may_be_hexadecimal_or_decimal() {
    assert_eq!(Spelling::references("6699"), ["6699", "1a2b", "26265"]);
    assert_eq!(Spelling::references("1A2B"), ["1a2b", "6699"]);
    assert_eq!(Spelling::references("0a-7"), ["a-7"]);
    assert_eq!(Spelling::references("5"), ["5"]);
}

#[test]
fn settings_and_ids_without_other_spellings_need_no_receipts() {
    let reference = |ids, id| Spelling::new(ids).reference(id);

    assert_eq!(reference(ReceiptIds::Decimal, "16").as_deref(), Some("10"));
    assert_eq!(reference(ReceiptIds::Any, "A-7").as_deref(), Some("a-7"));
    assert_eq!(reference(ReceiptIds::Any, "16"), None);
}

#[test]
fn one_receipt_with_a_long_id_shows_the_spelling() {
    let check = |id, known, expected| {
        let reference = learnt(&[(id, &[known])]).reference("0000000016");
        assert_eq!(reference.as_deref(), Some(expected), "{id} {known}");
    };

    check("0000043777", "43777", "16");
    check("0000043777", "ab01", "10");
    check("0000043777", "276343", "22");
}

#[test]
fn three_receipts_with_short_ids_show_the_spelling() {
    let receipts: [(&str, &[&str]); 4] =
        [("17", &["11"]), ("18", &["12"]), ("18", &["12"]), ("19", &["13"])];

    assert_eq!(learnt(&receipts[..3]).reference("16"), None, "the third is a repetition");
    assert_eq!(learnt(&receipts).reference("16").as_deref(), Some("10"));
}

#[test]
fn receipts_that_contradict_each_other_show_nothing() {
    let mut receipts: Vec<(&str, &[&str])> = vec![("43777", &["43777"]), ("10", &["16"])];

    assert_eq!(learnt(&receipts).reference("16"), None);
    // A receipt that fits two messages is not counted.
    receipts.push(("17", &["17", "23"]));
    assert_eq!(learnt(&receipts).reference("16"), None);
    receipts.push(("18", &["18"]));
    assert_eq!(learnt(&receipts).reference("16").as_deref(), Some("16"));
}

#[test]
fn a_change_at_the_smsc_is_noticed() {
    let spelling = Spelling::new(ReceiptIds::Any);
    let show = |range: std::ops::Range<u32>, known: fn(u32) -> String| {
        range.for_each(|number| spelling.learn(&number.to_string(), &[known(number)]));
    };

    show(100_000..110_000, |number| number.to_string());
    assert_eq!(spelling.reference("16").as_deref(), Some("16"));
    show(110_000..111_000, |number| format!("{number:x}"));
    assert_eq!(spelling.reference("16").as_deref(), Some("10"));
}

proptest! {
    #[test]
    fn both_spellings_of_a_number_are_found(number in any::<u64>()) {
        let (decimal, hexadecimal) = (number.to_string(), format!("{number:X}"));

        prop_assert!(Spelling::references(&decimal).contains(&canonical(&hexadecimal)));
        prop_assert!(Spelling::references(&hexadecimal).contains(&canonical(&decimal)));
    }
}
