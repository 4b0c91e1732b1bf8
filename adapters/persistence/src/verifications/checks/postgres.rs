use application::ports::{AnswerClaim, Attempt, CheckOutcome, StoreError, Target, Violation};
use domain::{ATTEMPTS, CodeHash, KeyId, Policy, VerificationId};
use sea_orm::FromQueryResult;
use uuid::Uuid;

use super::{
    outcome::{ApprovalRow, KnownRow, WrongRow},
    statement::CHECK,
};
use crate::{
    coalesce::{Batch, Coalescer, Job},
    database::{Database, DatabaseError, Parameters, lasting, millis},
    refusal::{is_about_a_lock, is_about_a_row},
};

/// Decides batches of attempts with the same windows for guesses.
#[derive(Debug)]
pub(super) struct Checks {
    database: Database,
}

/// What a statement says of one attempt.
#[derive(Debug)]
enum Decision {
    Tried(CheckOutcome),
    /// Nothing yet: another attempt at the same phone was decided.
    Later,
}

impl Batch for Checks {
    type Request = (Attempt, Vec<Policy>);
    type Answer = CheckOutcome;
    type Error = StoreError;

    fn go_together((_, guesses): &Self::Request, (_, others): &Self::Request) -> bool {
        guesses == others
    }

    /// Answers the attempts that are decided, and puts the others back.
    async fn serve(&self, jobs: Vec<Job<Self>>, queue: &Coalescer<Self>) {
        match self.decide(&jobs).await {
            Ok(decisions) => {
                for (job, decision) in jobs.into_iter().zip(decisions) {
                    match decision {
                        Ok(Decision::Tried(tried)) => job.answer(Ok(tried)),
                        Ok(Decision::Later) => queue.put_back(job),
                        Err(error) => fail([job], &error),
                    }
                }
            }
            Err(error) if jobs.len() > 1 && is_about_some(&error) => {
                for job in jobs {
                    queue.put_back_alone(job);
                }
            }
            Err(error) if error.is_no_connection() => {
                // The waiting attempts would get no connection either, after waiting once more.
                fail(jobs.into_iter().chain(queue.take_all()), &error);
            }
            Err(error) => fail(jobs, &error),
        }
    }
}

impl Checks {
    pub(super) fn new(database: Database) -> Self {
        Self { database }
    }

    /// Decides attempts in one commit, and returns the decisions in their order. A decision that
    /// cannot be read is committed all the same.
    async fn decide(
        &self,
        jobs: &[Job<Self>],
    ) -> Result<Vec<Result<Decision, DatabaseError>>, DatabaseError> {
        let attempts: Vec<&Attempt> = jobs.iter().map(|job| &job.request.0).collect();
        let guesses = jobs.first().map(|job| &*job.request.1).unwrap_or_default();
        let parameters = self.database.parameters();
        let parameters = attempt_rows(parameters, &attempts, guesses)
            .with("events", self.database.events().are_recorded());
        let rows: Vec<Row> = self.database.rows(&CHECK, parameters).await?;
        let mut rows = rows.into_iter();
        let decisions = attempts.iter().map(|attempt| {
            let count = targets(&attempt.target).len();
            let its: Vec<Row> = rows.by_ref().take(count).collect();
            if its.len() < count {
                return Err(DatabaseError::missing("the decision of an attempt"));
            }
            Ok(Decision::read(its, guesses))
        });
        decisions.collect()
    }
}

#[expect(clippy::struct_excessive_bools, reason = "the columns of a row")]
#[derive(Debug, FromQueryResult)]
struct Row {
    changed: bool,
    counts: bool,
    may_try: bool,
    waits: bool,
    guessed: bool,
    /// For each window how long it still runs, in milliseconds; negative if it has room.
    remains: Vec<i64>,
    #[sea_orm(nested)]
    known: Option<KnownRow>,
    #[sea_orm(nested)]
    counted: Option<Counted>,
}

/// A verification that the attempt was counted on.
#[derive(Debug, FromQueryResult)]
struct Counted {
    is_right: bool,
    #[sea_orm(nested)]
    approval: ApprovalRow,
    #[sea_orm(nested)]
    wrong: WrongRow,
}

impl Decision {
    /// Reads the rows of one attempt.
    fn read(rows: Vec<Row>, guesses: &[Policy]) -> Result<Self, DatabaseError> {
        let first = rows.first().ok_or_else(|| DatabaseError::missing("an attempt"))?;
        if first.waits {
            return Ok(Self::Later);
        }
        if first.changed {
            return Ok(Self::Tried(CheckOutcome::Changed));
        }
        let may_try = first.may_try;
        let untried = first.known.as_ref().map(KnownRow::untried);
        let (mut wrong, mut over, mut is_counted) = (None, Vec::new(), false);
        for row in rows {
            if row.counts {
                is_counted |= row.guessed;
                if over.is_empty() {
                    over = violations(&row.remains, guesses);
                }
            }
            if let Some(counted) = row.counted {
                if counted.is_right {
                    return Ok(Self::Tried(CheckOutcome::Right(counted.approval.approval()?)));
                }
                if wrong.is_none() {
                    wrong = Some(counted.wrong.wrong()?);
                }
            }
        }
        Ok(Self::Tried(if let Some(wrong) = wrong {
            wrong
        } else if is_counted {
            CheckOutcome::Nothing
        } else if may_try {
            // A row or its room was lost in between.
            CheckOutcome::Changed
        } else if !over.is_empty() {
            CheckOutcome::Limited(over)
        } else if let Some(untried) = untried {
            untried?.unwrap_or(CheckOutcome::Changed)
        } else {
            CheckOutcome::Unknown
        }))
    }
}

/// Returns the windows without room.
fn violations(remains: &[i64], guesses: &[Policy]) -> Vec<Violation> {
    let over = guesses.iter().zip(remains).filter(|(_, remains)| **remains >= 0);
    let over = over.map(|(policy, remains)| Violation {
        policy: policy.clone(),
        retry_after: lasting(*remains),
    });
    over.collect()
}

/// Whether the server refuses the statement for one of its attempts, or for a lock. It has rolled
/// all of it back.
fn is_about_some(error: &DatabaseError) -> bool {
    is_about_a_row(error) || is_about_a_lock(error)
}

/// A row of the statement: an attempt at one verification.
#[derive(Debug, Clone, Copy)]
struct Asked<'a> {
    /// The number of the attempt. An attempt by phone has two rows with the same number.
    number: i64,
    attempt: &'a Attempt,
    id: Uuid,
    of_api: bool,
    hashes: &'a [(KeyId, CodeHash)],
}

fn attempt_rows(parameters: Parameters, attempts: &[&Attempt], guesses: &[Policy]) -> Parameters {
    let asked = (1_i64..).zip(attempts.iter().copied()).flat_map(|(number, attempt)| {
        let hashes = [&*attempt.hashes, &*attempt.api_hashes];
        let rows = targets(&attempt.target).into_iter().zip(hashes);
        rows.map(move |((id, of_api), hashes)| Asked { number, attempt, id, of_api, hashes })
    });
    let asked: Vec<Asked<'_>> = asked.collect();
    let claim = |it: &Asked<'_>, read: fn(&AnswerClaim) -> Vec<u8>| {
        it.attempt.claim.as_ref().map(read).unwrap_or_default()
    };
    let hashes = (1_i64..)
        .zip(&asked)
        .flat_map(|(row_place, it)| it.hashes.iter().map(move |it| (row_place, it)));
    parameters
        .with("attempts", i16::from(ATTEMPTS))
        .rows("asked", asked.iter(), |rows| {
            rows.column("id", |it| it.id)
                .column("phone", |it| phone(&it.attempt.target))
                .column("claim", |it| claim(it, |claim| claim.key.to_vec()))
                .column("first", |it| claim(it, |claim| claim.first.to_vec()))
                .column("attempt_number", |it| it.number)
                .column("of_api", |it| it.of_api)
        })
        .rows("hashed", hashes, |rows| {
            rows.column("row_place", |(row_place, _)| row_place)
                .column("pepper", |(_, (pepper, _))| pepper.as_str().to_owned())
                .column("hash", |(_, (_, hash))| hash.as_bytes().to_vec())
        })
        .rows("wanted", guesses.iter(), |rows| {
            rows.column("policy", |it| it.name.as_str().to_owned())
                .column("quota", |it| it.window.quota.cast_signed())
                .column("period", |it| millis(it.window.period))
        })
        .with("windows", i64::try_from(guesses.len()).unwrap_or(i64::MAX))
}

/// Returns the verifications of an attempt, and whether each is the newest of `/api`.
fn targets(target: &Target) -> Vec<(Uuid, bool)> {
    let uuid = |id: Option<VerificationId>| id.map_or(Uuid::nil(), VerificationId::as_uuid);
    match target {
        Target::Id(id) => vec![(id.as_uuid(), false)],
        Target::Newest { of, .. } => vec![(uuid(of.v1), false), (uuid(of.api), true)],
    }
}

/// Returns the phone of an attempt by phone, and an empty text otherwise.
fn phone(target: &Target) -> String {
    match target {
        Target::Id(_) => String::new(),
        Target::Newest { phone, .. } => phone.as_str().to_owned(),
    }
}

fn fail(jobs: impl IntoIterator<Item = Job<Checks>>, error: &DatabaseError) {
    let jobs: Vec<Job<Checks>> = jobs.into_iter().collect();
    tracing::warn!(attempts = jobs.len(), %error, "codes were not checked; their callers get an error");
    for job in jobs {
        job.answer(Err(StoreError::Unavailable(error.to_string().into())));
    }
}
