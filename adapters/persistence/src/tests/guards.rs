use std::time::{Duration, SystemTime};

use application::ports::{
    GuardCounts, GuardDecision, GuardDelta, GuardKey, GuardRecords, GuardTotal,
};
use domain::{GuardMode, GuardRule, GuardScope, Rolling, VerificationId};
use migration::{Migrator, MigratorTrait};
use sea_orm::ConnectionTrait;
use tokio::task::JoinSet;

use super::{
    on_both_databases,
    support::{accepted, approve, count, enqueue, id_of, new_id, new_message, phone, start},
};
use crate::{Database, SqlGuard, SqlVerifications};

on_both_databases!(
    processes_count_together,
    counts_roll_through_two_buckets,
    allowed_key_is_allowed_for_a_time,
    every_key_has_a_total,
    decision_is_kept_with_its_counts,
    flood_of_decisions_takes_few_rows,
    row_holds_a_thousand_decisions,
    reverting_the_migration_gives_each_decision_a_row,
    past_verifications_are_read_page_by_page,
    concurrent_flushes_and_allowances_do_not_deadlock,
);

const WINDOW: Duration = Duration::from_secs(3_600);

fn key(key: &str) -> GuardKey {
    GuardKey { scope: GuardScope::Prefix, key: key.to_owned() }
}

fn moved(name: &str, sends: u64, approvals: u64) -> GuardDelta {
    GuardDelta { key: key(name), sends, approvals }
}

async fn add(guard: &SqlGuard, moves: &[GuardDelta]) -> Vec<GuardTotal> {
    guard.add(moves, &[], WINDOW).await.unwrap()
}

/// Sends and approvals of the current bucket, and of the one before.
fn buckets(total: &GuardTotal) -> [(u64, u64); 2] {
    of_rolling(total.window)
}

fn of_rolling(rolling: Rolling) -> [(u64, u64); 2] {
    let Rolling { sends, approvals, sends_before, approvals_before, .. } = rolling;
    [(sends, approvals), (sends_before, approvals_before)]
}

/// Moves the counts back, as if time had passed.
async fn pass(database: &Database, time: Duration) {
    let seconds = time.as_secs();
    let sql = if database.is_postgres() {
        format!(
            "UPDATE guard_count SET began_at = began_at - interval '{seconds} s',
                day_began_at = day_began_at - interval '{seconds} s',
                allowed_until = allowed_until - interval '{seconds} s'"
        )
    } else {
        format!(
            "UPDATE guard_count SET began_at = began_at - {seconds} * 1000,
                day_began_at = day_began_at - {seconds} * 1000,
                allowed_until = allowed_until - {seconds} * 1000"
        )
    };
    database.connection().execute_unprepared(&sql).await.unwrap();
}

async fn processes_count_together(database: Database) {
    let (one, other) = (SqlGuard::new(database.clone()), SqlGuard::new(database));
    add(&one, &[moved("7999123", 5, 1)]).await;

    let totals = add(&other, &[moved("7999123", 2, 1), moved("44790", 1, 0)]).await;

    let of = |name| totals.iter().find(|total| total.key == key(name)).map(buckets);
    assert_eq!(of("7999123"), Some([(7, 2), (0, 0)]));
    assert_eq!(of("44790"), Some([(1, 0), (0, 0)]));
    // The second has nothing to add.
    assert_eq!(buckets(&add(&one, &[moved("44790", 0, 0)]).await[0]), [(1, 0), (0, 0)]);
}

async fn counts_roll_through_two_buckets(database: Database) {
    let guard = SqlGuard::new(database.clone());
    add(&guard, &[moved("7999123", 5, 1)]).await;
    let totals = add(&guard, &[moved("7999123", 5, 1)]).await;
    assert_eq!(buckets(&totals[0]), [(10, 2), (0, 0)]);
    assert!(totals[0].window.age < Duration::from_secs(60));

    pass(&database, Duration::from_secs(3_600 + 900)).await;
    let totals = add(&guard, &[moved("7999123", 2, 0)]).await;
    assert_eq!(buckets(&totals[0]), [(2, 0), (10, 2)]);
    let age = totals[0].window.age;
    assert!(age >= Duration::from_secs(900) && age < Duration::from_secs(960), "{age:?}");

    pass(&database, Duration::from_secs(2 * 3_600)).await;
    let totals = add(&guard, &[moved("7999123", 0, 0)]).await;
    assert_eq!(buckets(&totals[0]), [(0, 0), (0, 0)]);
    assert_eq!(of_rolling(totals[0].day), [(12, 2), (0, 0)]);

    pass(&database, Duration::from_secs(86_400)).await;
    let totals = add(&guard, &[moved("7999123", 1, 1)]).await;
    assert_eq!(of_rolling(totals[0].day), [(1, 1), (12, 2)]);
    let age = totals[0].day.age;
    let hours = Duration::from_secs(3 * 3_600 + 900);
    assert!(age >= hours && age < hours + Duration::from_secs(60), "{age:?}");
    pass(&database, Duration::from_secs(2 * 86_400)).await;
    let totals = add(&guard, &[moved("7999123", 0, 0)]).await;
    assert_eq!(of_rolling(totals[0].day), [(0, 0), (0, 0)]);
}

async fn allowed_key_is_allowed_for_a_time(database: Database) {
    let guard = SqlGuard::new(database.clone());
    let range = GuardKey { scope: GuardScope::Range, key: "79991".to_owned() };
    add(&guard, &[moved("7999123", 5, 1)]).await;

    guard.allow(&[key("7999123"), range.clone()], 2 * WINDOW).await.unwrap();

    let of_range = GuardDelta { key: range, sends: 1, approvals: 0 };
    let moves = [moved("7999123", 1, 0), of_range, moved("7999124", 1, 0)];
    let allowed = async || {
        let mut totals = add(&guard, &moves).await;
        totals.sort_by(|one, other| one.key.cmp(&other.key));
        totals.iter().map(|it| it.allowed).collect::<Vec<_>>()
    };
    assert_eq!(allowed().await, [true, false, true]);
    pass(&database, WINDOW).await;
    guard.allow(&[key("7999124")], 2 * WINDOW).await.unwrap();
    assert_eq!(allowed().await, [true, true, true]);
    pass(&database, WINDOW).await;
    assert_eq!(allowed().await, [false, true, false]);
}

async fn every_key_has_a_total(database: Database) {
    let guard = SqlGuard::new(database);
    let moves: Vec<GuardDelta> =
        (0..500).map(|number| moved(&format!("7{number}"), number, 0)).collect();
    add(&guard, &moves[..250]).await;

    let totals = add(&guard, &moves).await;

    assert_eq!(totals.len(), 500);
    for GuardTotal { key, window, .. } in totals {
        let number: u64 = key.key[1..].parse().unwrap();
        assert_eq!(window.sends, if number < 250 { 2 * number } else { number });
    }
    assert_eq!(guard.add(&[], &[], WINDOW).await.unwrap(), []);
}

async fn decision_is_kept_with_its_counts(database: Database) {
    let guard = SqlGuard::new(database.clone());
    let rule = |text| GuardRule::parse(text, GuardMode::Shadow).unwrap();
    let noted = GuardDecision {
        rule: rule("prefix:50:10"),
        scope: GuardScope::Prefix,
        key: "7999123".to_owned(),
        sends: 60,
        approvals: 1,
        verification: Some(new_id()),
        phone: "+7999*****67".to_owned(),
    };
    let blocked =
        GuardDecision { rule: rule("region:9:5:enforce"), verification: None, ..noted.clone() };

    guard.add(&[], &[noted.clone(), blocked], WINDOW).await.unwrap();

    let stored = guard.decisions(WINDOW, 10).await.unwrap();
    let [second, first] = &stored[..] else { panic!("{} decisions", stored.len()) };
    assert_eq!((&*first.rule, &*first.key), ("prefix:50:10:shadow", "7999123"));
    assert_eq!((first.sends, first.approvals), (60, 1));
    assert_eq!(first.verification, noted.verification);
    assert_eq!((&*second.rule, second.verification), ("region:9:5:enforce", None));
    assert_eq!(guard.decisions(WINDOW, 1).await.unwrap(), stored[..1]);
    assert_eq!(guard.decisions(Duration::ZERO, 10).await.unwrap(), []);
    // No event if events are off.
    assert_eq!(count(&database, "event").await, 0);
}

async fn flood_of_decisions_takes_few_rows(database: Database) {
    let guard = SqlGuard::new(database.clone());
    let rule = |text| GuardRule::parse(text, GuardMode::Shadow).unwrap();
    let noted: Vec<GuardDecision> = (0..2_600)
        .map(|number| GuardDecision {
            rule: rule(if number % 2 == 0 { "prefix:50:10" } else { "region:50:10" }),
            scope: GuardScope::Prefix,
            key: if number % 4 < 2 { "7999123" } else { "7999124" }.to_owned(),
            sends: 50 + number,
            approvals: number % 5,
            verification: (number % 3 > 0).then(new_id),
            phone: "+7999*****67".to_owned(),
        })
        .collect();

    guard.add(&[], &noted, WINDOW).await.unwrap();
    guard.add(&[], &noted[..1], WINDOW).await.unwrap();

    assert_eq!(count(&database, "guard_decision").await, 5);
    let stored = guard.decisions(WINDOW, 9_999).await.unwrap();
    assert_eq!(stored.len(), 2_601);
    let of = |rule: &str, key: &str| {
        let of = stored.iter().rev().filter(|it| it.rule == rule && it.key == key);
        of.map(|it| (it.sends, it.approvals, it.verification)).collect::<Vec<_>>()
    };
    for GuardDecision { rule, key, .. } in &noted[..4] {
        let of_this = noted.iter().filter(|it| it.rule == *rule && it.key == *key);
        let as_noted: Vec<_> =
            of_this.map(|it| (it.sends, it.approvals, it.verification)).collect();
        let kept = of(&rule.to_string(), key);
        assert_eq!(kept[..650], as_noted, "{rule} {key}");
    }
    assert_eq!(guard.decisions(WINDOW, 3).await.unwrap(), stored[..3]);
}

async fn row_holds_a_thousand_decisions(database: Database) {
    let guard = SqlGuard::new(database.clone());

    guard.add(&[], &decisions(1_001), WINDOW).await.unwrap();

    assert_eq!(count(&database, "guard_decision").await, 2);
    let stored = guard.decisions(WINDOW, 9_999).await.unwrap();
    assert!(stored.iter().rev().map(|it| it.sends).eq(0..1_001));
}

async fn reverting_the_migration_gives_each_decision_a_row(database: Database) {
    let guard = SqlGuard::new(database.clone());
    guard.add(&[], &decisions(3), WINDOW).await.unwrap();

    let migrations = Migrator::migrations();
    let later = migrations.iter().rev().position(|it| it.name() == "m20261123_000005_decisions");
    let steps = u32::try_from(later.unwrap() + 1).unwrap();
    Migrator::down(&database.connection(), Some(steps)).await.unwrap();

    for sends in 0..3 {
        let of = format!("guard_decision WHERE sends = {sends} AND verification IS NOT NULL");
        assert_eq!(count(&database, &of).await, 1);
    }
}

/// Of one rule on one key.
fn decisions(number: u64) -> Vec<GuardDecision> {
    let one = |sends| GuardDecision {
        rule: GuardRule::parse("prefix:50:10", GuardMode::Shadow).unwrap(),
        scope: GuardScope::Prefix,
        key: "7999123".to_owned(),
        sends,
        approvals: 0,
        verification: Some(new_id()),
        phone: String::new(),
    };
    (0..number).map(one).collect()
}

async fn past_verifications_are_read_page_by_page(database: Database) {
    let guard = SqlGuard::new(database.clone());
    let mut begun = Vec::new();
    for number in 0..9 {
        let mut send = start(&phone(number));
        send.verification.region = "RU".parse().ok();
        accepted(&enqueue(&database, &send).await);
        begun.push(id_of(&send));
        accepted(&enqueue(&database, &new_message(&phone(100 + number))).await);
    }
    // Many have the same time: a page may end among them.
    let same = if database.is_postgres() {
        "UPDATE verification SET created_at = date_trunc('milliseconds', now())
            + random() * interval '400 microseconds'"
    } else {
        "UPDATE verification SET created_at = (SELECT max(created_at) FROM verification)"
    };
    database.connection().execute_unprepared(same).await.unwrap();
    approve(&SqlVerifications::new(database.clone()), begun[4]).await;

    let mut after: Option<(SystemTime, VerificationId)> = None;
    let mut past = Vec::new();
    loop {
        let page = guard.past(WINDOW, after, 4).await.unwrap();
        let is_last = page.len() < 4;
        after = page.last().map(|it| (it.created_at, it.id));
        past.extend(page);
        if is_last {
            break;
        }
    }

    let mut found: Vec<VerificationId> = past.iter().map(|it| it.id).collect();
    found.sort_unstable();
    begun.sort_unstable();
    assert_eq!(found, begun, "those of /v1, each once");
    assert_eq!(past.iter().filter(|it| it.approved_at.is_some()).count(), 1);
    assert!(past.iter().all(|it| it.phone.prefix() == "7999000" && it.sends == 1));
    assert!(past.iter().all(|it| it.region == "RU".parse().ok()));
    assert_eq!(guard.past(Duration::ZERO, None, 9).await.unwrap(), []);
}

async fn concurrent_flushes_and_allowances_do_not_deadlock(database: Database) {
    let guard = SqlGuard::new(database.clone());
    let mut flushes = JoinSet::new();
    for process in 0..8 {
        let guard = guard.clone();
        flushes.spawn(async move {
            for _ in 0..5 {
                let mut moves: Vec<GuardDelta> =
                    (0..40).map(|number| moved(&format!("7{number}"), 1, 0)).collect();
                if process % 2 == 0 {
                    moves.reverse();
                }
                add(&guard, &moves).await;
                let keys: Vec<GuardKey> = moves.into_iter().map(|it| it.key).collect();
                guard.allow(&keys, WINDOW).await.unwrap();
            }
        });
    }
    flushes.join_all().await;

    assert_eq!(count(&database, "guard_count WHERE sends = 40").await, 40);
}
