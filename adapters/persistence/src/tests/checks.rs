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
    an_attempt_is_counted_whatever_it_is,
    the_hash_counts_that_is_by_the_same_pepper,
    a_thousand_right_checks_approve_once,
    one_connection_is_enough_for_many_checks,
    right_checks_of_many_verifications_at_once_bear_each_other,
    each_of_many_at_once_hears_of_its_own,
    batches_of_the_same_phones_bear_each_other,
    what_others_have_locked_holds_up_nobody_else,
    what_cannot_be_read_fails_nobody_else,
    so_many_may_wait_and_one_more_is_told,
    of_many_guesses_at_once_five_are_tried,
    five_wrong_then_exhausted,
    by_phone_the_newest_of_each_door_counts,
    a_wrong_code_counts_at_both_doors_and_a_right_one_at_its_own,
    what_comes_through_api_touches_nothing_of_v1,
    guesses_at_nothing_do_not_count_against_what_begins_later,
    by_phone_the_work_is_the_same,
    what_was_counted_of_a_phone_can_be_forgotten,
    what_is_not_the_newest_any_more_changes_nothing,
    an_unknown_phone_is_counted_alike,
    what_is_used_up_counts_nothing,
    racing_guesses_never_pass_their_quota,
    cancel_and_restart_give_no_fresh_guesses,
    an_approval_forgets_the_guesses_at_it_only,
    code_hash_and_seed_are_wiped_at_every_end,
    what_is_over_is_shown_as_expired_before_it_is_swept,
    what_has_ended_is_told_by_its_end,
    a_canceled_one_stays_canceled,
    guesses_at_a_test_number_count_and_nothing_is_sent,
    what_nobody_needs_any_more_is_deleted_and_nothing_else,
);

const NONE: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(86_400);

/// Such a pool as `api` has for checks.
fn pool(database: &Database, connections: u32) -> Database {
    if database.is_postgres() {
        Database::connect_lazily(database.settings(), "checks", connections)
    } else {
        database.clone()
    }
}

/// None of them is reached where it is not the point.
fn guesses() -> Vec<Policy> {
    policies("check", "1000/1h,5000/1d")
}

/// Begins one, and returns its id.
async fn begin(database: &Database, send: &NewSend) -> VerificationId {
    accepted(&enqueue(database, send).await);
    id_of(send)
}

async fn find(verifications: &SqlVerifications, id: VerificationId) -> Verification {
    verifications.find(id).await.unwrap().unwrap()
}

/// Attempts, with the one that was counted.
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

async fn an_attempt_is_counted_whatever_it_is(database: Database) {
    let id = begin(&database, &start(&phone(1))).await;
    let verifications = SqlVerifications::new(database.clone());

    assert_eq!(attempt(&try_by_id(&verifications, id, wrong(), &guesses()).await), 1);
    assert_eq!(find(&verifications, id).await.attempts, 1);
    assert_eq!(count(&database, "limit_counter WHERE used = 1").await, 2);
    assert_eq!(attempt(&try_by_phone(&verifications, &phone(1), wrong(), &guesses()).await), 2);
    assert_eq!(count(&database, "limit_counter WHERE used = 2").await, 2);
    // Hashes of no pepper that this process has.
    assert_eq!(attempt(&try_by_id(&verifications, id, vec![], &guesses()).await), 3);
    assert_eq!(count(&database, "limit_counter WHERE used = 3").await, 2);
    is_right(&try_by_id(&verifications, id, right(), &guesses()).await);

    let found = find(&verifications, id).await;
    assert_eq!((found.attempts, found.status), (4, VerificationStatus::Approved));
    assert_eq!(count(&database, "limit_counter WHERE used = 0").await, 2);
}

async fn the_hash_counts_that_is_by_the_same_pepper(database: Database) {
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

async fn a_thousand_right_checks_approve_once(database: Database) {
    const CHECKS: usize = 1_000;
    let begun = begin(&database, &start(&phone(1))).await;
    let verifications = SqlVerifications::new(pool(&database, 8));
    // Connections are there: under all that follows none could be made in time.
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
        // So many at once may wait too long for one of a few connections: whoever comes back has
        // lost nothing.
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

/// Whoever holds the only connection needs no second one.
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

async fn right_checks_of_many_verifications_at_once_bear_each_other(database: Database) {
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

async fn each_of_many_at_once_hears_of_its_own(database: Database) {
    let verifications = SqlVerifications::new(pool(&database, 1));
    let guesses = policies("check", "3/1h,9/1d");
    let mut begun = Vec::new();
    for number in 0..60 {
        let id = begin(&database, &start(&phone(number))).await;
        // Some were tried before.
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

/// Two processes, and each has the phones in another order, which is not that of the ids.
async fn batches_of_the_same_phones_bear_each_other(database: Database) {
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
        // Whoever is in one is tried again, alone, so that only the server tells.
        let in_a_circle = "pg_stat_database WHERE datname = current_database() AND deadlocks > 0";
        assert_eq!(count(&database, in_a_circle).await, 0);
    }
}

/// A process that was frozen in the middle of a transaction.
async fn what_others_have_locked_holds_up_nobody_else(database: Database) {
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

async fn what_cannot_be_read_fails_nobody_else(database: Database) {
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

async fn so_many_may_wait_and_one_more_is_told(database: Database) {
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

async fn of_many_guesses_at_once_five_are_tried(database: Database) {
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
    // A right one too many has not touched the phone.
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

/// What `/api` sends while it is open.
fn open_api(phone: &str) -> NewSend {
    NewSend { apart: true, ..new_message(phone) }
}

async fn by_phone_the_newest_of_each_door_counts(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let tried = async || try_by_phone(&verifications, &phone(1), right(), &guesses()).await;
    let v1 = begin(&database, &start(&phone(1))).await;
    let old = begin(&database, &new_message(&phone(1))).await;
    let apart = begin(&database, &open_api(&phone(1))).await;
    let newest = verifications.newest(phone(1).parse().unwrap()).await.unwrap();
    assert_eq!(newest, Newest { v1: Some(v1), api: Some(apart) });

    // A code that is right for both is right for one of them at a time.
    for expected in [v1, apart] {
        let tried = tried().await;
        let CheckOutcome::Right(approval) = tried else { panic!("{tried:?}") };
        assert_eq!(approval.id, expected);
    }
    // The one before it is not found by phone again.
    let nothing = tried().await;
    assert!(matches!(nothing, CheckOutcome::Nothing), "{nothing:?}");
    assert_eq!(find(&verifications, old).await.attempts, 0);
}

async fn a_wrong_code_counts_at_both_doors_and_a_right_one_at_its_own(database: Database) {
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

/// In whatever way it is sent, and whatever is guessed at it.
async fn what_comes_through_api_touches_nothing_of_v1(database: Database) {
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
    // Two guesses have used up the windows of what /api sends.
    let tried = try_by_phone(&verifications, &phone(1), right(), &guesses).await;
    assert!(matches!(&tried, CheckOutcome::Right(it) if it.id == id), "{tried:?}");
    let tried = try_by_phone(&verifications, &phone(1), right(), &guesses).await;
    assert_eq!(over(&tried), ["check-1h"]);

    // And one more may begin: it is the second on /v1.
    begin(&database, &limited("2/1h", start(&phone(1)))).await;
    let pending = enqueue(&database, &limited("9/1h", start(&phone(1)))).await;
    assert!(matches!(&pending, Enqueued::Pending(it) if it.origin == Origin::V1), "{pending:?}");
}

async fn guesses_at_nothing_do_not_count_against_what_begins_later(database: Database) {
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
    // The stranger's stay counted.
    let tried = try_by_phone(&verifications, &phone(1), wrong(), &guesses).await;
    assert_eq!(over(&tried), ["check-1h"]);
}

/// The rows that a guess by phone writes are as many whatever there is to guess.
async fn by_phone_the_work_is_the_same(database: Database) {
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

async fn what_was_counted_of_a_phone_can_be_forgotten(database: Database) {
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

async fn what_is_not_the_newest_any_more_changes_nothing(database: Database) {
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

async fn an_unknown_phone_is_counted_alike(database: Database) {
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
    // The phone's, and for the same work those of what /api might have begun.
    assert_eq!(count(&database, "limit_counter WHERE used = 2").await, 4);
    assert_eq!(count(&database, "limit_counter").await, 4);
}

async fn what_is_used_up_counts_nothing(database: Database) {
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

/// Which transaction wrote to the rows of a check last, or even locked one; nothing in SQLite.
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

async fn racing_guesses_never_pass_their_quota(database: Database) {
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

async fn cancel_and_restart_give_no_fresh_guesses(database: Database) {
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

async fn an_approval_forgets_the_guesses_at_it_only(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    // One before there was anything to guess, two at it, and one at another phone.
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

async fn what_is_over_is_shown_as_expired_before_it_is_swept(database: Database) {
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

async fn what_has_ended_is_told_by_its_end(database: Database) {
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
    let unknown = new_id();
    assert_eq!(verifications.cancel(unknown).await.unwrap(), None);
    let approved = begin(&database, &start(&phone(1))).await;
    approve(&verifications, approved).await;
    let history = verifications.cancel(approved).await.unwrap().unwrap();
    assert_eq!(history.verification.status, VerificationStatus::Approved);
}

async fn guesses_at_a_test_number_count_and_nothing_is_sent(database: Database) {
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

    // However often one begins anew.
    let once = policies("once", "1/1h");
    for number in [2, 3] {
        verifications.start_test(test_number(1)).await.unwrap();
        let tried = try_by_phone(&verifications, &phone(1), wrong(), &once).await;
        assert_eq!(matches!(tried, CheckOutcome::Limited(_)), number == 3, "{tried:?}");
    }
}

async fn what_nobody_needs_any_more_is_deleted_and_nothing_else(database: Database) {
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
