//! Stores accepted messages: writers put them into batches, and answer after the commit.
//!
//! This is one file, because accepting, rationing and explaining are the steps of one turn.

mod inserted;
mod postgres;
mod sqlite;
pub(crate) mod stored;

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use application::{
    OpenSpan, SpanKind, Tracer,
    ports::{Enqueued, NewSend, Outbox, StoreError, Violation},
};
use autometrics::autometrics;
use domain::{Origin, VerificationId};
use sea_orm::DatabaseConnection;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::sleep,
};

use self::inserted::Inserted;
use crate::{
    coalesce::{Batch, Coalescer, Job, Limits},
    database::{Database, DatabaseError, millis, time},
    limits::Counters,
    phones::{Account, Known, PhoneRow, Wanted, window_params},
    refusal::is_about_a_row,
};

/// The outbox as the API writes to it: requests that wait together are committed together.
///
/// One statement stores a batch, and decides for each phone whether its sends have room. With other
/// counters, which `/v1` has by default, it is in a transaction: PostgreSQL counts first, and the
/// writer rolls back if a counter is over its quota. A caller gets its answer after the commit.
#[derive(Debug, Clone)]
pub struct CoalescingOutbox {
    queue: Coalescer<Writer>,
    stored: Arc<Notify>,
    tracer: Tracer,
}

#[derive(Debug, Clone, Copy)]
pub struct OutboxSettings {
    /// Messages that may wait to be stored.
    pub queue: usize,
    /// The maximum number of concurrent inserts. A second one begins when half of a batch waits, or 20 ms
    /// after a message came while the first is in progress.
    pub writers: usize,
    /// Messages in one insert.
    pub batch: usize,
    /// How long a caller waits for its commit.
    pub patience: Duration,
}

impl Default for OutboxSettings {
    fn default() -> Self {
        Self {
            // Equal to the number of messages that the writers store: a later request would wait for
            // two commits or more. Both together stay below the connections of the HTTP server, so
            // that it can answer 503.
            queue: 256,
            writers: 2,
            batch: 128,
            patience: Duration::from_secs(5),
        }
    }
}

impl CoalescingOutbox {
    /// Opens the outbox. The set ends when the outbox and its clones are dropped and all that is
    /// queued is stored.
    pub fn start(database: &Database, settings: OutboxSettings) -> (Self, JoinSet<()>) {
        let (open, mut closed) = mpsc::channel(1);
        let stored = Arc::new(Notify::new());
        let writer = Writer {
            database: database.clone(),
            patience: settings.patience,
            stored: Arc::clone(&stored),
            _open: open,
        };
        let limits = Limits {
            queue: settings.queue,
            batches: settings.writers,
            batch: settings.batch,
            beside: settings.batch / 2,
            patience: Some(settings.patience),
        };
        let mut writers = JoinSet::new();
        writers.spawn(async move {
            // The sender is dropped with the last writer.
            while closed.recv().await.is_some() {}
        });
        let queue = Coalescer::new(writer, limits);
        (Self { queue, stored, tracer: Tracer::default() }, writers)
    }

    /// Records a span of each message that is stored: it lasts until the commit.
    #[must_use]
    pub fn with_tracer(self, tracer: Tracer) -> Self {
        Self { tracer, ..self }
    }

    fn begin_span(&self, send: &NewSend) -> Option<OpenSpan> {
        let mut span = self.tracer.begin(&send.trace, SpanKind::Internal, "store message")?;
        span.set("messaging.message.id", send.message.id.to_string());
        Some(span)
    }

    /// Notified after each commit, for a relay in the same process.
    pub fn stored(&self) -> Arc<Notify> {
        Arc::clone(&self.stored)
    }
}

impl Outbox for CoalescingOutbox {
    #[autometrics(struct_name = "CoalescingOutbox")]
    async fn enqueue(&self, send: NewSend) -> Result<Enqueued, StoreError> {
        let span = self.begin_span(&send);
        let answer = self.queue.ask(send).await;
        if let Some(span) = span {
            end_span(span, &answer);
        }
        answer
    }
}

fn end_span(mut span: OpenSpan, answer: &Result<Enqueued, StoreError>) {
    match answer {
        Ok(Enqueued::Accepted { .. }) => {}
        Ok(Enqueued::Pending(_)) => span.set("messager.outcome", "pending"),
        Ok(Enqueued::Limited(_)) => span.set("messager.outcome", "limited"),
        Err(StoreError::Full) => span.fail("full"),
        Err(StoreError::Unavailable(_)) => span.fail("unavailable"),
    }
}

/// Stores batches.
#[derive(Debug)]
struct Writer {
    database: Database,
    patience: Duration,
    stored: Arc<Notify>,
    _open: mpsc::Sender<Infallible>,
}

/// The sends of one statement. An account has one exclusive send or as many others as its windows
/// allow.
#[derive(Default)]
struct Turn {
    jobs: Vec<Job<Writer>>,
    accounts: Vec<Wanted>,
}

/// How many more sends an account has room for, if that is known.
type Rooms = HashMap<Account, u32>;

/// How long a writer without a connection waits before it tries again.
const PAUSE: Duration = Duration::from_millis(100);

/// Turns of a batch: in between, other writers may take the room of a phone or of a counter.
const TURNS: usize = 5;

impl Batch for Writer {
    type Request = NewSend;
    type Answer = Enqueued;
    type Error = StoreError;

    /// Stores the sends that have room, and answers all.
    async fn serve(&self, jobs: Vec<Job<Self>>, queue: &Coalescer<Self>) {
        self.store(jobs.into_iter().filter(is_wanted).collect(), queue).await;
    }
}

impl Writer {
    async fn store(&self, mut waiting: Vec<Job<Self>>, queue: &Coalescer<Self>) {
        let mut rooms = Rooms::new();
        for _ in 0..TURNS {
            if waiting.is_empty() {
                return;
            }
            let (turn, later) = Turn::of(waiting, &rooms);
            let inserted = match self.insert(&turn).await {
                Ok(inserted) => inserted,
                Err(error) if error.is_no_connection() => {
                    give_back(turn.jobs.into_iter().chain(later), queue);
                    return self.connect(queue).await;
                }
                Err(error) if is_about_a_row(&error) && turn.jobs.len() > 1 => {
                    return self.store_each(turn.jobs.into_iter().chain(later), queue).await;
                }
                Err(error) => {
                    fail(turn.jobs, &error);
                    if !is_about_a_row(&error) {
                        return fail_unstored(later, &error);
                    }
                    waiting = later;
                    continue;
                }
            };
            let is_through =
                |job: &Job<Self>| inserted.accounts.contains_key(account(job).as_str());
            let (through, refused): (Vec<_>, Vec<_>) = turn.jobs.into_iter().partition(is_through);
            let later = if inserted.holds {
                self.accept(through, &inserted.accounts);
                waiting = Vec::new();
                later
            } else {
                let (rest, later) = self.ration(through, later).await;
                waiting = rest;
                later
            };
            let refused = refused.into_iter().chain(later).collect();
            let (undecided, known) = self.explain(refused).await;
            waiting.extend(undecided);
            rooms = known;
        }
        if waiting.len() > 1 {
            return self.store_each(waiting.into_iter(), queue).await;
        }
        for job in waiting {
            answer(job, Err(StoreError::Full));
        }
    }

    /// Waits for a connection. Opening one takes seconds while many processes want the machine; a
    /// writer that opens one must not keep messages that another writer could store.
    async fn connect(&self, queue: &Coalescer<Self>) {
        while queue.has_waiting()
            && let Err(error) = self.database.step(async |it| Ok(it.ping().await?)).await
        {
            tracing::warn!(%error, "no database connection; messages wait to be stored");
            sleep(PAUSE).await;
        }
    }

    async fn store_each(&self, jobs: impl Iterator<Item = Job<Self>>, queue: &Coalescer<Self>) {
        for job in jobs {
            Box::pin(self.store(vec![job], queue)).await;
        }
    }

    fn accept(&self, jobs: Vec<Job<Self>>, accounts: &HashMap<String, i64>) {
        if jobs.is_empty() {
            return;
        }
        self.stored.notify_one();
        for job in jobs {
            let at = time(accounts.get(account(&job).as_str()).copied().unwrap_or_default());
            answer(job, Ok(Enqueued::Accepted { at }));
        }
    }

    /// Refuses, in the order of arrival, the jobs whose counters have no room. Returns the others.
    ///
    /// Deferred jobs are refused only if a counter is already exhausted.
    async fn ration(
        &self,
        jobs: Vec<Job<Self>>,
        later: Vec<Job<Self>>,
    ) -> (Vec<Job<Self>>, Vec<Job<Self>>) {
        let counters = jobs.iter().chain(&later).flat_map(|job| &job.request.extra);
        let mut counters = match Counters::read(&self.database, counters).await {
            Ok(counters) => counters,
            Err(error) => {
                fail_unstored(jobs, &error);
                fail_unstored(later, &error);
                return (Vec::new(), Vec::new());
            }
        };
        let refuse = |job: Job<Self>, violations: Vec<Violation>| {
            if violations.is_empty() {
                return Some(job);
            }
            answer(job, Ok(Enqueued::Limited(violations)));
            None
        };
        let later = later.into_iter().filter_map(|job| {
            let violations = counters.violations(&job.request.extra);
            refuse(job, violations)
        });
        let later = later.collect();
        let jobs = jobs.into_iter().filter_map(|job| {
            let violations = counters.take(&job.request.extra);
            refuse(job, violations)
        });
        (jobs.collect(), later)
    }

    /// Answers the jobs that their phones refuse. Returns the jobs that have room now, and how much
    /// room their accounts have.
    async fn explain(&self, jobs: Vec<Job<Self>>) -> (Vec<Job<Self>>, Rooms) {
        let mut rooms = Rooms::new();
        if jobs.is_empty() {
            return (jobs, rooms);
        }
        let accounts = match self.accounts(&jobs).await {
            Ok(accounts) => accounts,
            Err(error) => {
                fail_unstored(jobs, &error);
                return (Vec::new(), rooms);
            }
        };
        let undecided = jobs.into_iter().filter_map(|job| {
            let NewSend { verification, phone_limits, .. } = &job.request;
            let Some(Known { windows, pending }) = accounts.get(account(&job).as_str()) else {
                return Some(job);
            };
            if let Some(pending) = pending
                && verification.origin == Origin::V1
            {
                let pending = Box::new(pending.clone());
                answer(job, Ok(Enqueued::Pending(pending)));
                return None;
            }
            let violations = windows.violations(phone_limits);
            if !violations.is_empty() {
                answer(job, Ok(Enqueued::Limited(violations)));
                return None;
            }
            rooms.insert(account(&job), windows.room(phone_limits));
            Some(job)
        });
        let undecided = undecided.collect();
        (undecided, rooms)
    }

    async fn accounts(&self, jobs: &[Job<Self>]) -> Result<HashMap<String, Known>, DatabaseError> {
        let accounts = jobs.iter().map(|job| account(job).into_text()).collect();
        let rows = PhoneRow::of(&self.database, accounts).await?;
        rows.into_iter().map(PhoneRow::known).collect()
    }

    async fn insert(&self, turn: &Turn) -> Result<Inserted, DatabaseError> {
        let sends: Vec<&NewSend> = turn.jobs.iter().map(|job| &job.request).collect();
        let (database, wanted) = (&self.database, &turn.accounts);
        let insert = async |connection: DatabaseConnection| {
            if database.is_postgres() {
                postgres::insert(database, &connection, &sends, wanted).await
            } else {
                sqlite::insert(database, &connection, &sends, wanted).await
            }
        };
        database.step_within(self.patience, insert).await
    }
}

impl Turn {
    /// Takes the jobs that go together, in the order of arrival, and returns the others.
    fn of(jobs: Vec<Job<Writer>>, rooms: &Rooms) -> (Self, Vec<Job<Writer>>) {
        let mut places: HashMap<Account, usize> = HashMap::with_capacity(jobs.len());
        let (mut turn, mut later) = (Self::default(), Vec::new());
        for job in jobs {
            let exclusive = job.request.verification.origin == Origin::V1;
            let windows = &job.request.phone_limits;
            let newest = VerificationId::of(job.request.message.id);
            let ttl = millis(job.request.ttl);
            let account = account(&job);
            if let Some(place) = places.get(&account) {
                let wanted = &mut turn.accounts[*place];
                let room = rooms.get(&account).copied().unwrap_or(u32::MAX);
                let room = windows.smallest_quota().map_or(room, |quota| quota.min(room));
                let alone =
                    exclusive || wanted.exclusive || wanted.windows != window_params(windows);
                if alone || wanted.sends >= room {
                    later.push(job);
                    continue;
                }
                wanted.sends += 1;
                (wanted.newest, wanted.ttl) = (newest, ttl);
            } else {
                turn.accounts.push(Wanted {
                    account: account.as_str().to_owned(),
                    newest,
                    ttl,
                    exclusive,
                    of_api: !exclusive,
                    sends: 1,
                    windows: window_params(windows),
                });
                places.insert(account, turn.accounts.len() - 1);
            }
            turn.jobs.push(job);
        }
        (turn, later)
    }
}

fn account(job: &Job<Writer>) -> Account {
    Account::of(&job.request.phone, job.request.apart)
}

/// Puts jobs back that a writer without a connection could not store: another writer may have one.
fn give_back(jobs: impl Iterator<Item = Job<Writer>>, queue: &Coalescer<Writer>) {
    for job in jobs {
        job.request.storing.undo();
        if let Err(job) = queue.try_put(job) {
            answer(job, Err(StoreError::Full));
        }
    }
}

/// Whether a job is to be stored. A caller that left got no answer, and most likely comes back.
fn is_wanted(job: &Job<Writer>) -> bool {
    job.request.storing.begin();
    let is_wanted = !job.has_left();
    if !is_wanted {
        job.request.storing.undo();
    }
    is_wanted
}

fn answer(job: Job<Writer>, answer: Result<Enqueued, StoreError>) {
    let may_be_stored =
        matches!(answer, Ok(Enqueued::Accepted { .. }) | Err(StoreError::Unavailable(_)));
    if !may_be_stored {
        job.request.storing.undo();
    }
    job.answer(answer);
}

/// Fails jobs that were in no statement that may have committed.
fn fail_unstored(jobs: Vec<Job<Writer>>, error: &DatabaseError) {
    for job in &jobs {
        job.request.storing.undo();
    }
    fail(jobs, error);
}

fn fail(jobs: Vec<Job<Writer>>, error: &DatabaseError) {
    tracing::warn!(messages = jobs.len(), %error, "messages were not stored; their callers get an error");
    let is_refused = is_about_a_row(error);
    for job in jobs {
        if is_refused {
            job.request.storing.undo();
        }
        job.answer(Err(StoreError::Unavailable(error.to_string().into())));
    }
}
