mod sql;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use application::ports::{EnqueueError, Enqueued, NewSend, Outbox};
use autometrics::autometrics;
use sea_orm::{ConnectionTrait, DbErr, RuntimeErr, Value, sqlx};
use tokio::{
    sync::{
        Mutex, Notify,
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    task::JoinSet,
    time::timeout,
};
use uuid::Uuid;

use crate::database::{Database, Sql, millis, time};

/// The outbox as the API writes to it: requests that wait together are committed together.
///
/// A few writers take what is queued and insert it as one statement, and the callers hear of it
/// when that has been committed. There is no timer: while one batch is being committed the next
/// gathers. A full queue is refused at once.
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
}

impl Default for OutboxSettings {
    fn default() -> Self {
        Self { queue: 10_000, writers: 2, batch: 256, patience: Duration::from_secs(5) }
    }
}

#[derive(Debug)]
struct Job {
    send: NewSend,
    answer: oneshot::Sender<Result<Enqueued, EnqueueError>>,
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
    async fn enqueue(&self, send: NewSend) -> Result<Enqueued, EnqueueError> {
        let (answer, stored) = oneshot::channel();
        self.queue.try_send(Job { send, answer }).map_err(|error| match error {
            TrySendError::Full(_) => EnqueueError::Full,
            TrySendError::Closed(_) => EnqueueError::Unavailable("the writers are gone".into()),
        })?;
        match timeout(self.patience, stored).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(EnqueueError::Unavailable("the writer is gone".into())),
            Err(_) => Err(EnqueueError::Unavailable("no commit in time".into())),
        }
    }
}

struct Writer {
    database: Database,
    jobs: Arc<Mutex<mpsc::Receiver<Job>>>,
    settings: OutboxSettings,
    stored: Arc<Notify>,
}

impl Writer {
    async fn run(self) {
        let mut jobs = Vec::with_capacity(self.settings.batch);
        while self.jobs.lock().await.recv_many(&mut jobs, self.settings.batch).await > 0 {
            // Whoever has gone was told nothing, and most likely comes back.
            jobs.retain(|job| !job.answer.is_closed());
            self.store(&mut jobs).await;
            jobs.clear();
        }
    }

    async fn store(&self, jobs: &mut Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        match self.insert(jobs).await {
            Ok(at) => {
                self.stored.notify_one();
                for job in jobs.drain(..) {
                    // The caller may have gone meanwhile.
                    let _ = job.answer.send(Ok(Enqueued::Accepted { at }));
                }
            }
            Err(error) if is_about_a_row(&error) && jobs.len() > 1 => {
                for job in jobs.drain(..) {
                    Box::pin(self.store(&mut vec![job])).await;
                }
            }
            Err(error) => {
                tracing::warn!(messages = jobs.len(), %error, "messages not stored");
                for job in jobs.drain(..) {
                    let cause = error.to_string().into();
                    let _ = job.answer.send(Err(EnqueueError::Unavailable(cause)));
                }
            }
        }
    }

    /// Says when they were accepted.
    async fn insert(&self, jobs: &[Job]) -> Result<SystemTime, DbErr> {
        let values =
            if self.database.is_postgres() { postgres_values(jobs) } else { sqlite_values(jobs) };
        let statement = self.database.statement(INSERT, values);
        let patience = self.settings.patience;
        self.database
            .step_within(patience, async |it| {
                let rows = it.query_all_raw(statement).await?;
                let row = rows.first().ok_or(DbErr::RecordNotInserted)?;
                row.try_get("", "accepted_at").map(time)
            })
            .await
    }
}

const INSERT: Sql = Sql {
    postgres: "
INSERT INTO outbox (id, phone, code, trace, expires_at)
SELECT id, phone, code, trace, now() + ttl * interval '1 millisecond'
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bigint[])
    AS new (id, phone, code, trace, ttl)
RETURNING (extract(epoch FROM accepted_at) * 1000)::bigint AS accepted_at",
    sqlite: "
INSERT INTO outbox (id, phone, code, trace, accepted_at, expires_at)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, clock.now, clock.now + (value ->> 4)
FROM json_each($1), (SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now) AS clock
ORDER BY key
RETURNING accepted_at",
};

fn postgres_values(jobs: &[Job]) -> Vec<Value> {
    let new = || jobs.iter().map(|job| &job.send);
    vec![
        new().map(|new| new.message.id.as_uuid()).collect::<Vec<Uuid>>().into(),
        new().map(|new| new.message.phone.as_str().to_owned()).collect::<Vec<_>>().into(),
        new().map(|new| new.message.code.as_text().into_owned()).collect::<Vec<_>>().into(),
        new().map(|new| new.trace.as_str().to_owned()).collect::<Vec<_>>().into(),
        new().map(|new| millis(new.ttl)).collect::<Vec<i64>>().into(),
    ]
}

fn sqlite_values(jobs: &[Job]) -> Vec<Value> {
    let rows: serde_json::Value = jobs
        .iter()
        .map(|Job { send: NewSend { message, ttl, trace, .. }, .. }| {
            serde_json::json!([
                message.id.to_string(),
                message.phone.as_str(),
                message.code.as_text(),
                trace.as_str(),
                millis(*ttl),
            ])
        })
        .collect();
    vec![rows.to_string().into()]
}

/// Whether the database refuses what a row says, rather than being out of order: SQLSTATE classes
/// 22 and 23 of PostgreSQL, `SQLITE_CONSTRAINT` (19, in the low byte) of SQLite.
fn is_about_a_row(error: &DbErr) -> bool {
    let (DbErr::Exec(RuntimeErr::SqlxError(cause)) | DbErr::Query(RuntimeErr::SqlxError(cause))) =
        error
    else {
        return false;
    };
    let sqlx::Error::Database(refusal) = &**cause else { return false };
    refusal.code().is_some_and(|code| match code.len() {
        5 => code.starts_with("22") || code.starts_with("23"),
        _ => code.parse::<u32>().is_ok_and(|code| code & 0xff == 19),
    })
}
