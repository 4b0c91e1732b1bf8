use std::{sync::Arc, time::Duration};

use application::ports::{
    Approval, Counted, EventKind, NewSecret, NewSend, NewTest, NewVerification, Target,
    Verification, Verifications,
};
use domain::{CodeHash, Origin, Policy, Seed, VerificationId, VerificationStatus};
use sea_orm::ConnectionTrait;
use tokio::{
    sync::{Barrier, Mutex},
    task::JoinSet,
};

use super::{
    on_both_databases,
    support::{accepted, count, enqueue, id_of, names, new_message, phone, policies, rng, start},
};
use crate::{Database, SqlVerifications};

on_both_databases!(
    the_attempt_is_counted_before_the_code_is_shown,
    a_thousand_right_checks_approve_once,
    right_checks_of_many_verifications_at_once_bear_each_other,
    five_wrong_then_exhausted,
    by_phone_the_newest_counts,
    an_unknown_phone_is_counted_alike,
    what_is_used_up_counts_nothing,
    racing_guesses_never_pass_their_quota,
    cancel_and_restart_give_no_fresh_guesses,
    an_approval_forgets_the_guesses_at_it_only,
    code_hash_and_seed_are_wiped_at_every_end,
    what_is_over_is_shown_as_expired_before_it_is_swept,
    what_has_ended_is_told_by_its_end,
    a_canceled_one_stays_canceled,
    a_test_number_has_no_limits_and_no_message,
    what_nobody_needs_any_more_is_deleted_and_nothing_else,
);

const NONE: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(86_400);

/// None of them is reached where it is not the point.
fn guesses() -> Vec<Policy> {
    policies("check", "1000/1h,5000/1d")
}

/// Begins one, and returns its id.
async fn begin(database: &Database, send: &NewSend) -> VerificationId {
    accepted(&enqueue(database, send).await);
    id_of(send)
}

fn by_phone(number: usize) -> Target {
    Target::Phone(phone(number).parse().unwrap())
}

async fn find(verifications: &SqlVerifications, id: VerificationId) -> Verification {
    verifications.find(id).await.unwrap().unwrap()
}

/// Attempts, with the one that was counted.
#[track_caller]
fn attempt(counted: &Counted) -> u8 {
    match counted {
        Counted::Compare { attempts, .. } => *attempts,
        counted => panic!("{counted:?}"),
    }
}

#[track_caller]
fn over(counted: &Counted) -> Vec<&str> {
    match counted {
        Counted::Limited(violations) => names(violations),
        counted => panic!("{counted:?}"),
    }
}

fn test_number(number: usize) -> NewTest {
    let NewSend { verification, .. } = start(&phone(number));
    NewTest {
        id: VerificationId::generate(&mut rng()),
        phone: phone(number).parse().unwrap(),
        ttl: Duration::from_secs(600),
        verification: NewVerification { origin: Origin::Test, ..verification },
    }
}

async fn the_attempt_is_counted_before_the_code_is_shown(database: Database) {
    let secret = NewSecret {
        pepper: "p7".parse().unwrap(),
        seed: Seed::from_bytes([9; 16]),
        code_hash: CodeHash::from_bytes(std::array::from_fn(|place| place.try_into().unwrap())),
    };
    let send = start(&phone(1));
    let verification = NewVerification { secret: secret.clone(), ..send.verification };
    let id = begin(&database, &NewSend { verification, ..send }).await;
    let verifications = SqlVerifications::new(database.clone());

    let counted = verifications.count(Target::Id(id), &guesses()).await.unwrap();

    // Whoever was shown it and then died has spent the attempt.
    assert_eq!(find(&verifications, id).await.attempts, 1);
    assert_eq!(count(&database, "limit_counter WHERE used = 1").await, 2);
    let Counted::Compare { id: found, hash, pepper, attempts } = counted else {
        panic!("{counted:?}")
    };
    assert_eq!((found, attempts, pepper), (id, 1, secret.pepper));
    assert_eq!(hash.as_bytes(), secret.code_hash.as_bytes());
    let by_phone = verifications.count(by_phone(1), &guesses()).await.unwrap();
    assert_eq!(attempt(&by_phone), 2);
    assert_eq!(count(&database, "limit_counter WHERE used = 2").await, 2);
}

async fn a_thousand_right_checks_approve_once(database: Database) {
    const CHECKS: usize = 1_000;
    let id = begin(&database, &start(&phone(1))).await;
    let verifications = SqlVerifications::new(database.clone());
    let at_once = Arc::new(Barrier::new(CHECKS));
    let turn = Arc::new(Mutex::new(()));

    let mut checks = JoinSet::new();
    for number in 0..CHECKS {
        let (verifications, at_once) = (verifications.clone(), Arc::clone(&at_once));
        let turn = Arc::clone(&turn);
        let target = if number % 2 == 0 { Target::Id(id) } else { by_phone(1) };
        checks.spawn(async move {
            at_once.wait().await;
            // So many at once wait long for one of a few connections: a caller would come back.
            // Those that do take turns, or on a slow machine none of them ever opens one.
            let mut mine = None;
            let counted = loop {
                match verifications.count(target.clone(), &guesses()).await {
                    Ok(counted) => break counted,
                    Err(_) if mine.is_none() => mine = Some(turn.lock().await),
                    Err(_) => {}
                }
            };
            let Counted::Compare { id, .. } = counted else { return (false, false) };
            loop {
                match verifications.approve(id, &guesses()).await {
                    Ok(approval) => return (true, approval.is_some()),
                    Err(_) if mine.is_none() => mine = Some(turn.lock().await),
                    Err(_) => {}
                }
            }
        });
    }
    let answers = checks.join_all().await;

    let compared = answers.iter().filter(|(compared, _)| *compared).count();
    assert!((1..=5).contains(&compared), "{compared}");
    assert_eq!(answers.iter().filter(|(_, approved)| *approved).count(), 1);
    assert_eq!(find(&verifications, id).await.status, VerificationStatus::Approved);
}

async fn right_checks_of_many_verifications_at_once_bear_each_other(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let mut checks = JoinSet::new();
    for number in 0..20 {
        let id = begin(&database, &start(&phone(number))).await;
        for _ in 0..4 {
            let verifications = verifications.clone();
            checks.spawn(async move {
                for _ in 0..2 {
                    verifications.count(Target::Id(id), &guesses()).await.unwrap();
                    verifications.count(by_phone(number), &guesses()).await.unwrap();
                }
                verifications.approve(id, &guesses()).await.unwrap().is_some()
            });
        }
    }

    let approved = checks.join_all().await.into_iter().filter(|approved| *approved).count();
    assert_eq!(approved, 20);
}

async fn five_wrong_then_exhausted(database: Database) {
    let id = begin(&database, &start(&phone(1))).await;
    let verifications = SqlVerifications::new(database.clone());

    for number in 1..=5 {
        let target = if number % 2 == 0 { by_phone(1) } else { Target::Id(id) };
        let counted = verifications.count(target, &guesses()).await.unwrap();
        assert_eq!(attempt(&counted), number);
    }
    let by_id = verifications.count(Target::Id(id), &guesses()).await.unwrap();
    let Counted::Exhausted { retry_after, ttl } = by_id else { panic!("{by_id:?}") };
    let by_phone = verifications.count(by_phone(1), &guesses()).await.unwrap();

    assert_eq!(ttl, Duration::from_secs(600));
    assert!(retry_after > Duration::from_secs(500) && retry_after <= ttl, "{retry_after:?}");
    assert!(matches!(by_phone, Counted::Nothing), "{by_phone:?}");
    assert_eq!(find(&verifications, id).await.attempts, 5);
}

async fn by_phone_the_newest_counts(database: Database) {
    let first = begin(&database, &start(&phone(1))).await;
    let second = begin(&database, &new_message(&phone(1))).await;
    let verifications = SqlVerifications::new(database.clone());

    let counted = verifications.count(by_phone(1), &guesses()).await.unwrap();
    assert!(matches!(counted, Counted::Compare { id, .. } if id == second), "{counted:?}");
    let approval = verifications.approve(second, &guesses()).await.unwrap().unwrap();
    assert_eq!(approval.origin, Origin::Api);

    // The one before it is not found by phone again.
    let counted = verifications.count(by_phone(1), &guesses()).await.unwrap();
    assert!(matches!(counted, Counted::Nothing), "{counted:?}");
    let counted = verifications.count(Target::Id(first), &guesses()).await.unwrap();
    assert_eq!(attempt(&counted), 1);
}

async fn an_unknown_phone_is_counted_alike(database: Database) {
    begin(&database, &start(&phone(1))).await;
    let verifications = SqlVerifications::new(database.clone());
    let guesses = policies("check", "2/1h");

    for number in [1, 2] {
        for _ in 0..2 {
            verifications.count(by_phone(number), &guesses).await.unwrap();
        }
        let counted = verifications.count(by_phone(number), &guesses).await.unwrap();
        assert_eq!(over(&counted), ["check-1h"]);
    }
    let unknown = VerificationId::generate(&mut rng());
    let counted = verifications.count(Target::Id(unknown), &guesses).await.unwrap();
    assert!(matches!(counted, Counted::Unknown), "{counted:?}");
    assert_eq!(count(&database, "limit_counter WHERE used = 2").await, 2);
    assert_eq!(count(&database, "limit_counter").await, 2);
}

async fn what_is_used_up_counts_nothing(database: Database) {
    let id = begin(&database, &start(&phone(1))).await;
    let verifications = SqlVerifications::new(database.clone());
    let guesses = policies("check", "1/1h,9/1d");
    verifications.count(Target::Id(id), &guesses).await.unwrap();

    for target in [Target::Id(id), by_phone(1)] {
        let counted = verifications.count(target, &guesses).await.unwrap();
        assert_eq!(over(&counted), ["check-1h"]);
    }

    assert_eq!(count(&database, "limit_counter WHERE used = 1").await, 2);
    assert_eq!(find(&verifications, id).await.attempts, 1);
}

async fn racing_guesses_never_pass_their_quota(database: Database) {
    let id = begin(&database, &start(&phone(1))).await;
    let verifications = SqlVerifications::new(database.clone());
    let mut checks = JoinSet::new();
    for number in 0..40 {
        let verifications = verifications.clone();
        let target = if number % 2 == 0 { Target::Id(id) } else { by_phone(1) };
        let guesses = policies("check", "3/1h,50/1d");
        checks.spawn(async move { verifications.count(target, &guesses).await.unwrap() });
    }

    let answers = checks.join_all().await;
    let compared = answers.iter().filter(|it| matches!(it, Counted::Compare { .. })).count();

    assert_eq!(compared, 3);
    assert_eq!(find(&verifications, id).await.attempts, 3);
    assert_eq!(count(&database, "limit_counter WHERE policy = 'check-1h' AND used = 3").await, 1);
}

async fn cancel_and_restart_give_no_fresh_guesses(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let guesses = policies("check", "6/1h");
    let first = begin(&database, &start(&phone(1))).await;
    for _ in 0..5 {
        attempt(&verifications.count(Target::Id(first), &guesses).await.unwrap());
    }

    verifications.cancel(first).await.unwrap().unwrap();
    let second = begin(&database, &start(&phone(1))).await;

    attempt(&verifications.count(Target::Id(second), &guesses).await.unwrap());
    for target in [Target::Id(second), by_phone(1)] {
        let counted = verifications.count(target, &guesses).await.unwrap();
        assert_eq!(over(&counted), ["check-1h"]);
    }
    assert_eq!(find(&verifications, second).await.attempts, 1);
}

async fn an_approval_forgets_the_guesses_at_it_only(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    // One before there was anything to guess, one at it, and one at another phone.
    verifications.count(by_phone(1), &guesses()).await.unwrap();
    let send = start(&phone(1));
    let verification = NewVerification { region: "RU".parse().ok(), ..send.verification };
    let id = begin(&database, &NewSend { verification, ..send }).await;
    verifications.count(Target::Id(id), &guesses()).await.unwrap();
    verifications.count(by_phone(2), &guesses()).await.unwrap();

    let approval = verifications.approve(id, &guesses()).await.unwrap();

    let phone_1 = phone(1).parse().unwrap();
    let expected = Approval { origin: Origin::V1, phone: phone_1, region: "RU".parse().ok() };
    assert_eq!(approval, Some(expected));
    assert_eq!(verifications.approve(id, &guesses()).await.unwrap(), None);
    for number in [1, 2] {
        let kept = format!("limit_counter WHERE key = '{}' AND used = 1", phone(number));
        assert_eq!(count(&database, &kept).await, 2);
    }
    // And a new one may begin.
    begin(&database, &start(&phone(1))).await;
}

async fn code_hash_and_seed_are_wiped_at_every_end(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let approved = begin(&database, &start(&phone(1))).await;
    let canceled = begin(&database, &start(&phone(2))).await;
    let expired = begin(&database, &NewSend { ttl: NONE, ..start(&phone(3)) }).await;
    let pending = begin(&database, &start(&phone(4))).await;
    assert_eq!(count(&database, "verification WHERE code_hash IS NOT NULL").await, 4);

    verifications.approve(approved, &guesses()).await.unwrap().unwrap();
    verifications.cancel(canceled).await.unwrap().unwrap();
    assert_eq!(verifications.expire().await.unwrap(), 1);
    assert_eq!(verifications.expire().await.unwrap(), 0);

    let kept = "verification WHERE code_hash IS NOT NULL OR seed IS NOT NULL";
    assert_eq!(count(&database, kept).await, 1);
    let with_secret = async |id| find(&verifications, id).await.secret.is_some();
    assert!(with_secret(pending).await);
    for (id, status) in [
        (approved, VerificationStatus::Approved),
        (canceled, VerificationStatus::Canceled),
        (expired, VerificationStatus::Expired),
    ] {
        let ended = find(&verifications, id).await;
        assert_eq!((ended.status, ended.secret), (status, None));
        assert!(ended.ended_at.is_some());
    }
}

async fn what_is_over_is_shown_as_expired_before_it_is_swept(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let id = begin(&database, &NewSend { ttl: NONE, ..start(&phone(1)) }).await;

    let before = find(&verifications, id).await;
    let counted = verifications.count(Target::Id(id), &guesses()).await.unwrap();
    let by_phone = verifications.count(by_phone(1), &guesses()).await.unwrap();
    let approved = verifications.approve(id, &guesses()).await.unwrap();
    let canceled = verifications.cancel(id).await.unwrap().unwrap();
    assert_eq!(verifications.expire().await.unwrap(), 1);
    let after = verifications.history(id).await.unwrap().unwrap();

    assert_eq!(before.status, VerificationStatus::Expired);
    assert_eq!((before.ended_at, &before.secret), (Some(before.expires_at), &None));
    assert!(matches!(counted, Counted::Gone(VerificationStatus::Expired)), "{counted:?}");
    assert!(matches!(by_phone, Counted::Nothing), "{by_phone:?}");
    assert_eq!(approved, None);
    assert_eq!(canceled.verification.status, VerificationStatus::Expired);
    let Verification { read_at, .. } = after.verification;
    assert_eq!(after.verification, Verification { read_at, ..before });
    let kinds: Vec<_> = after.events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Created, EventKind::Queued, EventKind::Expired]);
}

async fn what_has_ended_is_told_by_its_end(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let approved = begin(&database, &start(&phone(1))).await;
    let canceled = begin(&database, &start(&phone(2))).await;
    verifications.approve(approved, &guesses()).await.unwrap().unwrap();
    verifications.cancel(canceled).await.unwrap().unwrap();

    let of_approved = verifications.count(Target::Id(approved), &guesses()).await.unwrap();
    let of_canceled = verifications.count(Target::Id(canceled), &guesses()).await.unwrap();

    assert!(matches!(of_approved, Counted::Approved), "{of_approved:?}");
    assert!(matches!(of_canceled, Counted::Gone(VerificationStatus::Canceled)), "{of_canceled:?}");
    // Nothing could be learnt, and nothing is counted.
    assert_eq!(count(&database, "limit_counter").await, 0);
}

async fn a_canceled_one_stays_canceled(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let id = begin(&database, &start(&phone(1))).await;

    let first = verifications.cancel(id).await.unwrap().unwrap();
    let second = verifications.cancel(id).await.unwrap().unwrap();

    assert_eq!(first.verification.status, VerificationStatus::Canceled);
    assert_eq!(first.verification.ended_at, second.verification.ended_at);
    assert_eq!(first.events, second.events);
    assert_eq!(first.events.last().unwrap().kind, EventKind::Canceled);
    assert_eq!(verifications.approve(id, &guesses()).await.unwrap(), None);
    let unknown = VerificationId::generate(&mut rng());
    assert_eq!(verifications.cancel(unknown).await.unwrap(), None);
    let approved = begin(&database, &start(&phone(1))).await;
    verifications.approve(approved, &guesses()).await.unwrap().unwrap();
    let history = verifications.cancel(approved).await.unwrap().unwrap();
    assert_eq!(history.verification.status, VerificationStatus::Approved);
}

async fn a_test_number_has_no_limits_and_no_message(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    verifications.start_test(test_number(1)).await.unwrap();
    let test = test_number(1);
    let begun = verifications.start_test(test.clone()).await.unwrap();
    let guesses = policies("check", "1/1h");

    let stored = find(&verifications, test.id).await;
    assert_eq!(stored, Verification { read_at: stored.read_at, ..begun });
    for number in 1..=4 {
        let target = if number % 2 == 0 { by_phone(1) } else { Target::Id(test.id) };
        let counted = verifications.count(target, &guesses).await.unwrap();
        assert_eq!(attempt(&counted), number);
    }
    let approval = verifications.approve(test.id, &guesses).await.unwrap().unwrap();
    assert_eq!(approval.origin, Origin::Test);
    let history = verifications.history(test.id).await.unwrap().unwrap();
    let kinds: Vec<_> = history.events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Created, EventKind::Approved]);
    assert_eq!(count(&database, "limit_counter").await, 0);
    assert_eq!(count(&database, "outbox").await, 0);
}

async fn what_nobody_needs_any_more_is_deleted_and_nothing_else(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let old = begin(&database, &NewSend { ttl: NONE, ..start(&phone(1)) }).await;
    let pending = begin(&database, &start(&phone(2))).await;
    verifications.count(by_phone(1), &policies("check", "9/1s")).await.unwrap();
    verifications.count(by_phone(2), &policies("check", "9/1h")).await.unwrap();
    let past = if database.is_postgres() { "now() - interval '1 s'" } else { "1" };
    let sql = format!("UPDATE limit_counter SET ends_at = {past} WHERE policy = 'check-1s'");
    database.connection().execute_unprepared(&sql).await.unwrap();

    // The phone of the first, and its counter.
    assert_eq!(verifications.prune(LONG).await.unwrap(), 2);
    assert_eq!(verifications.prune(LONG).await.unwrap(), 0);
    assert!(verifications.find(old).await.unwrap().is_some());
    let in_time = async { while verifications.prune(NONE).await.unwrap() == 0 {} };
    super::support::in_time(in_time).await;

    assert!(verifications.find(old).await.unwrap().is_none());
    assert!(verifications.find(pending).await.unwrap().is_some(), "it may still be checked");
    assert_eq!(count(&database, "phone").await, 1);
    assert_eq!(count(&database, "limit_counter").await, 1);
}
