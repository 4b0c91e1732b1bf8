use std::{sync::Arc, time::Duration};

use domain::{
    GuardMode, GuardRule, GuardScope, Origin, PhoneNumber, Region, Rolling, VerificationId,
};

use super::{Admission, FlushGuard, Guard, KEYS, SendPermit, state::DECISIONS};
use crate::ports::{GuardDelta, GuardKey, GuardTotal, MockGuardCounts, StoreError, Storing};

const WINDOW: Duration = Duration::from_secs(3_600);

fn rule(text: &str) -> GuardRule {
    GuardRule::parse(text, GuardMode::Shadow).unwrap()
}

fn guard(rules: &[&str]) -> Arc<Guard> {
    Arc::new(Guard::new(rules.iter().map(|text| rule(text)).collect(), WINDOW))
}

fn phone(number: u16) -> PhoneNumber {
    format!("7999123{number:04}").parse().unwrap()
}

fn id() -> VerificationId {
    "ver_6f2c1a529d3f4f0e8a550d2f6f3b9c00".parse().unwrap()
}

fn region() -> Option<Region> {
    "RU".parse().ok()
}

/// Sends up to `most` messages until one is blocked. Returns how many passed.
fn flood(guard: &Arc<Guard>, most: u16) -> u16 {
    for number in 0..most {
        match guard.decide(Origin::V1, &phone(number), region()) {
            Admission::Passed(permit) => permit.sent(id()),
            Admission::Blocked => return number,
        }
    }
    most
}

fn prefix_key() -> GuardKey {
    GuardKey { scope: GuardScope::Prefix, key: "7999123".to_owned() }
}

fn total(sends: u64, approvals: u64) -> Vec<GuardTotal> {
    let count = Rolling { sends, approvals, ..Rolling::default() };
    vec![GuardTotal { key: prefix_key(), window: count, day: count, allowed: false }]
}

#[tokio::test]
async fn enforce_mode_blocks_a_flooded_prefix_and_no_other() {
    let guard = guard(&["prefix:50:10:enforce"]);

    assert_eq!(flood(&guard, 1_000), 50);

    let other = "79981234567".parse().unwrap();
    assert!(matches!(guard.decide(Origin::V1, &other, region()), Admission::Passed(_)));
    let state = guard.state();
    let blocked = &state.decisions[0];
    assert_eq!((blocked.sends, blocked.approvals, blocked.verification), (50, 0, None));
    assert_eq!((blocked.key.as_str(), blocked.phone.as_str()), ("7999123", "+7999*****50"));
}

#[tokio::test]
async fn shadow_mode_passes_every_message_and_records_decisions() {
    let guard = guard(&["prefix:50:10"]);

    assert_eq!(flood(&guard, 60), 60);

    let state = guard.state();
    assert_eq!(state.decisions.len(), 10);
    assert!(state.decisions.iter().all(|it| it.verification == Some(id())));
}

#[tokio::test]
async fn approvals_keep_a_prefix_open() {
    let guard = guard(&["prefix:50:10:enforce"]);
    for number in 0..100 {
        guard.approved(Origin::V1, &phone(number), region());
    }

    assert_eq!(flood(&guard, 1_000), 1_000);
    assert_eq!(flood(&guard, 1_000), 1, "below a tenth");
}

#[tokio::test]
async fn counts_of_other_processes_apply_after_a_flush() {
    let guard = guard(&["prefix:50:10:enforce"]);
    assert_eq!(flood(&guard, 1), 1);
    let mut counts = MockGuardCounts::new();
    counts
        .expect_add()
        .withf(|moved, decisions, window| {
            let moved: Vec<_> = moved.iter().map(|it| (&it.key, it.sends)).collect();
            moved == [(&prefix_key(), 1)] && decisions.is_empty() && *window == WINDOW
        })
        .once()
        .returning(|_, _, _| Ok(total(50, 0)));
    let flush = FlushGuard::new(Arc::clone(&guard), counts);

    flush.execute().await.unwrap();

    assert_eq!(guard.decide(Origin::V1, &phone(1), region()), Admission::Blocked);
}

#[tokio::test]
async fn a_blocked_key_opens_when_other_processes_see_approvals() {
    let guard = guard(&["prefix:50:10:enforce"]);
    assert_eq!(flood(&guard, 1_000), 50);
    let mut counts = MockGuardCounts::new();
    let mut rounds = mockall::Sequence::new();
    counts
        .expect_add()
        .withf(|moved, decisions, _| moved[0].sends == 50 && decisions.len() == 1)
        .once()
        .in_sequence(&mut rounds)
        .returning(|_, _, _| Ok(total(50, 0)));
    counts
        .expect_add()
        .withf(|moved, _, _| (moved[0].sends, moved[0].approvals) == (0, 0))
        .once()
        .in_sequence(&mut rounds)
        .returning(|_, _, _| Ok(total(50, 5)));
    let flush = FlushGuard::new(Arc::clone(&guard), counts);

    flush.execute().await.unwrap();
    assert_eq!(guard.decide(Origin::V1, &phone(1), region()), Admission::Blocked);
    flush.execute().await.unwrap();

    assert!(matches!(guard.decide(Origin::V1, &phone(1), region()), Admission::Passed(_)));
}

#[tokio::test(start_paused = true)]
async fn a_blocked_key_opens_after_a_window() {
    let guard = guard(&["prefix:50:10:enforce"]);
    assert_eq!(flood(&guard, 1_000), 50);
    let mut counts = MockGuardCounts::new();
    counts.expect_add().returning(|_, _, _| Ok(total(50, 0)));
    FlushGuard::new(Arc::clone(&guard), counts).execute().await.unwrap();
    assert_eq!(guard.decide(Origin::V1, &phone(1), region()), Admission::Blocked);

    tokio::time::advance(WINDOW + WINDOW / 10).await;

    assert!(matches!(guard.decide(Origin::V1, &phone(1), region()), Admission::Passed(_)));
}

#[tokio::test]
async fn counts_apply_during_a_flush_and_survive_its_failure() {
    let guard = guard(&["prefix:50:10:enforce"]);
    assert_eq!(flood(&guard, 1_000), 50);
    let during = Arc::clone(&guard);
    let mut counts = MockGuardCounts::new();
    counts.expect_add().once().returning(move |_, _, _| {
        assert_eq!(
            during.decide(Origin::V1, &phone(1), region()),
            Admission::Blocked,
            "during the flush"
        );
        Err(StoreError::Unavailable("down".into()))
    });
    let flush = FlushGuard::new(Arc::clone(&guard), counts);

    flush.execute().await.unwrap_err();

    assert_eq!(guard.decide(Origin::V1, &phone(1), region()), Admission::Blocked);
    let (moved, decisions) = guard.take();
    assert_eq!((moved[0].sends, decisions.len()), (50, 3));
}

#[tokio::test]
async fn without_rules_nothing_is_counted() {
    let guard = guard(&[]);

    assert_eq!(flood(&guard, 1_000), 1_000);

    assert!(guard.state().unshared.is_empty());
    FlushGuard::new(guard, MockGuardCounts::new()).execute().await.unwrap();
}

#[tokio::test]
async fn a_flood_keeps_a_bounded_number_of_decisions() {
    let guard = guard(&["prefix:50:10:enforce"]);
    flood(&guard, 1_000);

    for _ in 0..20_000 {
        assert_eq!(guard.decide(Origin::V1, &phone(1), region()), Admission::Blocked);
    }

    let state = guard.state();
    assert_eq!((state.decisions.len(), state.lost), (DECISIONS, 10_001));
}

#[tokio::test]
async fn only_keys_close_to_a_rule_are_kept_above_the_bound() {
    let guard = guard(&["prefix:50:10:enforce"]);
    let totals = |keys: usize| {
        let counted = |number: usize| {
            let sends = if number == 0 { 25 } else { 24 };
            let key = GuardKey { scope: GuardScope::Prefix, key: number.to_string() };
            let count = Rolling { sends, ..Rolling::default() };
            GuardTotal { key, window: count, day: count, allowed: false }
        };
        (0..keys).map(counted).collect::<Vec<_>>()
    };

    guard.apply(totals(KEYS));
    assert_eq!(guard.state().totals.len(), KEYS);
    guard.apply(totals(KEYS + 1));

    assert_eq!(guard.state().totals.len(), 1);
}

#[tokio::test]
async fn unreadable_numbers_share_one_region_on_api() {
    let guard = guard(&["adaptive:enforce"]);
    (0..1_000).for_each(|number| guard.approved(Origin::Api, &phone(number), region()));

    // Each prefix and each range has fewer unpaid messages than it may have.
    let unreadable = |number: u32| {
        let (range, rest) = (number % 100, number / 100);
        format!("8{range:04}{rest:06}").parse::<PhoneNumber>().unwrap()
    };
    let sends = (0..2_000).filter(|number| {
        match guard.decide(Origin::Api, &unreadable(*number), None) {
            Admission::Passed(permit) => permit.sent(id()),
            Admission::Blocked => return false,
        }
        true
    });

    let sends = sends.count();
    assert!((500..=800).contains(&sends), "{sends}");
}

#[tokio::test]
async fn a_key_that_is_blocked_for_its_day_is_kept_above_the_bound() {
    let guard = guard(&["adaptive:enforce"]);
    let quiet = |number: usize| {
        let key = GuardKey { scope: GuardScope::Prefix, key: number.to_string() };
        let sends = if number == 0 { 300 } else { 1 };
        let day = Rolling { sends, ..Rolling::default() };
        GuardTotal { key, window: Rolling::default(), day, allowed: false }
    };

    guard.apply((0..=KEYS).map(quiet).collect());

    assert_eq!(guard.state().totals.len(), 1);
}

#[tokio::test]
async fn a_permitted_message_counts_before_it_is_sent() {
    let guard = guard(&["prefix:50:10:enforce"]);
    let pass = || match guard.decide(Origin::V1, &phone(1), region()) {
        Admission::Passed(permit) => Some(permit),
        Admission::Blocked => None,
    };

    let mut under_way: Vec<SendPermit> = (0..50).map(|_| pass().unwrap()).collect();
    assert!(pass().is_none());

    // A limit refused one of them.
    under_way.pop();
    under_way.push(pass().unwrap());
    for permit in under_way {
        permit.sent(id());
    }
    assert!(pass().is_none());
    assert_eq!(guard.state().unshared[&prefix_key()].sends, 50);
    assert!(guard.state().permits.is_empty());
}

#[tokio::test]
async fn a_dropped_permit_counts_if_its_message_may_be_stored() {
    let guard = guard(&["prefix:50:10"]);
    let permit = || match guard.decide(Origin::V1, &phone(1), region()) {
        Admission::Passed(permit) => permit,
        Admission::Blocked => panic!("a rule in shadow mode"),
    };
    let count = || {
        let state = guard.state();
        assert!(state.permits.is_empty());
        state.unshared.get(&prefix_key()).map_or(0, |count| count.sends)
    };

    let storing = Storing::default();
    drop(permit());
    drop(permit().stored_by(&storing));
    assert_eq!(count(), 0);

    let dropped = permit().stored_by(&storing);
    storing.begin();
    drop(dropped);
    assert_eq!(count(), 1);

    let dropped = permit().stored_by(&storing);
    storing.undo();
    drop(dropped);
    assert_eq!(count(), 1);
}

#[tokio::test]
async fn an_allowed_key_passes_after_the_next_flush() {
    let guard = guard(&["adaptive:enforce"]);
    assert_eq!(flood(&guard, 1_000), 100);
    let mut counts = MockGuardCounts::new();
    counts.expect_add().returning(|moved, _, _| {
        let total = |it: &GuardDelta| {
            let count = Rolling { sends: 9_999, ..Rolling::default() };
            let allowed = it.key.scope == GuardScope::Prefix;
            GuardTotal { key: it.key.clone(), window: count, day: count, allowed }
        };
        Ok(moved.iter().map(total).collect())
    });

    FlushGuard::new(Arc::clone(&guard), counts).execute().await.unwrap();

    let verdict = guard.decide(Origin::V1, &phone(1), None);
    assert!(matches!(verdict, Admission::Passed(_)), "{verdict:?}");
}
