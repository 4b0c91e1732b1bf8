use std::ops::Range;

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

/// Messages without receipts.
fn codes(approved: u32, sent: u32) -> HealthCounts {
    HealthCounts { sent, approved, ..HealthCounts::default() }
}

/// Messages without checks.
fn receipts(in_time: u32, reported: u32, sent: u32) -> HealthCounts {
    HealthCounts { sent, reported, in_time, approved: 0 }
}

#[track_caller]
fn check(own: HealthCounts, others: &[HealthCounts], expected: Comparison) {
    assert_eq!(own.compare(others), expected, "{own:?} against {others:?}");
}

#[test]
fn gateway_is_worse_if_clearly_fewer_of_its_codes_are_approved() {
    let worse = Comparison::Worse(Lack::Approvals);

    check(codes(60, 200), &[codes(120, 200)], worse);
    check(codes(0, 50), &[codes(30, 50)], worse);
    check(codes(0, 100), &[codes(60, 100), codes(0, 10)], worse);
    check(codes(120, 200), &[codes(60, 200)], Comparison::NotWorse);
    check(codes(120, 200), &[codes(118, 200)], Comparison::NotWorse);
}

#[test]
fn small_difference_is_not_worse_however_clear_it_is() {
    check(codes(50_000, 100_000), &[codes(60_000, 100_000)], Comparison::NotWorse);
    check(codes(47_000, 100_000), &[codes(60_000, 100_000)], Comparison::Worse(Lack::Approvals));
}

#[test]
fn large_difference_between_few_messages_is_not_worse() {
    check(codes(20, 50), &[codes(32, 50)], Comparison::NotWorse);
    check(codes(0, 49), &[codes(100, 100)], Comparison::Unknown);
    check(codes(0, 100), &[codes(49, 49)], Comparison::Unknown);
    check(codes(0, 100), &[], Comparison::Unknown);
}

#[test]
fn conversion_says_nothing_if_no_code_is_approved() {
    check(codes(0, 1_000), &[codes(0, 1_000)], Comparison::Unknown);
    check(
        receipts(100, 1_000, 1_000),
        &[receipts(950, 1_000, 1_000)],
        Comparison::Worse(Lack::Receipts),
    );
    check(receipts(950, 980, 1_000), &[receipts(960, 990, 1_000)], Comparison::NotWorse);
}

#[test]
fn receipts_are_compared_between_gateways_that_report_any() {
    let silent = receipts(0, 0, 1_000);
    let good = receipts(950, 960, 1_000);
    let bad = receipts(500, 960, 1_000);

    check(silent, &[good], Comparison::Unknown);
    check(good, &[silent], Comparison::Unknown);
    check(bad, &[good, silent], Comparison::Worse(Lack::Receipts));
}

#[test]
fn late_receipts_do_not_count_if_the_codes_come_back() {
    let of = |in_time, approved| HealthCounts { sent: 500, reported: 500, in_time, approved };

    check(of(10, 290), &[of(490, 300)], Comparison::NotWorse);
    check(of(10, 250), &[of(490, 300)], Comparison::Worse(Lack::Receipts));
}

#[test]
fn equal_gateways_hardly_ever_seem_different() {
    let mut rng = StdRng::seed_from_u64(7);
    let mut draw = |sent| codes((0..sent).map(|_| u32::from(rng.random_bool(0.6))).sum(), sent);
    let mut worse = 0;
    for sent in [50, 100, 200, 1_000] {
        for _ in 0..1_000 {
            worse += u32::from(matches!(draw(sent).compare(&[draw(sent)]), Comparison::Worse(_)));
        }
    }

    assert!(worse <= 10, "{worse} of 4,000");
}

#[test]
fn factor_moves_one_step_and_not_twice_in_ten_minutes() {
    let worse = Comparison::Worse(Lack::Approvals);
    let almost = Duration::from_secs(599);
    let mut percents = vec![Factor::FULL.percent()];
    let mut factor = Factor::FULL;
    for comparison in [worse; 4].into_iter().chain([Comparison::NotWorse; 4]) {
        assert_eq!(factor.after(comparison, Some(almost)), factor);
        factor = factor.after(comparison, Some(FACTOR_PAUSE));
        percents.push(factor.percent());
    }

    assert_eq!(percents, [100, 50, 25, 10, 10, 25, 50, 100, 100]);
    assert_eq!(Factor::FULL.after(worse, None).percent(), 50);
}

#[test]
fn factor_rises_half_an_hour_later_if_nothing_is_known() {
    let low = Factor::LOWEST;

    assert_eq!(low.after(Comparison::Unknown, Some(29 * MINUTE)), low);
    assert_eq!(low.after(Comparison::Unknown, Some(30 * MINUTE)).percent(), 25);
    assert_eq!(Factor::FULL.after(Comparison::Unknown, None), Factor::FULL);
}

#[test]
fn only_the_steps_are_factors() {
    let known: Vec<u8> =
        (0..=255).filter(|percent| Factor::from_percent(*percent).is_some()).collect();

    assert_eq!(known, [10, 25, 50, 100]);
    assert!((Factor::LOWEST.share() - 0.1).abs() < f64::EPSILON);
}

/// Counts of so many messages, as they could be.
fn counts_of(sent: Range<u32>) -> impl Strategy<Value = HealthCounts> {
    sent.prop_flat_map(|sent| {
        (0..=sent, 0..=sent).prop_flat_map(move |(reported, approved)| {
            (0..=reported).prop_map(move |in_time| HealthCounts {
                sent,
                reported,
                in_time,
                approved,
            })
        })
    })
}

fn counts() -> impl Strategy<Value = HealthCounts> {
    counts_of(0..2_000)
}

proptest! {
    #[test]
    fn few_messages_decide_nothing(few in counts_of(0..ENOUGH), others in counts()) {
        prop_assert_eq!(few.compare(&[others]), Comparison::Unknown);
        prop_assert_eq!(others.compare(&[few]), Comparison::Unknown);
    }

    #[test]
    fn gateway_is_not_worse_than_its_equal(own in counts()) {
        prop_assert!(!matches!(own.compare(&[own]), Comparison::Worse(_)));
    }

    #[test]
    fn two_gateways_do_not_both_lack_the_same(one in counts(), other in counts()) {
        let (there, back) = (one.compare(&[other]), other.compare(&[one]));
        if let (Comparison::Worse(one), Comparison::Worse(other)) = (there, back) {
            prop_assert_ne!(one, other);
        }
    }

    #[test]
    fn more_approved_codes_do_not_make_a_gateway_worse(
        own in counts(),
        others in counts(),
        more in 0_u32..2_000,
    ) {
        let better =
            HealthCounts { approved: own.approved.saturating_add(more).min(own.sent), ..own };
        if !matches!(own.compare(&[others]), Comparison::Worse(_)) {
            prop_assert!(!matches!(better.compare(&[others]), Comparison::Worse(_)));
        }
    }
}
