mod sql;

use std::{collections::HashMap, sync::Arc, time::Duration};

use application::ports::{Enqueued, NewSend, Outbox, StoreError, Verification, Violation};
use autometrics::autometrics;
use domain::{ApiKeyId, CodeLength, Counter, Metadata, Origin, TemplateKey, VerificationId};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, QueryResult, Value};
use serde_json::json;
use tokio::{
    sync::{
        Mutex, Notify,
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    task::JoinSet,
    time::{sleep, timeout},
};
use uuid::Uuid;

pub(crate) use self::sql::{COUNT_ON_PHONES, PHONES, STORE};
use crate::{
    database::{Database, begin, clock, hex, millis, time},
    limits::{Account, COUNT_SQLITE, Counters, PhoneWindows, counter_row, window_params},
    refusal::is_about_a_row,
    verifications,
};

/// The outbox as the API writes to it: requests that wait together are committed together.
///
/// A few writers take what is queued and store it with one statement, which decides of each phone
/// alone, and the callers hear of it when that has been committed. There is no timer: while one
/// batch is being committed the next gathers. A full queue is refused at once.
#[derive(Debug, Clone)]
pub struct CoalescingOutbox {
    queue: mpsc::Sender<Job>,
    patience: Duration,
    stored: Arc<Notify>,
}

#[derive(Debug, Clone, Copy)]
pub struct OutboxSettings {
    /// Messages that may wait to be stored.
    pub queue: usize,
    /// Inserts at a time: one that is committing and one that is being filled is enough.
    pub writers: usize,
    /// Messages in one insert.
    pub batch: usize,
    /// How long a caller waits for its commit.
    pub patience: Duration,
    /// Whether others are told of what begins.
    pub events: bool,
}

impl Default for OutboxSettings {
    fn default() -> Self {
        Self {
            // As many as are being stored: whoever comes later would wait for two commits or more.
            // Both together stay below the connections of the server, so that it can say so.
            queue: 256,
            writers: 2,
            batch: 128,
            patience: Duration::from_secs(5),
            events: false,
        }
    }
}

#[derive(Debug)]
struct Job {
    send: NewSend,
    answer: oneshot::Sender<Result<Enqueued, StoreError>>,
}

impl CoalescingOutbox {
    /// Starts the writers. They end, after what is queued, when the outbox and its clones are
    /// dropped; awaiting the set waits for that.
    pub fn start(database: &Database, settings: OutboxSettings) -> (Self, JoinSet<()>) {
        let (queue, jobs) = mpsc::channel(settings.queue);
        let jobs = Arc::new(Mutex::new(jobs));
        let stored = Arc::new(Notify::new());
        let mut writers = JoinSet::new();
        for _ in 0..settings.writers {
            let writer = Writer {
                database: database.clone(),
                queue: queue.downgrade(),
                jobs: Arc::clone(&jobs),
                settings,
                stored: Arc::clone(&stored),
            };
            writers.spawn(writer.run());
        }
        (Self { queue, patience: settings.patience, stored }, writers)
    }

    /// Told after each commit, for a relay in the same process.
    pub fn stored(&self) -> Arc<Notify> {
        Arc::clone(&self.stored)
    }
}

impl Outbox for CoalescingOutbox {
    #[autometrics(struct_name = "CoalescingOutbox")]
    async fn enqueue(&self, send: NewSend) -> Result<Enqueued, StoreError> {
        let (answer, stored) = oneshot::channel();
        self.queue.try_send(Job { send, answer }).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Full,
            TrySendError::Closed(_) => StoreError::Unavailable("the writers are gone".into()),
        })?;
        match timeout(self.patience, stored).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(StoreError::Unavailable("the writer is gone".into())),
            Err(_) => Err(StoreError::Unavailable("no commit in time".into())),
        }
    }
}

struct Writer {
    database: Database,
    queue: mpsc::WeakSender<Job>,
    jobs: Arc<Mutex<mpsc::Receiver<Job>>>,
    settings: OutboxSettings,
    stored: Arc<Notify>,
}

/// What one statement stores: of each phone either one send that wants it for itself, or as many
/// others as fit into its windows.
#[derive(Debug, Default)]
struct Turn {
    jobs: Vec<Job>,
    accounts: Vec<Wanted>,
}

/// What one statement does to an account.
#[derive(Debug)]
struct Wanted {
    account: Account,
    /// The verification of the last of the sends.
    newest: VerificationId,
    ttl: Duration,
    exclusive: bool,
    sends: u32,
    windows: [(i32, i64); 3],
}

/// What became of a turn.
#[derive(Debug)]
struct Inserted {
    /// When it was accepted, in milliseconds since 1970, for each account that was not refused.
    accounts: HashMap<String, i64>,
    /// Otherwise a counter is over its quota, and nothing is stored.
    holds: bool,
}

/// What is known of a phone that was refused.
#[derive(Debug)]
struct Known {
    windows: PhoneWindows,
    pending: Option<Verification>,
}

/// How many more sends an account has room for, where that is known.
type Rooms = HashMap<Account, u32>;

/// How long a writer waits where it gets no connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Turns that a batch gets: others may take the room of a phone or of a counter in between.
const TURNS: usize = 5;

impl Writer {
    async fn run(self) {
        let mut jobs = Vec::with_capacity(self.settings.batch);
        while self.jobs.lock().await.recv_many(&mut jobs, self.settings.batch).await > 0 {
            self.store(jobs.drain(..).filter(Job::is_wanted).collect()).await;
        }
    }

    /// Stores what has room, and answers all.
    async fn store(&self, mut waiting: Vec<Job>) {
        let mut rooms = Rooms::new();
        for _ in 0..TURNS {
            if waiting.is_empty() {
                return;
            }
            let (turn, later) = Turn::of(waiting, &rooms);
            let inserted = match self.insert(&turn).await {
                Ok(inserted) => inserted,
                Err(error @ DbErr::ConnectionAcquire(_)) => {
                    self.give_back(turn.jobs.into_iter().chain(later), &error);
                    return self.connect().await;
                }
                Err(error) if is_about_a_row(&error) && turn.jobs.len() > 1 => {
                    return self.store_each(turn.jobs.into_iter().chain(later)).await;
                }
                Err(error) => {
                    fail(turn.jobs, &error);
                    if !is_about_a_row(&error) {
                        return fail(later, &error);
                    }
                    waiting = later;
                    continue;
                }
            };
            let is_through = |job: &Job| inserted.accounts.contains_key(job.account().as_str());
            let (through, refused): (Vec<Job>, Vec<Job>) =
                turn.jobs.into_iter().partition(is_through);
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
            return self.store_each(waiting.into_iter()).await;
        }
        for job in waiting {
            job.answer(Err(StoreError::Full));
        }
    }

    /// Whoever got no connection has stored nothing, and another writer may have one.
    fn give_back(&self, jobs: impl Iterator<Item = Job>, error: &DbErr) {
        let Some(queue) = self.queue.upgrade() else { return fail(jobs.collect(), error) };
        for job in jobs {
            job.send.storing.undo();
            if let Err(TrySendError::Full(job) | TrySendError::Closed(job)) = queue.try_send(job) {
                job.answer(Err(StoreError::Full));
            }
        }
    }

    /// Waits for a connection: opening one takes seconds where many processes want the machine, and
    /// whoever opens one must not have taken what another writer could store.
    async fn connect(&self) {
        while self.queue.strong_count() > 0
            && let Err(error) = self.database.step(async |it| it.ping().await).await
        {
            tracing::warn!(%error, "no connection to store messages with");
            sleep(PAUSE).await;
        }
    }

    async fn store_each(&self, jobs: impl Iterator<Item = Job>) {
        for job in jobs {
            Box::pin(self.store(vec![job])).await;
        }
    }

    fn accept(&self, jobs: Vec<Job>, accounts: &HashMap<String, i64>) {
        if jobs.is_empty() {
            return;
        }
        self.stored.notify_one();
        for job in jobs {
            let at = time(accounts.get(job.account().as_str()).copied().unwrap_or_default());
            job.answer(Ok(Enqueued::Accepted { at }));
        }
    }

    /// Refuses, in the order of arrival, those whose counters have no room. Returns the others.
    ///
    /// Of those for later, only what is used up already refuses any.
    async fn ration(&self, jobs: Vec<Job>, later: Vec<Job>) -> (Vec<Job>, Vec<Job>) {
        let counters = jobs.iter().chain(&later).flat_map(|job| &job.send.extra);
        let mut counters = match Counters::read(&self.database, counters).await {
            Ok(counters) => counters,
            Err(error) => {
                fail(jobs, &error);
                fail(later, &error);
                return (Vec::new(), Vec::new());
            }
        };
        let refuse = |job: Job, violations: Vec<Violation>| {
            if violations.is_empty() {
                return Some(job);
            }
            job.answer(Ok(Enqueued::Limited(violations)));
            None
        };
        let later = later.into_iter().filter_map(|job| {
            let violations = counters.violations(&job.send.extra);
            refuse(job, violations)
        });
        let later = later.collect();
        let jobs = jobs.into_iter().filter_map(|job| {
            let violations = counters.take(&job.send.extra);
            refuse(job, violations)
        });
        (jobs.collect(), later)
    }

    /// Tells why their phones refuse them. Returns those for which there is room now, and how much.
    async fn explain(&self, jobs: Vec<Job>) -> (Vec<Job>, Rooms) {
        let mut rooms = Rooms::new();
        if jobs.is_empty() {
            return (jobs, rooms);
        }
        let accounts = match self.accounts(&jobs).await {
            Ok(accounts) => accounts,
            Err(error) => {
                fail(jobs, &error);
                return (Vec::new(), rooms);
            }
        };
        let undecided = jobs.into_iter().filter_map(|job| {
            let NewSend { verification, phone_limits, .. } = &job.send;
            let Some(Known { windows, pending }) = accounts.get(job.account().as_str()) else {
                return Some(job);
            };
            if let Some(pending) = pending
                && verification.origin == Origin::V1
            {
                let pending = Box::new(pending.clone());
                job.answer(Ok(Enqueued::Pending(pending)));
                return None;
            }
            let violations = windows.violations(phone_limits);
            if !violations.is_empty() {
                job.answer(Ok(Enqueued::Limited(violations)));
                return None;
            }
            rooms.insert(job.account(), windows.room(phone_limits));
            Some(job)
        });
        let undecided = undecided.collect();
        (undecided, rooms)
    }

    async fn accounts(&self, jobs: &[Job]) -> Result<HashMap<String, Known>, DbErr> {
        let mut accounts: Vec<String> = jobs.iter().map(|job| job.account().into_text()).collect();
        accounts.sort_unstable();
        accounts.dedup();
        let values = if self.database.is_postgres() {
            vec![accounts.into()]
        } else {
            vec![json!(accounts).to_string().into()]
        };
        let rows = self.database.rows(sql::PHONES, values).await?;
        let read = |row: &QueryResult| {
            let known = Known {
                windows: PhoneWindows::read(row)?,
                pending: verifications::read_if_any(row)?,
            };
            Ok((row.try_get("", "account")?, known))
        };
        rows.iter().map(read).collect()
    }

    async fn insert(&self, turn: &Turn) -> Result<Inserted, DbErr> {
        let patience = self.settings.patience;
        if self.database.is_postgres() {
            self.database
                .step_within(patience, async |it| self.insert_postgres(it, turn).await)
                .await
        } else {
            self.database.step_within(patience, async |it| self.insert_sqlite(it, turn).await).await
        }
    }

    /// One round trip; with counters it is a transaction, which ends before it is committed where
    /// one is over its quota.
    async fn insert_postgres(
        &self,
        connection: DatabaseConnection,
        turn: &Turn,
    ) -> Result<Inserted, DbErr> {
        let counters = turn.jobs.iter().any(|job| !job.send.extra.is_empty());
        let mut values = postgres_values(turn);
        if counters {
            values.extend(postgres_counters(&turn.jobs));
        }
        let sql = sql::start(counters, self.settings.events);
        let statement = self.database.as_written(&sql, values);
        if !counters {
            return Inserted::read(&connection.query_all_raw(statement).await?, true);
        }
        let transaction = begin(&connection).await?;
        let rows = transaction.query_all_raw(statement).await?;
        let holds = rows.first().map_or(Ok(true), |row| row.try_get("", "holds"))?;
        if holds {
            transaction.commit().await?;
        } else {
            transaction.rollback().await?;
        }
        Inserted::read(&rows, holds)
    }

    async fn insert_sqlite(
        &self,
        connection: DatabaseConnection,
        turn: &Turn,
    ) -> Result<Inserted, DbErr> {
        let transaction = begin(&connection).await?;
        let now = clock(&transaction).await?;
        let run = async |sql, rows: serde_json::Value| {
            let values = vec![rows.to_string().into(), now.into()];
            transaction.query_all_raw(self.database.as_written(sql, values)).await
        };
        let wanted = turn.accounts.iter().map(Wanted::as_json).collect();
        let rows = run(sql::COUNT_ON_PHONES, wanted).await?;
        let accounts = rows.iter().map(|row| Ok((row.try_get("", "account")?, now)));
        let accounts = accounts.collect::<Result<HashMap<String, i64>, DbErr>>()?;
        let is_through = |job: &&Job| accounts.contains_key(job.account().as_str());
        let through = || turn.jobs.iter().filter(is_through);

        let counters: Vec<_> = through().flat_map(|job| &job.send.extra).map(counter_row).collect();
        if !counters.is_empty() {
            for row in run(COUNT_SQLITE, counters.into()).await? {
                if !row.try_get::<bool>("", "holds")? {
                    transaction.rollback().await?;
                    return Ok(Inserted { accounts, holds: false });
                }
            }
        }
        let mut sequences = HashMap::new();
        for row in run(sql::STORE, through().map(Job::message_as_json).collect()).await? {
            sequences.insert(row.try_get::<String>("", "id")?, row.try_get::<i64>("", "sequence")?);
        }
        let created = through().map(|job| job.verification_as_json(&sequences)).collect();
        run(sql::CREATE, created).await?;
        if self.settings.events {
            let ids = through().map(|job| json!([job.verification().as_uuid().to_string()]));
            run(sql::TELL, ids.collect()).await?;
        }
        transaction.commit().await?;
        Ok(Inserted { accounts, holds: true })
    }
}

impl Job {
    fn account(&self) -> Account {
        Account::of(&self.send.phone, self.send.apart)
    }

    fn verification(&self) -> VerificationId {
        VerificationId::of(self.send.message.id)
    }

    /// Whether the job is to be stored. A caller that has gone was told nothing, and most likely
    /// comes back.
    fn is_wanted(&self) -> bool {
        self.send.storing.begin();
        let is_wanted = !self.answer.is_closed();
        if !is_wanted {
            self.send.storing.undo();
        }
        is_wanted
    }

    fn answer(self, answer: Result<Enqueued, StoreError>) {
        let may_be_stored =
            matches!(answer, Ok(Enqueued::Accepted { .. }) | Err(StoreError::Unavailable(_)));
        if !may_be_stored {
            self.send.storing.undo();
        }
        // The caller may have gone meanwhile.
        let _ = self.answer.send(answer);
    }

    fn message_as_json(&self) -> serde_json::Value {
        let NewSend { message, ttl, trace, .. } = &self.send;
        json!([
            message.id.to_string(),
            message.phone.as_str(),
            message.code.as_text(),
            trace.as_str(),
            millis(*ttl),
        ])
    }

    fn verification_as_json(&self, sequences: &HashMap<String, i64>) -> serde_json::Value {
        let NewSend { message, phone, ttl, verification: new, .. } = &self.send;
        json!([
            self.verification().as_uuid().to_string(),
            phone.as_str(),
            new.origin.as_str(),
            new.region.map(|region| region.as_str().to_owned()),
            hex(new.secret.code_hash.as_bytes()),
            hex(new.secret.seed.as_bytes()),
            new.secret.pepper.as_str(),
            new.code_length.get(),
            new.template.as_ref().map(TemplateKey::as_str),
            new.metadata.as_ref().map(Metadata::as_str),
            new.api_key.map(|id| id.as_uuid().to_string()),
            sequences.get(&message.id.to_string()),
            millis(*ttl),
        ])
    }
}

impl Turn {
    /// Takes what goes together, in the order of arrival; the rest is for later.
    fn of(jobs: Vec<Job>, rooms: &Rooms) -> (Self, Vec<Job>) {
        let mut places: HashMap<Account, usize> = HashMap::with_capacity(jobs.len());
        let (mut turn, mut later) = (Self::default(), Vec::new());
        for job in jobs {
            let exclusive = job.send.verification.origin == Origin::V1;
            let windows = &job.send.phone_limits;
            let account = job.account();
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
                (wanted.newest, wanted.ttl) = (job.verification(), job.send.ttl);
            } else {
                places.insert(account.clone(), turn.accounts.len());
                turn.accounts.push(Wanted {
                    account,
                    newest: job.verification(),
                    ttl: job.send.ttl,
                    exclusive,
                    sends: 1,
                    windows: window_params(windows),
                });
            }
            turn.jobs.push(job);
        }
        (turn, later)
    }
}

impl Wanted {
    fn as_json(&self) -> serde_json::Value {
        let [(quota_1, period_1), (quota_2, period_2), (quota_3, period_3)] = self.windows;
        json!([
            self.account.as_str(),
            self.newest.as_uuid().to_string(),
            millis(self.ttl),
            i32::from(self.exclusive),
            self.sends,
            quota_1,
            period_1,
            quota_2,
            period_2,
            quota_3,
            period_3,
            !self.exclusive,
        ])
    }
}

impl Inserted {
    fn read(rows: &[QueryResult], holds: bool) -> Result<Self, DbErr> {
        let account =
            |row: &QueryResult| Ok((row.try_get("", "account")?, row.try_get("", "accepted_at")?));
        let accounts = rows.iter().map(account).collect::<Result<_, DbErr>>()?;
        Ok(Self { accounts, holds })
    }
}

// An array of a statement cannot hold nulls: what is absent is an empty text or the nil UUID.
fn postgres_values(turn: &Turn) -> Vec<Value> {
    let new = || turn.jobs.iter().map(|job| &job.send);
    let text = |read: fn(&NewSend) -> String| Value::from(new().map(read).collect::<Vec<_>>());
    let wanted = || turn.accounts.iter();
    let mut values = vec![
        new().map(|new| new.message.id.as_uuid()).collect::<Vec<Uuid>>().into(),
        turn.jobs.iter().map(|job| job.verification().as_uuid()).collect::<Vec<Uuid>>().into(),
        text(|new| new.message.phone.as_str().to_owned()),
        text(|new| new.message.code.as_text().into_owned()),
        text(|new| new.trace.as_str().to_owned()),
        new().map(|new| millis(new.ttl)).collect::<Vec<i64>>().into(),
        text(|new| new.verification.origin.as_str().to_owned()),
        text(|new| new.verification.region.map(|it| it.as_str().to_owned()).unwrap_or_default()),
        text(|new| hex(new.verification.secret.code_hash.as_bytes())),
        text(|new| hex(new.verification.secret.seed.as_bytes())),
        text(|new| new.verification.secret.pepper.as_str().to_owned()),
        new().map(|new| code_length(new.verification.code_length)).collect::<Vec<i16>>().into(),
        text(|new| {
            let template = new.verification.template.as_ref();
            template.map(|it| it.as_str().to_owned()).unwrap_or_default()
        }),
        text(|new| {
            let metadata = new.verification.metadata.as_ref();
            metadata.map(|it| it.as_str().to_owned()).unwrap_or_default()
        }),
        new()
            .map(|new| new.verification.api_key.map_or(Uuid::nil(), ApiKeyId::as_uuid))
            .collect::<Vec<Uuid>>()
            .into(),
        text(|new| new.phone.as_str().to_owned()),
        turn.jobs.iter().map(|job| job.account().into_text()).collect::<Vec<_>>().into(),
        wanted().map(|it| it.account.as_str().to_owned()).collect::<Vec<_>>().into(),
        wanted().map(|it| it.newest.as_uuid()).collect::<Vec<Uuid>>().into(),
        wanted().map(|it| millis(it.ttl)).collect::<Vec<i64>>().into(),
        wanted().map(|it| i32::from(it.exclusive)).collect::<Vec<i32>>().into(),
        wanted().map(|it| it.sends.cast_signed()).collect::<Vec<i32>>().into(),
    ];
    for place in 0..3 {
        values.extend([
            Value::from(wanted().map(|it| it.windows[place].0).collect::<Vec<i32>>()),
            Value::from(wanted().map(|it| it.windows[place].1).collect::<Vec<i64>>()),
        ]);
    }
    values
}

fn postgres_counters(jobs: &[Job]) -> [Value; 5] {
    let counters =
        || jobs.iter().flat_map(|job| job.send.extra.iter().map(move |counter| (job, counter)));
    let text = |read: fn((&Job, &Counter)) -> String| counters().map(read).collect::<Vec<_>>();
    [
        text(|(job, _)| job.account().into_text()).into(),
        text(|(_, counter)| counter.policy.name.as_str().to_owned()).into(),
        text(|(_, counter)| counter.key.clone()).into(),
        counters()
            .map(|(_, counter)| counter.policy.window.quota.cast_signed())
            .collect::<Vec<i32>>()
            .into(),
        counters()
            .map(|(_, counter)| millis(counter.policy.window.period))
            .collect::<Vec<i64>>()
            .into(),
    ]
}

pub(crate) fn code_length(length: CodeLength) -> i16 {
    i16::try_from(length.get()).unwrap_or(i16::MAX)
}

fn fail(jobs: Vec<Job>, error: &DbErr) {
    tracing::warn!(messages = jobs.len(), %error, "messages not stored");
    let is_refused = is_about_a_row(error);
    for job in jobs {
        if is_refused {
            job.send.storing.undo();
        }
        let cause = error.to_string().into();
        job.answer(Err(StoreError::Unavailable(cause)));
    }
}
