//! Checks of codes.
//!
//! This is one file, because all tests check codes against the same few verifications and helpers.

use std::{sync::Arc, time::Duration};

use application::ports::{
    Approval, Attempt, CheckOutcome, Enqueued, EventKind, Housekeeping, NewSend, NewTest,
    NewVerification, Newest, StoreError, Target, Verification, Verifications,
};
use domain::{Origin, Policy, VerificationId, VerificationStatus};
use sea_orm::{ConnectionTrait, TransactionTrait};
use tokio::{sync::Barrier, task::JoinSet};

use super::{
    on_both_databases,
    support::{
        self, accepted, approve, count, enqueue, id_of, in_time, limited, names, new_id,
        new_message, newest_of, phone, policies, right, start, try_by_id, try_by_phone, wrong,
    },
};
use crate::{Database, SqlVerifications};

on_both_databases!(
    attempt_is_counted_whether_right_or_wrong,
    only_the_hash_under_the_same_pepper_counts,
    thousand_right_checks_approve_once,
    one_connection_is_enough_for_many_checks,
    concurrent_right_checks_of_many_verifications_all_succeed,
    each_concurrent_caller_gets_its_own_answer,
    concurrent_batches_with_the_same_phones_all_succeed,
    locked_verification_holds_up_no_other_attempt,
    unreadable_row_fails_no_other_attempt,
    attempt_to_a_full_queue_is_refused,
    five_of_many_concurrent_guesses_are_tried,
    five_wrong_then_exhausted,
    check_by_phone_tries_the_newest_of_each_origin,
    wrong_code_counts_at_both_origins_and_right_code_at_its_own,
    sends_through_api_change_no_verification_of_v1,
    guesses_at_nothing_do_not_count_against_a_later_verification,
    check_by_phone_does_the_same_work_with_and_without_a_verification,
    counts_of_a_phone_can_be_cleared,
    check_of_a_verification_that_is_no_longer_the_newest_changes_nothing,
    guesses_at_an_unknown_phone_are_counted,
    exhausted_window_counts_nothing,
    concurrent_guesses_never_exceed_the_quota,
    cancel_and_restart_grant_no_new_guesses,
    approval_forgets_only_its_own_guesses,
    every_end_wipes_code_hash_and_seed,
    late_verification_is_shown_as_expired_before_housekeeping,
    check_of_an_ended_verification_returns_how_it_ended,
    canceled_verification_stays_canceled,
    guesses_at_a_test_number_count_and_no_message_is_sent,
    prune_deletes_only_rows_that_are_no_longer_needed,
);

const NONE: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(86_400);

/// A pool of the size that `api` has for checks.
fn pool(database: &Database, connections: u32) -> Database {
    if database.is_postgres() {
        Database::connect_lazily(database.settings(), "checks", connections)
    } else {
        database.clone()
    }
}

/// Windows so large that only tests of windows reach them.
fn guesses() -> Vec<Policy> {
    policies("check", "1000/1h,5000/1d")
}

/// Begins a verification, and returns its id.
async fn begin(database: &Database, send: &NewSend) -> VerificationId {
    accepted(&enqueue(database, send).await);
    id_of(send)
}

async fn find(verifications: &SqlVerifications, id: VerificationId) -> Verification {
    verifications.find(id).await.unwrap().unwrap()
}

/// The counted attempts, with this one.
#[track_caller]
fn attempt(tried: &CheckOutcome) -> u8 {
    match tried {
        CheckOutcome::Wrong { attempts, .. } => *attempts,
        tried => panic!("{tried:?}"),
    }
}

#[track_caller]
fn over(tried: &CheckOutcome) -> Vec<&str> {
    match tried {
        CheckOutcome::Limited(violations) => names(violations),
        tried => panic!("{tried:?}"),
    }
}

#[track_caller]
fn is_right(tried: &CheckOutcome) {
    assert!(matches!(tried, CheckOutcome::Right(_)), "{tried:?}");
}

fn test_number(number: usize) -> NewTest {
    let NewSend { verification, .. } = start(&phone(number));
    NewTest {
        id: new_id(),
        phone: phone(number).parse().unwrap(),
        ttl: Duration::from_secs(600),
        verification: NewVerification { origin: Origin::Test, ..verification },
    }
}

async fn attempt_is_counted_whether_right_or_wrong(database: Database) {
    let id = begin(&database, &start(&phone(1))).await;
    let verifications = SqlVerifications::new(database.clone());

    assert_eq!(attempt(&try_by_id(&verifications, id, wrong(), &guesses()).await), 1);
    assert_eq!(find(&verifications, id).await.attempts, 1);
    assert_eq!(count(&database, "limit_counter WHERE used = 1").await, 2);
    assert_eq!(attempt(&try_by_phone(&verifications, &phone(1), wrong(), &guesses()).await), 2);
    assert_eq!(count(&database, "limit_counter WHERE used = 2").await, 2);
    // Hashes under a pepper that this process does not have.
    assert_eq!(attempt(&try_by_id(&verifications, id, vec![], &guesses()).await), 3);
    assert_eq!(count(&database, "limit_counter WHERE used = 3").await, 2);
    is_right(&try_by_id(&verifications, id, right(), &guesses()).await);

    let found = find(&verifications, id).await;
    assert_eq!((found.attempts, found.status), (4, VerificationStatus::Approved));
    assert_eq!(count(&database, "limit_counter WHERE used = 0").await, 2);
}

async fn only_the_hash_under_the_same_pepper_counts(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    for (number, place) in [(1, 0), (2, 1)] {
        let id = begin(&database, &start(&phone(number))).await;
        let hashes = |mut hashes: Vec<_>| {
            hashes.swap(0, place);
            hashes
        };

        let tried = try_by_id(&verifications, id, hashes(wrong()), &guesses()).await;
        let CheckOutcome::Wrong { pepper, .. } = &tried else { panic!("{tried:?}") };
        assert_eq!(pepper.as_str(), "test");
        is_right(&try_by_id(&verifications, id, hashes(right()), &guesses()).await);
    }
}

async fn thousand_right_checks_approve_once(database: Database) {
    const CHECKS: usize = 1_000;
    let begun = begin(&database, &start(&phone(1))).await;
    let verifications = SqlVerifications::new(pool(&database, 8));
    // Opens the connections: under the load below none could be opened in time.
    let ask = || verifications.newest(phone(1).parse().unwrap());
    let (newest, ..) = tokio::join!(ask(), ask(), ask(), ask(), ask(), ask(), ask(), ask());
    let newest = newest.unwrap().v1;
    let at_once = Arc::new(Barrier::new(CHECKS));

    let mut checks = JoinSet::new();
    for number in 0..CHECKS {
        let (verifications, at_once) = (verifications.clone(), Arc::clone(&at_once));
        checks.spawn(async move {
            at_once.wait().await;
            let target = match number % 2 {
                0 => Target::Id(begun),
                _ => newest_of(&phone(1), newest),
            };
            let attempt = support::attempt(target, right());
            (verifications.check(attempt.clone(), &guesses()).await, attempt)
        });
    }
    let mut answers = Vec::with_capacity(CHECKS);
    for (answer, attempt) in checks.join_all().await {
        // So many attempts may wait too long for one of a few connections; a retry loses
        // nothing.
        answers.push(match answer {
            Ok(tried) => tried,
            Err(_) => verifications.check(attempt, &guesses()).await.unwrap(),
        });
    }

    assert_eq!(answers.iter().filter(|tried| matches!(tried, CheckOutcome::Right(_))).count(), 1);
    for tried in &answers {
        let late = matches!(tried, CheckOutcome::Approved | CheckOutcome::Changed);
        assert!(late || matches!(tried, CheckOutcome::Right(_)), "{tried:?}");
    }
    let found = find(&verifications, begun).await;
    assert_eq!((found.status, found.attempts), (VerificationStatus::Approved, 1));
}

/// A check that holds the only connection needs no second one.
async fn one_connection_is_enough_for_many_checks(database: Database) {
    const CHECKS: usize = 200;
    let id = begin(&database, &start(&phone(1))).await;
    let verifications = SqlVerifications::new(pool(&database, 1));

    let mut checks = JoinSet::new();
    for number in 0..CHECKS {
        let verifications = verifications.clone();
        checks.spawn(async move {
            // One in ten is right.
            let hashes = if number % 10 == 9 { right() } else { wrong() };
            try_by_id(&verifications, id, hashes, &[]).await
        });
    }
    let answers = in_time(checks.join_all()).await;

    let count = |is: fn(&CheckOutcome) -> bool| answers.iter().filter(|tried| is(tried)).count();
    let right = count(|tried| matches!(tried, CheckOutcome::Right(_)));
    let wrong = count(|tried| matches!(tried, CheckOutcome::Wrong { .. }));
    let late =
        count(|tried| matches!(tried, CheckOutcome::Approved | CheckOutcome::Exhausted { .. }));
    assert_eq!(right + wrong + late, CHECKS);
    let found = find(&verifications, id).await;
    assert_eq!(usize::from(found.attempts), right + wrong);
    assert_eq!(found.status == VerificationStatus::Approved, right == 1, "{right}");
}

async fn concurrent_right_checks_of_many_verifications_all_succeed(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let mut checks = JoinSet::new();
    for number in 0..20 {
        let id = begin(&database, &start(&phone(number))).await;
        for _ in 0..4 {
            let verifications = verifications.clone();
            checks.spawn(async move {
                try_by_phone(&verifications, &phone(number), wrong(), &guesses()).await;
                let right = try_by_id(&verifications, id, right(), &guesses()).await;
                matches!(right, CheckOutcome::Right(_))
            });
        }
    }

    let approved = checks.join_all().await.into_iter().filter(|approved| *approved).count();
    assert_eq!(approved, 20);
}

async fn each_concurrent_caller_gets_its_own_answer(database: Database) {
    let verifications = SqlVerifications::new(pool(&database, 1));
    let guesses = policies("check", "3/1h,9/1d");
    let mut begun = Vec::new();
    for number in 0..60 {
        let id = begin(&database, &start(&phone(number))).await;
        // Some had attempts before.
        let before = u8::try_from(number / 6 % 3).unwrap();
        for _ in 0..before {
            try_by_id(&verifications, id, wrong(), &guesses).await;
        }
        begun.push((number, id, before));
    }
    let mut checks = JoinSet::new();
    for (number, id, before) in begun {
        let (verifications, guesses) = (verifications.clone(), guesses.clone());
        checks.spawn(async move {
            let (own, unknown) = (phone(number), phone(1_000 + number));
            let by_id = |id, hashes| try_by_id(&verifications, id, hashes, &guesses);
            let by_phone = |phone, hashes| try_by_phone(&verifications, phone, hashes, &guesses);
            match number % 6 {
                0 | 1 => {
                    let right = if number % 6 == 0 {
                        by_id(id, right()).await
                    } else {
                        by_phone(&own, right()).await
                    };
                    let CheckOutcome::Right(approval) = right else {
                        panic!("{number}: {right:?}")
                    };
                    assert_eq!(approval.phone.as_str(), own);
                }
                2 => assert_eq!(attempt(&by_id(id, wrong()).await), before + 1, "{number}"),
                3 => assert_eq!(attempt(&by_phone(&own, wrong()).await), before + 1, "{number}"),
                4 => {
                    let tried = by_id(new_id(), right()).await;
                    assert!(matches!(tried, CheckOutcome::Unknown), "{number}: {tried:?}");
                }
                _ => {
                    for _ in 0..3 {
                        let tried = by_phone(&unknown, right()).await;
                        assert!(matches!(tried, CheckOutcome::Nothing), "{number}: {tried:?}");
                    }
                    assert_eq!(over(&by_phone(&unknown, right()).await), ["check-1h"]);
                }
            }
        });
    }
    in_time(checks.join_all()).await;

    assert_eq!(count(&database, "verification WHERE status = 'approved'").await, 20);
}

/// Two processes have the phones in different orders, neither of them that of the ids.
async fn concurrent_batches_with_the_same_phones_all_succeed(database: Database) {
    const PHONES: usize = 24;
    let (one, other) =
        (SqlVerifications::new(database.clone()), SqlVerifications::new(database.clone()));
    for _ in 0..5 {
        let mut begun = Vec::new();
        for number in 0..PHONES {
            let number = number * 7 % PHONES;
            begun.push((number, begin(&database, &start(&phone(number))).await));
        }
        let mut checks = JoinSet::new();
        let forth = begun.clone().into_iter().map(|it| (one.clone(), it));
        let back = begun.into_iter().rev().map(|it| (other.clone(), it));
        for (verifications, (number, id)) in forth.chain(back) {
            checks.spawn(async move {
                let wrong = try_by_phone(&verifications, &phone(number), wrong(), &guesses()).await;
                let right = try_by_id(&verifications, id, right(), &guesses()).await;
                (wrong, matches!(right, CheckOutcome::Right(_)))
            });
        }
        let answers = in_time(checks.join_all()).await;
        assert_eq!(answers.iter().filter(|(_, is_right)| *is_right).count(), PHONES);
    }
    if database.is_postgres() {
        // A refused attempt is retried alone, so only the server shows it.
        let in_a_circle = "pg_stat_database WHERE datname = current_database() AND deadlocks > 0";
        assert_eq!(count(&database, in_a_circle).await, 0);
    }
}

/// Another process was suspended in the middle of a transaction.
async fn locked_verification_holds_up_no_other_attempt(database: Database) {
    if !database.is_postgres() {
        return;
    }
    let verifications = SqlVerifications::new(database.clone());
    let mut begun = Vec::new();
    for number in 0..12 {
        begun.push(begin(&database, &start(&phone(number))).await);
    }
    let frozen = database.connection().begin().await.unwrap();
    let lock = format!("SELECT FROM phone WHERE phone = '{}' FOR UPDATE", phone(7));
    frozen.execute_unprepared(&lock).await.unwrap();

    let mut checks = JoinSet::new();
    for id in begun.clone() {
        let verifications = verifications.clone();
        checks.spawn(async move {
            is_right(&try_by_id(&verifications, id, right(), &guesses()).await);
            id
        });
    }
    let mut approved = Vec::new();
    for _ in 1..begun.len() {
        approved.push(in_time(checks.join_next()).await.unwrap().unwrap());
    }
    assert!(!approved.contains(&begun[7]));
    frozen.rollback().await.unwrap();
    assert_eq!(in_time(checks.join_next()).await.unwrap().unwrap(), begun[7]);
}

async fn unreadable_row_fails_no_other_attempt(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let mut begun = Vec::new();
    for number in 0..6 {
        begun.push(begin(&database, &start(&phone(number))).await);
    }
    let spoil = "UPDATE verification SET pepper_id = 'no name' WHERE phone = '79990000003'";
    database.connection().execute_unprepared(spoil).await.unwrap();

    let mut checks = JoinSet::new();
    for id in begun.clone() {
        let verifications = verifications.clone();
        checks.spawn(async move {
            let attempt = support::attempt(Target::Id(id), wrong());
            (id, verifications.check(attempt, &guesses()).await.is_ok())
        });
    }
    for (id, is_ok) in checks.join_all().await {
        assert_eq!(is_ok, id != begun[3]);
    }
}

async fn attempt_to_a_full_queue_is_refused(database: Database) {
    const MORE: usize = 1_025;
    if !database.is_postgres() {
        return;
    }
    let verifications = SqlVerifications::new(database.clone());
    let mut checks = JoinSet::new();
    for _ in 0..MORE {
        let verifications = verifications.clone();
        checks.spawn(async move {
            let target = Target::Id(new_id());
            let attempt = support::attempt(target, right());
            verifications.check(attempt, &[]).await
        });
    }

    let answers = checks.join_all().await;
    let full = answers.iter().filter(|it| matches!(it, Err(StoreError::Full))).count();
    let unknown = answers.iter().filter(|it| matches!(it, Ok(CheckOutcome::Unknown))).count();
    assert_eq!((full, unknown), (1, MORE - 1));
}

async fn five_of_many_concurrent_guesses_are_tried(database: Database) {
    let id = begin(&database, &start(&phone(1))).await;
    let verifications = SqlVerifications::new(database.clone());
    let mut checks = JoinSet::new();
    for _ in 0..40 {
        // Each process has a queue of its own.
        let verifications = SqlVerifications::new(database.clone());
        checks.spawn(async move { try_by_id(&verifications, id, wrong(), &guesses()).await });
    }
    let answers = checks.join_all().await;
    let late = try_by_id(&verifications, id, right(), &guesses()).await;

    let mut tried: Vec<u8> = answers
        .iter()
        .filter_map(|tried| match tried {
            CheckOutcome::Wrong { attempts, .. } => Some(*attempts),
            _ => None,
        })
        .collect();
    tried.sort_unstable();
    assert_eq!(tried, [1, 2, 3, 4, 5]);
    assert!(matches!(late, CheckOutcome::Exhausted { .. }), "{late:?}");
    // The right code after the last attempt has not touched the phone.
    let newest = verifications.newest(phone(1).parse().unwrap()).await.unwrap();
    assert_eq!(newest.v1, Some(id));
    assert_eq!(count(&database, "limit_counter WHERE used = 5").await, 2);
}

async fn five_wrong_then_exhausted(database: Database) {
    let id = begin(&database, &start(&phone(1))).await;
    let verifications = SqlVerifications::new(database.clone());

    for number in 1..=5 {
        let tried = if number % 2 == 0 {
            try_by_phone(&verifications, &phone(1), wrong(), &guesses()).await
        } else {
            try_by_id(&verifications, id, wrong(), &guesses()).await
        };
        assert_eq!(attempt(&tried), number);
    }
    let by_id = try_by_id(&verifications, id, right(), &guesses()).await;
    let CheckOutcome::Exhausted { retry_after, ttl } = by_id else { panic!("{by_id:?}") };
    let by_phone = try_by_phone(&verifications, &phone(1), right(), &guesses()).await;

    assert_eq!(ttl, Duration::from_secs(600));
    assert!(retry_after > Duration::from_secs(500) && retry_after <= ttl, "{retry_after:?}");
    assert!(matches!(by_phone, CheckOutcome::Nothing), "{by_phone:?}");
    assert_eq!(find(&verifications, id).await.attempts, 5);
    assert_eq!(count(&database, "limit_counter WHERE used = 6").await, 2);
}

/// A send of an open `/api`.
fn open_api(phone: &str) -> NewSend {
    NewSend { apart: true, ..new_message(phone) }
}

async fn check_by_phone_tries_the_newest_of_each_origin(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let tried = async || try_by_phone(&verifications, &phone(1), right(), &guesses()).await;
    let v1 = begin(&database, &start(&phone(1))).await;
    let old = begin(&database, &new_message(&phone(1))).await;
    let apart = begin(&database, &open_api(&phone(1))).await;
    let newest = verifications.newest(phone(1).parse().unwrap()).await.unwrap();
    assert_eq!(newest, Newest { v1: Some(v1), api: Some(apart) });

    // A code that is right for both approves one of them at a time.
    for expected in [v1, apart] {
        let tried = tried().await;
        let CheckOutcome::Right(approval) = tried else { panic!("{tried:?}") };
        assert_eq!(approval.id, expected);
    }
    // The older verification is not found by phone again.
    let nothing = tried().await;
    assert!(matches!(nothing, CheckOutcome::Nothing), "{nothing:?}");
    assert_eq!(find(&verifications, old).await.attempts, 0);
}

async fn wrong_code_counts_at_both_origins_and_right_code_at_its_own(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let v1 = begin(&database, &start(&phone(1))).await;
    let api = begin(&database, &open_api(&phone(1))).await;
    let of_api = Attempt {
        hashes: wrong(),
        ..support::attempt(
            Target::Newest {
                phone: phone(1).parse().unwrap(),
                of: Newest { v1: Some(v1), api: Some(api) },
            },
            right(),
        )
    };

    let tried = try_by_phone(&verifications, &phone(1), wrong(), &guesses()).await;
    assert_eq!(attempt(&tried), 1);
    for id in [v1, api] {
        assert_eq!(find(&verifications, id).await.attempts, 1);
    }
    let tried = verifications.check(of_api, &guesses()).await.unwrap();
    assert!(matches!(&tried, CheckOutcome::Right(it) if it.id == api), "{tried:?}");

    let found = find(&verifications, v1).await;
    assert_eq!((found.attempts, found.status), (1, VerificationStatus::Pending));
    is_right(&try_by_phone(&verifications, &phone(1), right(), &guesses()).await);
}

/// For every way to send it, and every guess at it.
async fn sends_through_api_change_no_verification_of_v1(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let id = begin(&database, &limited("2/1h", start(&phone(1)))).await;
    let guesses = policies("check", "2/1h");

    for _ in 0..2 {
        let send = limited("2/1h", open_api(&phone(1)));
        let api = begin(&database, &send).await;
        try_by_id(&verifications, api, wrong(), &guesses).await;
    }
    let refused = enqueue(&database, &limited("2/1h", open_api(&phone(1)))).await;
    assert!(matches!(refused, Enqueued::Limited(_)), "{refused:?}");
    // Two guesses have used up the windows of /api.
    let tried = try_by_phone(&verifications, &phone(1), right(), &guesses).await;
    assert!(matches!(&tried, CheckOutcome::Right(it) if it.id == id), "{tried:?}");
    let tried = try_by_phone(&verifications, &phone(1), right(), &guesses).await;
    assert_eq!(over(&tried), ["check-1h"]);

    // One more may begin: it is the second of /v1.
    begin(&database, &limited("2/1h", start(&phone(1)))).await;
    let pending = enqueue(&database, &limited("9/1h", start(&phone(1)))).await;
    assert!(matches!(&pending, Enqueued::Pending(it) if it.origin == Origin::V1), "{pending:?}");
}

async fn guesses_at_nothing_do_not_count_against_a_later_verification(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let guesses = policies("check", "2/1h");
    for _ in 0..2 {
        let tried = try_by_phone(&verifications, &phone(1), wrong(), &guesses).await;
        assert!(matches!(tried, CheckOutcome::Nothing), "{tried:?}");
    }
    let tried = try_by_phone(&verifications, &phone(1), wrong(), &guesses).await;
    assert_eq!(over(&tried), ["check-1h"]);

    begin(&database, &start(&phone(1))).await;
    is_right(&try_by_phone(&verifications, &phone(1), right(), &guesses).await);
    // The stranger's guesses stay counted.
    let tried = try_by_phone(&verifications, &phone(1), wrong(), &guesses).await;
    assert_eq!(over(&tried), ["check-1h"]);
}

/// A guess by phone writes the same number of rows whatever there is to guess.
async fn check_by_phone_does_the_same_work_with_and_without_a_verification(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    begin(&database, &start(&phone(2))).await;
    begin(&database, &open_api(&phone(3))).await;
    begin(&database, &start(&phone(4))).await;
    begin(&database, &open_api(&phone(4))).await;
    for number in 1..=4 {
        let before = count(&database, "limit_counter").await;
        try_by_phone(&verifications, &phone(number), wrong(), &guesses()).await;
        assert_eq!(count(&database, "limit_counter").await - before, 4, "phone {number}");
    }
}

async fn counts_of_a_phone_can_be_cleared(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let guesses = policies("check", "1/1h");
    for number in [1, 2] {
        try_by_phone(&verifications, &phone(number), wrong(), &guesses).await;
        begin(&database, &limited("1/1h", open_api(&phone(number)))).await;
        begin(&database, &limited("1/1h", start(&phone(number)))).await;
        try_by_phone(&verifications, &phone(number), wrong(), &guesses).await;
    }
    let clear = async || crate::clear_limits(&database, &phone(1).parse().unwrap()).await.unwrap();

    assert_eq!(clear().await, crate::Cleared { guesses: 4, messages: 2 });

    assert_eq!(clear().await, crate::Cleared { guesses: 0, messages: 0 });
    begin(&database, &limited("1/1h", open_api(&phone(1)))).await;
    is_right(&try_by_phone(&verifications, &phone(1), right(), &guesses).await);
    begin(&database, &limited("1/1h", start(&phone(1)))).await;
    let tried = try_by_phone(&verifications, &phone(2), right(), &guesses).await;
    assert_eq!(over(&tried), ["check-1h"]);
    let refused = enqueue(&database, &limited("1/1h", open_api(&phone(2)))).await;
    assert!(matches!(refused, Enqueued::Limited(_)), "{refused:?}");
}

async fn check_of_a_verification_that_is_no_longer_the_newest_changes_nothing(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let check = async |id| {
        let attempt = support::attempt(newest_of(&phone(1), id), right());
        verifications.check(attempt, &guesses()).await.unwrap()
    };
    let none = new_id();
    assert!(matches!(check(Some(none)).await, CheckOutcome::Changed));
    let first = begin(&database, &start(&phone(1))).await;
    assert!(matches!(check(None).await, CheckOutcome::Changed));
    verifications.cancel(first).await.unwrap();
    let second = begin(&database, &start(&phone(1))).await;
    assert!(matches!(check(Some(first)).await, CheckOutcome::Changed));

    for id in [first, second] {
        assert_eq!(find(&verifications, id).await.attempts, 0);
    }
    assert_eq!(count(&database, "limit_counter").await, 0);
    is_right(&check(Some(second)).await);
}

async fn guesses_at_an_unknown_phone_are_counted(database: Database) {
    begin(&database, &start(&phone(1))).await;
    let verifications = SqlVerifications::new(database.clone());
    let guesses = policies("check", "2/1h");

    for number in [1, 2] {
        for _ in 0..2 {
            try_by_phone(&verifications, &phone(number), wrong(), &guesses).await;
        }
        let tried = try_by_phone(&verifications, &phone(number), right(), &guesses).await;
        assert_eq!(over(&tried), ["check-1h"]);
    }
    let unknown = new_id();
    let tried = try_by_id(&verifications, unknown, right(), &guesses).await;
    assert!(matches!(tried, CheckOutcome::Unknown), "{tried:?}");
    // The windows of the phone and, for the same work, those of /api.
    assert_eq!(count(&database, "limit_counter WHERE used = 2").await, 4);
    assert_eq!(count(&database, "limit_counter").await, 4);
}

async fn exhausted_window_counts_nothing(database: Database) {
    let id = begin(&database, &start(&phone(1))).await;
    let verifications = SqlVerifications::new(database.clone());
    let guesses = policies("check", "1/1h,9/1d");
    try_by_id(&verifications, id, wrong(), &guesses).await;
    let written = last_write(&database).await;

    for _ in 0..2 {
        let tried = try_by_id(&verifications, id, right(), &guesses).await;
        assert_eq!(over(&tried), ["check-1h"]);
        let tried = try_by_phone(&verifications, &phone(1), right(), &guesses).await;
        assert_eq!(over(&tried), ["check-1h"]);
    }

    assert_eq!(last_write(&database).await, written);
    assert_eq!(count(&database, "limit_counter WHERE used = 1").await, 2);
    let found = find(&verifications, id).await;
    assert_eq!((found.attempts, found.status), (1, VerificationStatus::Pending));
}

/// The transactions that last wrote to the rows of a check, or locked them; none in SQLite.
async fn last_write(database: &Database) -> Vec<String> {
    if !database.is_postgres() {
        return Vec::new();
    }
    let sql = "
        SELECT xmin || ' ' || xmax AS last FROM limit_counter
        UNION ALL SELECT xmin || ' ' || xmax FROM verification
        UNION ALL SELECT xmin || ' ' || xmax FROM phone";
    let statement = sea_orm::Statement::from_string(sea_orm::DbBackend::Postgres, sql);
    let rows = database.connection().query_all_raw(statement).await.unwrap();
    rows.iter().map(|row| row.try_get("", "last").unwrap()).collect()
}

async fn concurrent_guesses_never_exceed_the_quota(database: Database) {
    let id = begin(&database, &start(&phone(1))).await;
    let verifications = SqlVerifications::new(database.clone());
    let mut checks = JoinSet::new();
    for number in 0..40 {
        // Each process has a queue of its own.
        let verifications = SqlVerifications::new(database.clone());
        let guesses = policies("check", "3/1h,50/1d");
        checks.spawn(async move {
            if number % 2 == 0 {
                try_by_id(&verifications, id, wrong(), &guesses).await
            } else {
                try_by_phone(&verifications, &phone(1), wrong(), &guesses).await
            }
        });
    }

    let answers = checks.join_all().await;
    let tried = answers.iter().filter(|it| matches!(it, CheckOutcome::Wrong { .. })).count();

    assert_eq!(tried, 3);
    assert_eq!(find(&verifications, id).await.attempts, 3);
    let counted =
        format!("limit_counter WHERE policy = 'check-1h' AND used = 3 AND key = '{}'", phone(1));
    assert_eq!(count(&database, &counted).await, 1);
}

async fn cancel_and_restart_grant_no_new_guesses(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let guesses = policies("check", "6/1h");
    let first = begin(&database, &start(&phone(1))).await;
    for _ in 0..5 {
        attempt(&try_by_id(&verifications, first, wrong(), &guesses).await);
    }

    verifications.cancel(first).await.unwrap().unwrap();
    let second = begin(&database, &start(&phone(1))).await;

    attempt(&try_by_id(&verifications, second, wrong(), &guesses).await);
    let by_id = try_by_id(&verifications, second, right(), &guesses).await;
    let by_phone = try_by_phone(&verifications, &phone(1), right(), &guesses).await;
    for tried in [by_id, by_phone] {
        assert_eq!(over(&tried), ["check-1h"]);
    }
    assert_eq!(find(&verifications, second).await.attempts, 1);
}

async fn approval_forgets_only_its_own_guesses(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    // One guess before there was a verification, two at it, and one at another phone.
    try_by_phone(&verifications, &phone(1), wrong(), &guesses()).await;
    let send = start(&phone(1));
    let verification = NewVerification { region: "RU".parse().ok(), ..send.verification };
    let id = begin(&database, &NewSend { verification, ..send }).await;
    for _ in 0..2 {
        try_by_id(&verifications, id, wrong(), &guesses()).await;
    }
    try_by_phone(&verifications, &phone(2), wrong(), &guesses()).await;

    let tried = try_by_id(&verifications, id, right(), &guesses()).await;

    let CheckOutcome::Right(approval) = tried else { panic!("{tried:?}") };
    let phone_1 = phone(1).parse().unwrap();
    let expected = Approval { id, origin: Origin::V1, phone: phone_1, region: "RU".parse().ok() };
    assert_eq!(approval, expected);
    for (number, at) in [(1, "?"), (1, "api?"), (2, "?"), (2, "api?")] {
        let kept = format!("limit_counter WHERE key = '{at}{}' AND used = 1", phone(number));
        assert_eq!(count(&database, &kept).await, 2);
    }
    let forgiven = format!("limit_counter WHERE key = '{}' AND used = 0", phone(1));
    assert_eq!(count(&database, &forgiven).await, 2);
    // A new one may begin.
    begin(&database, &start(&phone(1))).await;
}

async fn every_end_wipes_code_hash_and_seed(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let approved = begin(&database, &start(&phone(1))).await;
    let canceled = begin(&database, &start(&phone(2))).await;
    let expired = begin(&database, &NewSend { ttl: NONE, ..start(&phone(3)) }).await;
    let pending = begin(&database, &start(&phone(4))).await;
    assert_eq!(count(&database, "verification WHERE code_hash IS NOT NULL").await, 4);

    approve(&verifications, approved).await;
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

async fn late_verification_is_shown_as_expired_before_housekeeping(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let id = begin(&database, &NewSend { ttl: NONE, ..start(&phone(1)) }).await;

    let before = find(&verifications, id).await;
    let by_id = try_by_id(&verifications, id, right(), &guesses()).await;
    let by_phone = try_by_phone(&verifications, &phone(1), right(), &guesses()).await;
    let canceled = verifications.cancel(id).await.unwrap().unwrap();
    assert_eq!(verifications.expire().await.unwrap(), 1);
    let after = verifications.history(id).await.unwrap().unwrap();

    assert_eq!(before.status, VerificationStatus::Expired);
    assert_eq!((before.ended_at, &before.secret), (Some(before.expires_at), &None));
    assert!(matches!(by_id, CheckOutcome::Gone(VerificationStatus::Expired)), "{by_id:?}");
    assert!(matches!(by_phone, CheckOutcome::Nothing), "{by_phone:?}");
    assert_eq!(canceled.verification.status, VerificationStatus::Expired);
    let Verification { read_at, .. } = after.verification;
    assert_eq!(after.verification, Verification { read_at, ..before });
    let kinds: Vec<_> = after.events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Created, EventKind::Queued, EventKind::Expired]);
}

async fn check_of_an_ended_verification_returns_how_it_ended(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let approved = begin(&database, &start(&phone(1))).await;
    let canceled = begin(&database, &start(&phone(2))).await;
    approve(&verifications, approved).await;
    verifications.cancel(canceled).await.unwrap().unwrap();

    let of_approved = try_by_id(&verifications, approved, right(), &guesses()).await;
    let of_canceled = try_by_id(&verifications, canceled, right(), &guesses()).await;

    assert!(matches!(of_approved, CheckOutcome::Approved), "{of_approved:?}");
    assert!(
        matches!(of_canceled, CheckOutcome::Gone(VerificationStatus::Canceled)),
        "{of_canceled:?}"
    );
    // The caller could learn nothing, and nothing is counted.
    assert_eq!(count(&database, "limit_counter").await, 0);
}

async fn canceled_verification_stays_canceled(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let id = begin(&database, &start(&phone(1))).await;

    let first = verifications.cancel(id).await.unwrap().unwrap();
    let second = verifications.cancel(id).await.unwrap().unwrap();

    assert_eq!(first.verification.status, VerificationStatus::Canceled);
    assert_eq!(first.verification.ended_at, second.verification.ended_at);
    assert_eq!(first.events, second.events);
    assert_eq!(first.events.last().unwrap().kind, EventKind::Canceled);
    let unknown = new_id();
    assert_eq!(verifications.cancel(unknown).await.unwrap(), None);
    let approved = begin(&database, &start(&phone(1))).await;
    approve(&verifications, approved).await;
    let history = verifications.cancel(approved).await.unwrap().unwrap();
    assert_eq!(history.verification.status, VerificationStatus::Approved);
}

async fn guesses_at_a_test_number_count_and_no_message_is_sent(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    verifications.start_test(test_number(1)).await.unwrap();
    let test = test_number(1);
    let begun = verifications.start_test(test.clone()).await.unwrap();
    let guesses = policies("check", "4/1h");

    let stored = find(&verifications, test.id).await;
    assert_eq!(stored, Verification { read_at: stored.read_at, ..begun });
    for number in 1..=3 {
        let tried = if number % 2 == 0 {
            try_by_phone(&verifications, &phone(1), wrong(), &guesses).await
        } else {
            try_by_id(&verifications, test.id, wrong(), &guesses).await
        };
        assert_eq!(attempt(&tried), number);
    }
    let tried = try_by_phone(&verifications, &phone(1), right(), &guesses).await;
    assert!(matches!(&tried, CheckOutcome::Right(it) if it.origin == Origin::Test), "{tried:?}");
    let history = verifications.history(test.id).await.unwrap().unwrap();
    let kinds: Vec<_> = history.events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Created, EventKind::Approved]);
    assert_eq!(count(&database, "outbox").await, 0);

    // Even if the caller starts again and again.
    let once = policies("once", "1/1h");
    for number in [2, 3] {
        verifications.start_test(test_number(1)).await.unwrap();
        let tried = try_by_phone(&verifications, &phone(1), wrong(), &once).await;
        assert_eq!(matches!(tried, CheckOutcome::Limited(_)), number == 3, "{tried:?}");
    }
}

async fn prune_deletes_only_rows_that_are_no_longer_needed(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let old = begin(&database, &NewSend { ttl: NONE, ..start(&phone(1)) }).await;
    let pending = begin(&database, &start(&phone(2))).await;
    for (number, windows) in [(1, "9/1s"), (2, "9/1h")] {
        let guesses = policies("check", windows);
        try_by_phone(&verifications, &phone(number), wrong(), &guesses).await;
    }
    let past = if database.is_postgres() { "now() - interval '1 s'" } else { "1" };
    let sql = format!("UPDATE limit_counter SET ends_at = {past} WHERE policy = 'check-1s'");
    database.connection().execute_unprepared(&sql).await.unwrap();

    // The phone of the first, and its counters.
    assert_eq!(verifications.prune(LONG).await.unwrap(), 3);
    assert_eq!(verifications.prune(LONG).await.unwrap(), 0);
    assert!(verifications.find(old).await.unwrap().is_some());
    let in_time = async { while verifications.prune(NONE).await.unwrap() == 0 {} };
    super::support::in_time(in_time).await;

    assert!(verifications.find(old).await.unwrap().is_none());
    assert!(verifications.find(pending).await.unwrap().is_some(), "it may still be checked");
    assert_eq!(count(&database, "phone").await, 1);
    assert_eq!(count(&database, "limit_counter").await, 2);
}
