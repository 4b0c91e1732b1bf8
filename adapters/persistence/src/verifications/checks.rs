use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use application::ports::{Attempt, StoreError, Target, Tried, Violation};
use domain::{ATTEMPTS, Policy, VerificationId};
use sea_orm::{ConnectionTrait, DbErr, QueryResult, Value};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{read_approval, read_untried, read_wrong, sql};
use crate::database::{Database, Told, lasting, millis};

/// Attempts at codes in PostgreSQL: those that wait together are decided by one statement and
/// committed together.
///
/// There is no timer: while some statements are under way, what comes gathers for the next one.
/// One whose caller has gone before it began is not tried; one that has begun is decided whether
/// or not its caller still waits, as others may be decided with it.
#[derive(Debug, Clone)]
pub(super) struct Checks {
    database: Database,
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
    /// Whether others are told of an approval.
    events: bool,
    answer: oneshot::Sender<Result<Tried, StoreError>>,
}

/// Statements at a time: while one waits for the disk, or for another's lock on a phone, others go
/// on.
const STATEMENTS: usize = 4;

/// Attempts in one statement: few enough for their rows to be compared with each other.
const BATCH: usize = 32;

impl Checks {
    pub(super) fn new(database: Database) -> Self {
        Self { database, waiting: Arc::default() }
    }

    /// The queue has no bound of its own: there are as many attempts as requests are served at once.
    pub(super) async fn check(
        &self,
        attempt: Attempt,
        guesses: &[Policy],
        events: bool,
    ) -> Result<Tried, StoreError> {
        let (answer, tried) = oneshot::channel();
        let job = Job { attempt, guesses: guesses.to_vec(), events, answer };
        if self.waiting().add(job) {
            tokio::spawn(self.clone().run());
        }
        tried.await.unwrap_or_else(|_| Err(StoreError::Unavailable("nobody checks".into())))
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

    /// Of each phone one attempt is decided at a time, and so each takes what was left by the one
    /// before it.
    async fn decide(&self, mut jobs: Vec<Job>) {
        while !jobs.is_empty() {
            match self.ask(&jobs).await {
                Ok(decided) => {
                    let decided = jobs.into_iter().zip(decided);
                    jobs = decided.filter_map(|(job, decision)| job.hear(decision)).collect();
                }
                Err(error) => return fail(jobs, &error),
            }
        }
    }

    /// What becomes of each, in their order.
    async fn ask(&self, jobs: &[Job]) -> Result<Vec<Decision>, DbErr> {
        let statement = self.database.as_written(sql::CHECK_POSTGRES, values(jobs));
        let rows = self.database.step(async |it| it.query_all_raw(statement).await).await?;
        if rows.len() != jobs.len() {
            return Err(DbErr::RecordNotFound("what became of each attempt".to_owned()));
        }
        jobs.iter().zip(&rows).map(|(job, row)| Decision::read(row, &job.guesses)).collect()
    }
}

/// What a statement says of one attempt.
#[derive(Debug)]
enum Decision {
    Tried(Tried),
    /// Nothing yet: another one at the same phone was decided.
    Later,
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
        let alike = self.jobs.iter().take(BATCH).take_while(|job| job.is_like(first)).count();
        Some(self.jobs.drain(..alike).collect())
    }
}

impl Job {
    fn is_like(&self, other: &Self) -> bool {
        self.guesses == other.guesses && self.events == other.events
    }

    /// Answers, or is to be tried again.
    fn hear(self, decision: Decision) -> Option<Self> {
        match decision {
            Decision::Later => Some(self),
            Decision::Tried(tried) => {
                // The caller may have gone meanwhile.
                let _ = self.answer.send(Ok(tried));
                None
            }
        }
    }
}

impl Decision {
    fn read(row: &QueryResult, guesses: &[Policy]) -> Result<Self, DbErr> {
        if row.try_get("", "waits")? {
            return Ok(Self::Later);
        }
        let by_phone: bool = row.try_get("", "by_phone")?;
        let status: Option<String> = row.try_get("", "status")?;
        let over = violations(row, guesses)?;
        Ok(Self::Tried(if row.try_get("", "changed")? {
            Tried::Changed
        } else if let Some(attempts) = row.try_get::<Option<i32>>("", "attempts")? {
            if row.try_get("", "is_right")? {
                Tried::Right(read_approval(row)?)
            } else {
                read_wrong(row, attempts)?
            }
        } else if !over.is_empty() {
            Tried::Limited(over)
        } else if by_phone {
            if row.try_get("", "guessed")? { Tried::Nothing } else { Tried::Changed }
        } else if status.is_none() {
            Tried::Unknown
        } else {
            read_untried(row)?.unwrap_or(Tried::Changed)
        }))
    }
}

/// Which windows have no room: for each how long it still runs, less than nothing where it has.
fn violations(row: &QueryResult, guesses: &[Policy]) -> Result<Vec<Violation>, DbErr> {
    let remains: Option<Vec<i64>> = row.try_get("", "remains")?;
    let windows = guesses.iter().zip(remains.unwrap_or_default());
    let over = windows.filter(|(_, remains)| *remains >= 0).map(|(policy, remains)| Violation {
        policy: policy.clone(),
        retry_after: lasting(remains),
    });
    Ok(over.collect())
}

// An array of a statement cannot hold nulls: what is absent is an empty text or the nil UUID.
fn values(jobs: &[Job]) -> Vec<Value> {
    let attempts = || jobs.iter().map(|job| &job.attempt);
    let id = |target: &Target| target.id().map_or(Uuid::nil(), VerificationId::as_uuid);
    let phone = |target: &Target| match target {
        Target::Id(_) => String::new(),
        Target::Newest { phone, .. } => phone.as_str().to_owned(),
    };
    let claims = || attempts().map(|it| it.claim.as_ref());
    let hashes = || {
        (1_i64..).zip(attempts()).flat_map(|(n, it)| it.hashes.iter().map(move |hash| (n, hash)))
    };
    let first = jobs.first();
    let guesses = || first.into_iter().flat_map(|job| &job.guesses);
    vec![
        i16::from(ATTEMPTS).into(),
        attempts().map(|it| id(&it.target)).collect::<Vec<Uuid>>().into(),
        attempts().map(|it| phone(&it.target)).collect::<Vec<_>>().into(),
        claims()
            .map(|it| it.map_or_else(Vec::new, |it| it.key.to_vec()))
            .collect::<Vec<_>>()
            .into(),
        claims()
            .map(|it| it.map_or_else(Vec::new, |it| it.first.to_vec()))
            .collect::<Vec<_>>()
            .into(),
        hashes().map(|(n, _)| n).collect::<Vec<i64>>().into(),
        hashes().map(|(_, (pepper, _))| pepper.as_str().to_owned()).collect::<Vec<_>>().into(),
        hashes().map(|(_, (_, hash))| hash.as_bytes().to_vec()).collect::<Vec<_>>().into(),
        guesses().map(|policy| policy.name.as_str().to_owned()).collect::<Vec<_>>().into(),
        guesses().map(|policy| policy.window.quota.cast_signed()).collect::<Vec<i32>>().into(),
        guesses().map(|policy| millis(policy.window.period)).collect::<Vec<i64>>().into(),
        first.is_some_and(|job| job.events).into(),
    ]
}

fn fail(jobs: Vec<Job>, error: &DbErr) {
    tracing::warn!(attempts = jobs.len(), %error, "codes not checked");
    for job in jobs {
        let error = Told(DbErr::Custom(error.to_string())).into();
        let _ = job.answer.send(Err(error));
    }
}

#[cfg(test)]
mod tests {
    use std::iter::repeat_n;

    use domain::Windows;

    use super::*;

    type Answer = oneshot::Receiver<Result<Tried, StoreError>>;

    /// An attempt under each of these windows, from 0 on, and those who wait for the answers.
    fn waiting<'a>(windows: impl IntoIterator<Item = &'a str>) -> (Waiting, Vec<Answer>) {
        let mut waiting = Waiting::default();
        let answers = (0..).zip(windows).map(|(number, windows)| {
            let (answer, heard) = oneshot::channel();
            let attempt = Attempt {
                target: Target::Id(VerificationId::from_uuid(Uuid::from_u128(number << 8))),
                hashes: Vec::new(),
                claim: None,
            };
            let guesses = windows.parse::<Windows>().unwrap().policies("check");
            waiting.add(Job { attempt, guesses, events: false, answer });
            heard
        });
        let answers = answers.collect();
        (waiting, answers)
    }

    fn next(waiting: &mut Waiting) -> Option<Vec<u128>> {
        let number = |job: Job| job.attempt.target.id().unwrap().as_uuid().as_u128() >> 8;
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
    fn no_more_statements_are_begun_than_may_run_at_a_time() {
        let (mut waiting, _answers) = waiting(["2/1h"; STATEMENTS + 1]);
        assert_eq!(waiting.running, STATEMENTS);

        assert_eq!(next(&mut waiting).unwrap().len(), STATEMENTS + 1);
        assert_eq!(waiting.running, STATEMENTS, "it is under way");
        assert_eq!(next(&mut waiting), None);
        assert_eq!(waiting.running, STATEMENTS - 1);
    }
}
