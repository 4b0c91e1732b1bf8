//! Steps of several partitions in one statement and one commit (ADR 84).

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::Mutex,
};

use application::ports::{Admitted, Batch, CallOutcome, Lease, LedgerError, Recorded};
use domain::MessageId;

use super::{
    entries::{Entries, admitted},
    lock,
    part::Part,
};
use crate::{
    coalesce::{self, Coalescer, Job, Limits},
    database::DatabaseError,
    refusal::{code, is_about_a_lock, is_about_a_row},
};

/// While one statement waits for the disk, or for a lock, another one goes on. A statement has as many
/// rows as a large fetch, so that no partition waits much longer than alone.
///
/// A caller waits until it is served, because each statement has a limit of its own. If it asked again
/// beside its own statement, that might store an offset after a higher one.
const LIMITS: Limits =
    Limits { queue: usize::MAX, batches: 2, batch: 1_000, beside: 0, patience: None };

/// A batch to take over, and the lease of its partition.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) lease: Lease,
    pub(super) batch: Batch,
}

/// Takes batches over.
#[derive(Debug)]
pub(super) struct Admissions {
    entries: Entries,
    /// Partitions whose statement was refused, and that have had no success since. They are served alone,
    /// so that one that waits for a lock again and again does not stop the others.
    suspects: Mutex<HashSet<i32>>,
}

/// Records outcomes.
#[derive(Debug)]
pub(super) struct Outcomes(Entries);

pub(super) fn admissions(entries: Entries) -> Coalescer<Admissions> {
    Coalescer::new(Admissions { entries, suspects: Mutex::default() }, LIMITS)
}

pub(super) fn outcomes(entries: Entries) -> Coalescer<Outcomes> {
    Coalescer::new(Outcomes(entries), LIMITS)
}

impl coalesce::Batch for Admissions {
    type Request = Admission;
    type Answer = Admitted;
    type Error = LedgerError;

    fn size(admission: &Admission) -> usize {
        admission.batch.records.len()
    }

    async fn serve(&self, jobs: Vec<Job<Self>>, queue: &Coalescer<Self>) {
        let jobs = distinct(jobs, queue, |it| vec![it.lease.partition]);
        let jobs = self.without_suspects(jobs, queue);
        match &jobs[..] {
            [] => {}
            [job] => {
                // A record that the database refuses is found and buried.
                let answer = self.entries.admit(&job.request.lease, &job.request.batch).await;
                if answer.is_ok() {
                    lock(&self.suspects).remove(&job.request.lease.partition);
                }
                answer_all(jobs, [answer]);
            }
            _ => self.serve_together(jobs, queue).await,
        }
    }
}

impl Admissions {
    /// Puts the jobs of suspects back, to be served alone, unless there is only one job.
    fn without_suspects(&self, jobs: Vec<Job<Self>>, queue: &Coalescer<Self>) -> Vec<Job<Self>> {
        if jobs.len() == 1 {
            return jobs;
        }
        let suspects = lock(&self.suspects).clone();
        let (alone, together): (Vec<_>, Vec<_>) =
            jobs.into_iter().partition(|job| suspects.contains(&job.request.lease.partition));
        put_back_alone(alone, queue);
        together
    }

    async fn serve_together(&self, jobs: Vec<Job<Self>>, queue: &Coalescer<Self>) {
        let parts: Vec<Part<'_>> = jobs.iter().map(|job| job.request.whole()).collect();
        match self.entries.admit_parts(&parts, self.entries.database.events()).await {
            Ok(mut entries) => {
                let answers = jobs.iter().map(|job| {
                    let partition = job.request.lease.partition;
                    let entries =
                        entries.remove(&partition).ok_or(LedgerError::Fenced { partition })?;
                    Ok(admitted(entries)?)
                });
                let answers: Vec<_> = answers.collect();
                answer_all(jobs, answers);
            }
            Err(error) if is_about_a_row(&error) || is_about_waiting(&error) => {
                lock(&self.suspects).extend(jobs.iter().map(|job| job.request.lease.partition));
                put_back_alone(jobs, queue);
            }
            Err(error) => fail(jobs, &error),
        }
    }
}

impl coalesce::Batch for Outcomes {
    type Request = Vec<CallOutcome>;
    type Answer = Vec<Recorded>;
    type Error = LedgerError;

    fn size(outcomes: &Vec<CallOutcome>) -> usize {
        outcomes.len()
    }

    async fn serve(&self, jobs: Vec<Job<Self>>, queue: &Coalescer<Self>) {
        let ids = |outcomes: &Vec<CallOutcome>| outcomes.iter().map(|it| it.id).collect();
        let jobs = distinct(jobs, queue, ids);
        let outcomes: Vec<CallOutcome> = jobs.iter().flat_map(|job| job.request.clone()).collect();
        match self.0.finish(&outcomes).await {
            Ok(recorded) => {
                let mut recorded: HashMap<MessageId, Recorded> =
                    recorded.into_iter().map(|it| (it.id, it)).collect();
                let answers = jobs.iter().map(|job| {
                    Ok(job.request.iter().filter_map(|it| recorded.remove(&it.id)).collect())
                });
                let answers: Vec<_> = answers.collect();
                answer_all(jobs, answers);
            }
            Err(error) if jobs.len() > 1 && is_about_waiting(&error) => {
                put_back_alone(jobs, queue);
            }
            Err(error) => fail(jobs, &error),
        }
    }
}

/// Whether PostgreSQL rolled a statement back because it waited for a lock, or took too long.
fn is_about_waiting(error: &DatabaseError) -> bool {
    is_about_a_lock(error) || code(error).is_some_and(|code| code == "57014")
}

impl Admission {
    fn whole(&self) -> Part<'_> {
        Part::of(&self.lease, &self.batch, 0..self.batch.records.len())
    }
}

/// Puts a job back into the queue if another one has one of its keys.
fn distinct<B: coalesce::Batch, K: Eq + Hash>(
    jobs: Vec<Job<B>>,
    queue: &Coalescer<B>,
    keys: impl Fn(&B::Request) -> Vec<K>,
) -> Vec<Job<B>> {
    let mut known = HashSet::new();
    let mut distinct = Vec::with_capacity(jobs.len());
    for job in jobs {
        let keys = keys(&job.request);
        if keys.iter().any(|key| known.contains(key)) {
            queue.put_back(job);
        } else {
            known.extend(keys);
            distinct.push(job);
        }
    }
    distinct
}

fn put_back_alone<B: coalesce::Batch>(jobs: Vec<Job<B>>, queue: &Coalescer<B>) {
    for job in jobs {
        queue.put_back_alone(job);
    }
}

fn answer_all<B: coalesce::Batch>(
    jobs: Vec<Job<B>>,
    answers: impl IntoIterator<Item = Result<B::Answer, B::Error>>,
) {
    for (job, answer) in jobs.into_iter().zip(answers) {
        job.answer(answer);
    }
}

fn fail<B: coalesce::Batch<Error = LedgerError>>(jobs: Vec<Job<B>>, error: &DatabaseError) {
    for job in jobs {
        job.answer(Err(LedgerError::Unavailable(error.to_string().into())));
    }
}
