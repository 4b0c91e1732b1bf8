use application::ports::{
    Answer, AnswerClaim, Answers, Attempt, Begun, CheckOutcome, Housekeeping, Resend, Resent,
    Target, Verifications,
};
use domain::VerificationId;
use sea_orm::ConnectionTrait;
use tokio::task::JoinSet;

use super::{
    on_both_databases,
    resends::again,
    support::{self, accepted, count, enqueue, id_of, newest_of, phone, right, start, wrong},
};
use crate::{Database, SqlAnswers, SqlVerifications};

on_both_databases!(
    begin_keep_replay_mismatch_running_expiry,
    one_of_many_concurrent_requests_begins,
    forgotten_claim_can_be_begun_again,
    claim_of_a_lost_holder_ends,
    abandoned_claim_is_taken_over_at_once,
    holders_of_one_request_share_its_first_holder,
    later_holders_find_the_resend,
    one_of_two_holders_resends,
    later_holders_find_the_approval,
    each_of_many_concurrent_approvals_is_noted_for_its_holder,
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

async fn one_of_many_concurrent_requests_begins(database: Database) {
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

async fn forgotten_claim_can_be_begun_again(database: Database) {
    let answers = SqlAnswers::new(database);
    let first = ours(answers.begin(KEY, BODY).await.unwrap());

    answers.forget(&first).await.unwrap();
    let second = ours(answers.begin(KEY, [3; 32]).await.unwrap());

    assert_ne!(first.holder, second.holder);
    answers.forget(&first).await.unwrap();
    assert_eq!(answers.begin(KEY, [3; 32]).await.unwrap(), Begun::Running);
}

async fn claim_of_a_lost_holder_ends(database: Database) {
    let answers = SqlAnswers::new(database.clone());
    let late = ours(answers.begin(KEY, BODY).await.unwrap());
    passes(&database, "running_until").await;

    // Not to a request with another body.
    assert_eq!(answers.begin(KEY, [3; 32]).await.unwrap(), Begun::Other);
    let second = ours(answers.begin(KEY, BODY).await.unwrap());
    answers.keep(&late, &Answer { status: 500, ..answer() }).await.unwrap();
    answers.forget(&late).await.unwrap();

    assert_eq!(answers.begin(KEY, BODY).await.unwrap(), Begun::Running);
    answers.keep(&second, &answer()).await.unwrap();
    assert_eq!(answers.begin(KEY, BODY).await.unwrap(), Begun::Answered(answer()));
}

async fn abandoned_claim_is_taken_over_at_once(database: Database) {
    let answers = SqlAnswers::new(database);
    let first = ours(answers.begin(KEY, BODY).await.unwrap());
    assert!(!first.is_taken_over());

    answers.give_up(&first).await.unwrap();

    assert_eq!(answers.begin(KEY, [3; 32]).await.unwrap(), Begun::Other);
    let second = ours(answers.begin(KEY, BODY).await.unwrap());
    assert!(second.is_taken_over());
    // A lost claim cannot be given up, and neither can an answer.
    answers.give_up(&first).await.unwrap();
    assert_eq!(answers.begin(KEY, BODY).await.unwrap(), Begun::Running);
    answers.keep(&second, &answer()).await.unwrap();
    answers.give_up(&second).await.unwrap();
    assert_eq!(answers.begin(KEY, BODY).await.unwrap(), Begun::Answered(answer()));
}

async fn holders_of_one_request_share_its_first_holder(database: Database) {
    let answers = SqlAnswers::new(database.clone());
    let first = ours(answers.begin(KEY, BODY).await.unwrap());
    let mut holders = vec![first.holder];
    for _ in 0..3 {
        passes(&database, "running_until").await;
        let next = ours(answers.begin(KEY, BODY).await.unwrap());
        assert_eq!((next.first, next.begins()), (first.holder, first.begins()));
        assert!(next.is_taken_over() && next.done.is_none());
        assert!(!holders.contains(&next.holder));
        holders.push(next.holder);
    }

    passes(&database, "expires_at").await;
    let anew = ours(answers.begin(KEY, BODY).await.unwrap());
    assert!(!anew.is_taken_over() && anew.begins() != first.begins());
    answers.forget(&anew).await.unwrap();
    let again = ours(answers.begin(KEY, BODY).await.unwrap());
    assert!(!again.is_taken_over() && again.begins() != anew.begins());
}

async fn next_holder(database: &Database) -> AnswerClaim {
    passes(database, "running_until").await;
    ours(SqlAnswers::new(database.clone()).begin(KEY, BODY).await.unwrap())
}

/// What the next holder finds as done.
async fn done(database: &Database) -> Option<VerificationId> {
    next_holder(database).await.done
}

async fn later_holders_find_the_resend(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let first = start(&phone(1));
    accepted(&enqueue(&database, &first).await);
    let answers = SqlAnswers::new(database.clone());
    let claim = ours(answers.begin(KEY, BODY).await.unwrap());
    let other = ours(answers.begin([9; 32], BODY).await.unwrap());
    let next =
        |sends, claim: &AnswerClaim| Resend { claim: Some(claim.clone()), ..again(&first, sends) };

    // Neither a request that changed nothing, nor the work of another request.
    assert_eq!(verifications.resend(next(7, &claim)).await.unwrap(), Resent::Changed);
    let resent = verifications.resend(next(1, &other)).await.unwrap();
    assert!(matches!(resent, Resent::Sent(_)), "{resent:?}");
    assert_eq!(done(&database).await, None);

    // It is late, and another holder has taken over.
    let resent = verifications.resend(next(2, &claim)).await.unwrap();
    assert!(matches!(resent, Resent::Sent(_)), "{resent:?}");
    assert_eq!(done(&database).await, Some(id_of(&first)));
    assert_eq!(done(&database).await, Some(id_of(&first)));
    passes(&database, "expires_at").await;
    assert_eq!(done(&database).await, None);
}

/// Both still work, and the wait after the first message is over.
async fn one_of_two_holders_resends(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let first = start(&phone(1));
    accepted(&enqueue(&database, &first).await);
    let answers = SqlAnswers::new(database.clone());
    for (sends, late_one_is_first) in [(1, true), (2, false)] {
        let late = ours(answers.begin(KEY, BODY).await.unwrap());
        let taken_over = next_holder(&database).await;
        let (one, other) = if late_one_is_first { (late, taken_over) } else { (taken_over, late) };
        let under = |sends, claim| Resend { claim: Some(claim), ..again(&first, sends) };

        let resent = verifications.resend(under(sends, one)).await.unwrap();
        assert!(matches!(resent, Resent::Sent(_)), "{resent:?}");
        let resent = verifications.resend(under(sends + 1, other)).await.unwrap();
        assert_eq!(resent, Resent::Changed);

        passes(&database, "expires_at").await;
    }
    assert_eq!(count(&database, "outbox").await, 3);
}

async fn later_holders_find_the_approval(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let answers = SqlAnswers::new(database.clone());
    for by_phone in [false, true] {
        let send = start(&phone(1));
        accepted(&enqueue(&database, &send).await);
        let id = id_of(&send);
        let claim = ours(answers.begin(KEY, BODY).await.unwrap());
        let attempt = |hashes| Attempt {
            target: if by_phone { newest_of(&phone(1), Some(id)) } else { Target::Id(id) },
            hashes,
            api_hashes: Vec::new(),
            claim: Some(claim.clone()),
        };

        let tried = verifications.check(attempt(wrong()), &[]).await.unwrap();
        assert!(matches!(tried, CheckOutcome::Wrong { .. }), "{tried:?}");
        let taken_over = next_holder(&database).await;
        assert_eq!((taken_over.done, answers.done(&taken_over).await.unwrap()), (None, None));
        let tried = verifications.check(attempt(right()), &[]).await.unwrap();
        assert!(matches!(tried, CheckOutcome::Right(_)), "{tried:?}");
        assert_eq!(answers.done(&taken_over).await.unwrap(), Some(id), "by whom it was taken from");
        assert_eq!(answers.done(&claim).await.unwrap(), None, "not ours any more");
        assert_eq!(done(&database).await, Some(id));
        passes(&database, "expires_at").await;
    }
}

async fn each_of_many_concurrent_approvals_is_noted_for_its_holder(database: Database) {
    let verifications = SqlVerifications::new(database.clone());
    let answers = SqlAnswers::new(database.clone());
    let mut tries = Vec::new();
    for number in 0..30_u8 {
        let send = start(&phone(number.into()));
        accepted(&enqueue(&database, &send).await);
        let claim = ours(answers.begin([number; 32], BODY).await.unwrap());
        let hashes = if number % 3 == 0 { wrong() } else { right() };
        // Every other right attempt has a claim that another request has begun again.
        let is_ours = number % 3 == 1;
        let first = if is_ours { claim.first } else { [0; 16] };
        let under = AnswerClaim { first, ..claim.clone() };
        let attempt = support::attempt(Target::Id(id_of(&send)), hashes);
        let attempt = Attempt { claim: Some(under), ..attempt };
        tries.push((attempt, claim, is_ours.then(|| id_of(&send))));
    }
    let mut checks = JoinSet::new();
    for (attempt, claim, done) in tries {
        let verifications = verifications.clone();
        checks.spawn(async move {
            verifications.check(attempt, &[]).await.unwrap();
            (claim, done)
        });
    }

    for (claim, done) in checks.join_all().await {
        assert_eq!(answers.done(&claim).await.unwrap(), done);
    }
}
