use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use application::ports::{AnswerClaim, Attempt, CheckOutcome, StoreError, Target, Violation};
use domain::{ATTEMPTS, Policy, VerificationId};
use sea_orm::{ConnectionTrait, DbErr, QueryResult, Value};
use tokio::{sync::oneshot, time::timeout};
use uuid::Uuid;

use super::{read_approval, read_untried, read_wrong, sql};
use crate::{
    database::{Database, LIMIT, lasting, millis},
    refusal::{is_about_a_lock, is_about_a_row},
};

/// Attempts at codes in PostgreSQL: those that wait together are decided by one statement and
/// committed together.
///
/// There is no timer: while some statements are under way, what comes gathers for the next one.
/// An attempt whose caller has gone before it began is not made; one that has begun is decided
/// whether or not its caller still waits, as others are decided with it.
#[derive(Debug, Clone)]
pub(super) struct Checks {
    database: Database,
    /// Whether others are told of an approval.
    events: bool,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// Statements under way.
    running: usize,
}

#[derive(Debug)]
struct Job {
    attempt: Attempt,
    guesses: Vec<Policy>,
    /// A statement about it and others was refused.
    alone: bool,
    answer: oneshot::Sender<Result<CheckOutcome, StoreError>>,
}

/// What a statement says of one attempt.
#[derive(Debug)]
enum Decision {
    Made(CheckOutcome),
    /// Nothing yet: another one at the same phone was decided.
    Later,
}

/// Attempts that may wait: more than an API serves connections.
const QUEUE: usize = 1_024;

/// Statements at a time: while one waits for the disk, or for another's lock on a phone, others go
/// on.
const STATEMENTS: usize = 4;

/// Attempts in one statement: few enough for its plan to compare each with each.
const BATCH: usize = 32;

impl Checks {
    pub(super) fn new(database: Database, events: bool) -> Self {
        Self { database, events, waiting: Arc::default() }
    }

    /// Waits as long as a step of its own might take.
    pub(super) async fn check(
        &self,
        attempt: Attempt,
        guesses: &[Policy],
    ) -> Result<CheckOutcome, StoreError> {
        let (answer, tried) = oneshot::channel();
        let job = Job { attempt, guesses: guesses.to_vec(), alone: false, answer };
        if self.waiting().jobs.len() >= QUEUE {
            return Err(StoreError::Full);
        }
        self.put(job);
        match timeout(LIMIT, tried).await {
            Ok(Ok(tried)) => tried,
            Ok(Err(_)) => Err(StoreError::Unavailable("whoever checked is gone".into())),
            Err(_) => Err(StoreError::Unavailable("not checked in time".into())),
        }
    }

    fn put(&self, job: Job) {
        if self.waiting().add(job) {
            tokio::spawn(self.clone().run());
        }
    }

    /// Decides what waits until nothing does; each batch in a task of its own, so that one which
    /// panics ends nothing but itself.
    async fn run(self) {
        loop {
            let Some(jobs) = self.waiting().next() else { return };
            let checks = self.clone();
            let _ = tokio::spawn(async move { checks.decide(jobs).await }).await;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers those that are decided; the others wait again.
    async fn decide(&self, jobs: Vec<Job>) {
        match self.ask(&jobs).await {
            Ok(decisions) => {
                for (job, decision) in jobs.into_iter().zip(decisions) {
                    match decision {
                        Ok(Decision::Made(tried)) => job.answer(Ok(tried)),
                        Ok(Decision::Later) => self.put(job),
                        Err(error) => fail([job], &error),
                    }
                }
            }
            Err(error) if jobs.len() > 1 && is_about_some(&error) => {
                for job in jobs {
                    self.put(Job { alone: true, ..job });
                }
            }
            Err(error @ DbErr::ConnectionAcquire(_)) => {
                // Who waits would not get one either, and wait for that once more.
                let others = mem::take(&mut self.waiting().jobs);
                fail(jobs.into_iter().chain(others), &error);
            }
            Err(error) => fail(jobs, &error),
        }
    }

    /// What becomes of each, in their order. It is committed, whether or not it can be read.
    async fn ask(&self, jobs: &[Job]) -> Result<Vec<Result<Decision, DbErr>>, DbErr> {
        let statement = self.database.as_written(sql::CHECK_POSTGRES, values(jobs, self.events));
        let rows = self.database.step(async |it| it.query_all_raw(statement).await).await?;
        let mut rest = &rows[..];
        let decisions = jobs.iter().map(|job| {
            let (its, others) = rest
                .split_at_checked(targets(&job.attempt.target).len())
                .ok_or_else(|| DbErr::RecordNotFound("what became of each attempt".to_owned()))?;
            rest = others;
            Ok(Decision::read(its, &job.guesses))
        });
        decisions.collect()
    }
}

impl Waiting {
    /// Whether one more statement is to be begun for it.
    fn add(&mut self, job: Job) -> bool {
        self.jobs.push_back(job);
        let has_room = self.running < STATEMENTS;
        self.running += usize::from(has_room);
        has_room
    }

    /// The next that go together; none: nothing waits, and whoever asked has ended.
    fn next(&mut self) -> Option<Vec<Job>> {
        self.jobs.retain(|job| !job.answer.is_closed());
        let Some(first) = self.jobs.front() else {
            self.running -= 1;
            return None;
        };
        let batch = if first.alone { 1 } else { BATCH };
        let alike = self.jobs.iter().take(batch).take_while(|job| job.is_like(first)).count();
        Some(self.jobs.drain(..alike).collect())
    }
}

impl Job {
    fn is_like(&self, other: &Self) -> bool {
        self.alone == other.alone && self.guesses == other.guesses
    }

    fn answer(self, answer: Result<CheckOutcome, StoreError>) {
        // The caller may have gone meanwhile.
        let _ = self.answer.send(answer);
    }
}

impl Decision {
    /// By the rows of one attempt.
    fn read(rows: &[QueryResult], guesses: &[Policy]) -> Result<Self, DbErr> {
        let holds = |row: &QueryResult, column| row.try_get::<bool>("", column);
        let first = rows.first().ok_or_else(|| DbErr::RecordNotFound("an attempt".to_owned()))?;
        if holds(first, "waits")? {
            return Ok(Self::Later);
        }
        if holds(first, "changed")? {
            return Ok(Self::Made(CheckOutcome::Changed));
        }
        let (mut wrong, mut over, mut is_counted) = (None, Vec::new(), false);
        for row in rows {
            if let Some(attempts) = row.try_get::<Option<i32>>("", "attempts")? {
                if holds(row, "is_right")? {
                    return Ok(Self::Made(CheckOutcome::Right(read_approval(row)?)));
                }
                if wrong.is_none() {
                    wrong = Some(read_wrong(row, attempts)?);
                }
            }
            if holds(row, "counts")? {
                is_counted |= holds(row, "guessed")?;
                if over.is_empty() {
                    over = violations(row, guesses)?;
                }
            }
        }
        Ok(Self::Made(if let Some(wrong) = wrong {
            wrong
        } else if is_counted {
            CheckOutcome::Nothing
        } else if holds(first, "may_try")? {
            // A row or its room was lost in between.
            CheckOutcome::Changed
        } else if !over.is_empty() {
            CheckOutcome::Limited(over)
        } else if first.try_get::<Option<String>>("", "status")?.is_none() {
            CheckOutcome::Unknown
        } else {
            read_untried(first)?.unwrap_or(CheckOutcome::Changed)
        }))
    }
}

/// Which windows have no room: for each how long it still runs, less than nothing where it has.
fn violations(row: &QueryResult, guesses: &[Policy]) -> Result<Vec<Violation>, DbErr> {
    let remains: Vec<i64> = row.try_get("", "remains")?;
    let over = guesses.iter().zip(remains).filter(|(_, remains)| *remains >= 0);
    let over = over.map(|(policy, remains)| Violation {
        policy: policy.clone(),
        retry_after: lasting(remains),
    });
    Ok(over.collect())
}

/// Whether the server refuses the statement for what it says or waits for, rather than being out of
/// order. It has taken all of it back.
fn is_about_some(error: &DbErr) -> bool {
    is_about_a_row(error) || is_about_a_lock(error)
}

// An array of a statement cannot hold nulls: what is absent is an empty text or the nil UUID.
fn values(jobs: &[Job], events: bool) -> Vec<Value> {
    let attempts = || (1_i64..).zip(jobs.iter().map(|job| &job.attempt));
    let rows = || {
        attempts().flat_map(|(n, it)| {
            let hashes = [&it.hashes, &it.api_hashes];
            let rows = targets(&it.target).into_iter().zip(hashes);
            rows.map(move |(row, hashes)| (n, it, row, hashes))
        })
    };
    let claims = |read: fn(&AnswerClaim) -> Vec<u8>| {
        let claims = rows().map(|(_, it, ..)| it.claim.as_ref().map(read).unwrap_or_default());
        Value::from(claims.collect::<Vec<_>>())
    };
    let hashes = || {
        (1_i64..)
            .zip(rows())
            .flat_map(|(r, (.., hashes))| hashes.iter().map(move |it| (r, &it.0, &it.1)))
    };
    let guesses = || jobs.first().into_iter().flat_map(|first| &first.guesses);
    vec![
        i16::from(ATTEMPTS).into(),
        rows().map(|(_, _, (id, _), _)| id).collect::<Vec<_>>().into(),
        rows().map(|(_, it, ..)| phone(&it.target)).collect::<Vec<_>>().into(),
        claims(|claim| claim.key.to_vec()),
        claims(|claim| claim.first.to_vec()),
        hashes().map(|(r, ..)| r).collect::<Vec<_>>().into(),
        hashes().map(|(_, pepper, _)| pepper.as_str().to_owned()).collect::<Vec<_>>().into(),
        hashes().map(|(.., hash)| hash.as_bytes().to_vec()).collect::<Vec<_>>().into(),
        guesses().map(|policy| policy.name.as_str().to_owned()).collect::<Vec<_>>().into(),
        guesses().map(|policy| policy.window.quota.cast_signed()).collect::<Vec<_>>().into(),
        guesses().map(|policy| millis(policy.window.period)).collect::<Vec<_>>().into(),
        events.into(),
        rows().map(|(n, ..)| n).collect::<Vec<_>>().into(),
        rows().map(|(_, _, (_, of_api), _)| of_api).collect::<Vec<_>>().into(),
    ]
}

/// What an attempt has rows for: ids, and whether each is that of `/api` by phone.
fn targets(target: &Target) -> Vec<(Uuid, bool)> {
    let uuid = |id: Option<VerificationId>| id.map_or(Uuid::nil(), VerificationId::as_uuid);
    match target {
        Target::Id(id) => vec![(id.as_uuid(), false)],
        Target::Newest { of, .. } => vec![(uuid(of.v1), false), (uuid(of.api), true)],
    }
}

fn phone(target: &Target) -> String {
    match target {
        Target::Id(_) => String::new(),
        Target::Newest { phone, .. } => phone.as_str().to_owned(),
    }
}

fn fail(jobs: impl IntoIterator<Item = Job>, error: &DbErr) {
    let jobs: Vec<Job> = jobs.into_iter().collect();
    tracing::warn!(attempts = jobs.len(), %error, "codes not checked");
    for job in jobs {
        job.answer(Err(StoreError::Unavailable(error.to_string().into())));
    }
}

#[cfg(test)]
mod tests {
    use std::iter::repeat_n;

    use domain::Windows;
    use tokio::{task::JoinSet, time::Instant};

    use super::*;
    use crate::{DatabaseSettings, PostgresSettings, SslMode, database::ACQUIRE};

    type Answer = oneshot::Receiver<Result<CheckOutcome, StoreError>>;

    /// An attempt under each of these windows, from 0 on, and those who wait for the answers.
    fn waiting<'a>(windows: impl IntoIterator<Item = &'a str>) -> (Waiting, Vec<Answer>) {
        let mut waiting = Waiting::default();
        let answers = (0..).zip(windows).map(|(number, windows)| {
            let (answer, heard) = oneshot::channel();
            let attempt = Attempt {
                target: Target::Id(VerificationId::from_uuid(Uuid::from_u128(number << 8))),
                hashes: Vec::new(),
                api_hashes: Vec::new(),
                claim: None,
            };
            let guesses = windows.parse::<Windows>().unwrap().policies("check");
            waiting.add(Job { attempt, guesses, alone: false, answer });
            heard
        });
        let answers = answers.collect();
        (waiting, answers)
    }

    fn next(waiting: &mut Waiting) -> Option<Vec<u128>> {
        let number = |job: Job| targets(&job.attempt.target)[0].0.as_u128() >> 8;
        Some(waiting.next()?.into_iter().map(number).collect())
    }

    #[test]
    fn those_go_together_that_are_alike_up_to_a_batch() {
        let windows = ["2/1h", "2/1h", "3/1h"].into_iter().chain(repeat_n("2/1h", BATCH + 1));
        let (mut waiting, _answers) = waiting(windows);

        assert_eq!(next(&mut waiting).unwrap(), [0, 1]);
        assert_eq!(next(&mut waiting).unwrap(), [2]);
        assert_eq!(next(&mut waiting).unwrap().len(), BATCH);
        assert_eq!(next(&mut waiting).unwrap().len(), 1);
        assert_eq!(next(&mut waiting), None);
    }

    #[test]
    fn whoever_has_gone_is_not_tried() {
        let (mut waiting, mut answers) = waiting(["2/1h"; 3]);
        answers.remove(1);

        assert_eq!(next(&mut waiting).unwrap(), [0, 2]);
    }

    #[test]
    fn what_was_refused_with_others_goes_alone() {
        let (mut waiting, _answers) = waiting(["2/1h"; 5]);
        for job in waiting.jobs.range_mut(1..3) {
            job.alone = true;
        }

        let batches = std::iter::from_fn(|| next(&mut waiting)).take(4).collect::<Vec<_>>();
        assert_eq!(batches, [vec![0], vec![1], vec![2], vec![3, 4]]);
    }

    #[test]
    fn no_more_statements_are_begun_than_may_run_at_a_time() {
        let (mut waiting, _answers) = waiting(["2/1h"; STATEMENTS + 1]);
        assert_eq!(waiting.running, STATEMENTS);

        assert_eq!(next(&mut waiting).unwrap().len(), STATEMENTS + 1);
        assert_eq!(waiting.running, STATEMENTS, "it is under way");
        assert_eq!(next(&mut waiting), None);
        assert_eq!(waiting.running, STATEMENTS - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_connection_all_hear_it_at_once() {
        let settings = PostgresSettings {
            host: "127.0.0.1".to_owned(),
            port: 1,
            database: "messager".to_owned(),
            user: "messager".to_owned(),
            password: None,
            ssl_mode: SslMode::Disable,
            ssl_root_cert: None,
        };
        let settings = DatabaseSettings::Postgres(settings);
        let checks = Checks::new(Database::connect_lazily(&settings, "test", 8), false);
        let begun = Instant::now();
        let mut callers = JoinSet::new();
        for _ in 0..3 * STATEMENTS * BATCH {
            let checks = checks.clone();
            callers.spawn(async move {
                let target = Target::Id(VerificationId::NIL);
                let attempt =
                    Attempt { target, hashes: Vec::new(), api_hashes: Vec::new(), claim: None };
                checks.check(attempt, &[]).await
            });
        }

        let answers = callers.join_all().await;
        assert!(answers.iter().all(|it| matches!(it, Err(StoreError::Unavailable(_)))));
        assert!(begun.elapsed() < 2 * ACQUIRE, "{:?}", begun.elapsed());
    }
}
