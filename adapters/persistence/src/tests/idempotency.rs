use application::ports::{Answer, AnswerClaim, Answers, Begun, Verifications};
use sea_orm::ConnectionTrait;
use tokio::task::JoinSet;

use super::{on_both_databases, support::count};
use crate::{Database, SqlAnswers, SqlVerifications};

on_both_databases!(
    begin_keep_replay_mismatch_running_expiry,
    of_many_that_race_one_begins,
    what_was_given_back_begins_anew,
    whoever_does_not_come_back_is_given_up,
);

const KEY: [u8; 32] = [1; 32];
const BODY: [u8; 32] = [2; 32];

#[track_caller]
fn ours(begun: Begun) -> AnswerClaim {
    match begun {
        Begun::Ours(claim) => claim,
        begun => panic!("{begun:?}"),
    }
}

fn answer() -> Answer {
    Answer {
        status: 202,
        headers: vec![("location".to_owned(), "/v1/verifications/ver_1".to_owned())],
        body: r#"{"status":"pending"}"#.to_owned(),
    }
}

async fn passes(database: &Database, column: &str) {
    let past = if database.is_postgres() { "now() - interval '1 s'" } else { "1" };
    let sql = format!("UPDATE idempotency SET {column} = {past}");
    database.connection().execute_unprepared(&sql).await.unwrap();
}

async fn begin_keep_replay_mismatch_running_expiry(database: Database) {
    let answers = SqlAnswers::new(database.clone());
    let claim = ours(answers.begin(KEY, BODY).await.unwrap());
    assert_eq!(answers.begin(KEY, BODY).await.unwrap(), Begun::Running);
    assert_eq!(answers.begin(KEY, [3; 32]).await.unwrap(), Begun::Other);
    ours(answers.begin([9; 32], BODY).await.unwrap());

    answers.keep(&claim, &answer()).await.unwrap();
    assert_eq!(answers.begin(KEY, BODY).await.unwrap(), Begun::Answered(answer()));
    assert_eq!(answers.begin(KEY, [3; 32]).await.unwrap(), Begun::Other);
    passes(&database, "running_until").await;
    assert_eq!(answers.begin(KEY, BODY).await.unwrap(), Begun::Answered(answer()));

    passes(&database, "expires_at").await;
    ours(answers.begin(KEY, [3; 32]).await.unwrap());
    assert_eq!(answers.begin(KEY, [3; 32]).await.unwrap(), Begun::Running);
    assert_eq!(count(&database, "idempotency WHERE body IS NOT NULL").await, 0);
    passes(&database, "expires_at").await;
    let verifications = SqlVerifications::new(database.clone());
    verifications.prune(std::time::Duration::from_secs(60)).await.unwrap();
    assert_eq!(count(&database, "idempotency").await, 0);
}

async fn of_many_that_race_one_begins(database: Database) {
    let answers = SqlAnswers::new(database);
    let mut requests = JoinSet::new();
    for _ in 0..20 {
        let answers = answers.clone();
        requests.spawn(async move { answers.begin(KEY, BODY).await.unwrap() });
    }

    let begun = requests.join_all().await;
    assert_eq!(begun.iter().filter(|begun| matches!(begun, Begun::Ours(_))).count(), 1);
    assert_eq!(begun.iter().filter(|begun| **begun == Begun::Running).count(), 19);
}

async fn what_was_given_back_begins_anew(database: Database) {
    let answers = SqlAnswers::new(database);
    let first = ours(answers.begin(KEY, BODY).await.unwrap());

    answers.forget(&first).await.unwrap();
    let second = ours(answers.begin(KEY, [3; 32]).await.unwrap());

    assert_ne!(first.holder, second.holder);
    answers.forget(&first).await.unwrap();
    assert_eq!(answers.begin(KEY, [3; 32]).await.unwrap(), Begun::Running);
}

async fn whoever_does_not_come_back_is_given_up(database: Database) {
    let answers = SqlAnswers::new(database.clone());
    let late = ours(answers.begin(KEY, BODY).await.unwrap());
    passes(&database, "running_until").await;

    // Not to one who asks something else.
    assert_eq!(answers.begin(KEY, [3; 32]).await.unwrap(), Begun::Other);
    let second = ours(answers.begin(KEY, BODY).await.unwrap());
    answers.keep(&late, &Answer { status: 500, ..answer() }).await.unwrap();
    answers.forget(&late).await.unwrap();

    assert_eq!(answers.begin(KEY, BODY).await.unwrap(), Begun::Running);
    answers.keep(&second, &answer()).await.unwrap();
    assert_eq!(answers.begin(KEY, BODY).await.unwrap(), Begun::Answered(answer()));
}
