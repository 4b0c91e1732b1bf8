use std::sync::Arc;

use domain::VerificationId;

use super::*;
use crate::{Admission, Guard, ports::MockGuardRecords, testing::START};

const WINDOW: Duration = Duration::from_secs(3_600);

fn rules(texts: &[&str]) -> Vec<GuardRule> {
    texts.iter().map(|text| GuardRule::parse(text, GuardMode::Shadow).unwrap()).collect()
}

fn off() -> SendLimits {
    SendLimits { prefix: domain::Windows::OFF, ..SendLimits::default() }
}

fn verification(seconds: u64, prefix: &str, approved: bool) -> PastVerification {
    let created_at = START + Duration::from_secs(seconds);
    PastVerification {
        id: VerificationId::NIL,
        phone: format!("{prefix}{:04}", seconds % 10_000).parse().unwrap(),
        region: "RU".parse().ok(),
        sends: 1,
        created_at,
        approved_at: approved.then(|| created_at + Duration::from_secs(30)),
    }
}

async fn replay(past: Vec<PastVerification>, rules: &[GuardRule]) -> Vec<Replayed> {
    replay_with(past, rules, &off()).await
}

async fn replay_with(
    past: Vec<PastVerification>,
    rules: &[GuardRule],
    limits: &SendLimits,
) -> Vec<Replayed> {
    let mut records = MockGuardRecords::new();
    records.expect_past().returning(move |_, after, limit| {
        let from = after.map_or(0, |(at, _)| {
            past.iter().position(|it| it.created_at > at).unwrap_or(past.len())
        });
        Ok(past[from..].iter().take(limit).cloned().collect())
    });
    ReplayGuard::new(records).execute(7 * 24 * WINDOW, rules, limits, WINDOW).await.unwrap()
}

#[tokio::test]
async fn a_replay_counts_blocked_and_wronged_verifications() {
    let flood = (0..100).map(|second| verification(second, "7999123", second == 99));
    let good = (0..100).map(|second| verification(second, "7998123", true));
    let mut past: Vec<_> = flood.chain(good).collect();
    past.sort_by_key(|it| it.created_at);
    // The paging needs distinct times.
    for (place, it) in past.iter_mut().enumerate() {
        it.created_at += Duration::from_millis(u64::try_from(place).unwrap());
    }

    let replayed = replay(past, &rules(&["prefix:50:10", "region:1000:5"])).await;

    let [flooded] = &replayed[..] else { panic!("{replayed:?}") };
    assert_eq!((&*flooded.key, &*flooded.rule), ("7999123", "prefix:50:10:shadow"));
    assert_eq!((flooded.verifications, flooded.approvals), (100, 1));
    assert_eq!((flooded.blocked, flooded.wronged), (50, 1));
}

#[tokio::test]
async fn all_pages_are_replayed() {
    let flood = (0..2_500).map(|second| verification(second, "7999123", false)).collect();

    let replayed = replay(flood, &rules(&["prefix:50:10"])).await;

    assert_eq!(replayed[0].verifications, 2_500);
    assert_eq!(replayed[0].blocked, 2_450);
}

/// Sends the same flood through the guard itself.
#[tokio::test(start_paused = true)]
async fn a_replay_equals_the_decisions_of_the_guard() {
    let rules = rules(&["prefix:50:10", "region:70:5"]);
    let guard = Arc::new(Guard::new(rules.clone(), WINDOW));
    let mut noted = [0_u64; 2];
    let mut past = Vec::new();
    for second in 0..200_u64 {
        let approved = second % 20 == 0;
        past.push(verification(second, "7999123", approved));
        let phone = format!("7999123{second:04}").parse().unwrap();
        let Admission::Passed(permit) = guard.decide(domain::Origin::V1, &phone, "RU".parse().ok())
        else {
            panic!()
        };
        for decision in &permit.noted {
            noted[usize::from(decision.rule == rules[1])] += 1;
        }
        permit.sent(VerificationId::NIL);
        if let Some(before) = second.checked_sub(29)
            && before % 20 == 0
        {
            let phone = format!("7999123{before:04}").parse().unwrap();
            guard.approved(domain::Origin::V1, &phone, "RU".parse().ok());
        }
    }

    let replayed = replay(past, &rules).await;

    let blocked: Vec<u64> = replayed.iter().map(|it| it.blocked).collect();
    assert_eq!(blocked, noted);
    assert!(noted.iter().all(|noted| *noted > 0), "{noted:?}");
}

#[tokio::test]
async fn verifications_that_are_blocked_in_enforce_mode_are_not_counted() {
    let rules = vec![GuardRule::parse("adaptive", GuardMode::Enforce).unwrap()];
    let flood = (0..3_000).map(|second| verification(second, "2327612", false)).collect();

    let replayed = replay(flood, &rules).await;

    let [flooded] = &replayed[..] else { panic!("{replayed:?}") };
    assert_eq!((&*flooded.rule, &*flooded.key), ("adaptive:enforce", "2327612"));
    assert_eq!((flooded.verifications, flooded.blocked), (3_000, 2_900));
}

#[tokio::test]
async fn limits_by_prefix_and_region_are_replayed_after_the_rules() {
    let limits = SendLimits {
        prefix: "10/1m".parse().unwrap(),
        region: "25/1h".parse().unwrap(),
        ..SendLimits::default()
    };
    // A message each second for two minutes.
    let past = (0..120).map(|second| verification(second, "7999123", second % 2 == 0)).collect();

    let replayed = replay_with(past, &rules(&["prefix:200:10"]), &limits).await;

    let found: Vec<_> =
        replayed.iter().map(|it| (&*it.rule, &*it.key, it.blocked, it.wronged)).collect();
    assert_eq!(found, [("prefix-1m", "7999123", 100, 50)]);
    let limits = SendLimits { prefix: domain::Windows::OFF, ..limits };
    let past = (0..120).map(|second| verification(second, "7999123", false)).collect();
    let replayed = replay_with(past, &[], &limits).await;
    assert_eq!((&*replayed[0].rule, replayed[0].blocked), ("region-1h", 95));
}
