use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sea_orm::FromQueryResult;

use crate::database::{Database, DatabaseError, Sql};

/// The low watermark of the outbox, at which readers begin (ADR 30). Rows that were relayed stay in
/// the index until PostgreSQL vacuums, and each read from the start would pass all of them.
#[derive(Debug, Clone)]
pub(super) struct Watermark {
    database: Database,
    oldest: Arc<Mutex<Option<Oldest>>>,
    insert_limit: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Oldest {
    sequence: i64,
    /// The time at which the relay reads the watermark again: a message may have come back to the
    /// outbox below it.
    until: Instant,
    drawn: Drawn,
    /// A sequence that was drawn longer ago than an insert may take. All up to it are committed, or
    /// never will be.
    decided: i64,
}

/// The latest sequence that had been drawn at a time.
#[derive(Debug, Clone, Copy)]
struct Drawn {
    at: Instant,
    sequence: i64,
}

/// How long a watermark holds: [`HOLDS_TIMES`] as long as it took to find, within these bounds. The
/// upper one is how long a message that came back below it may wait.
const HOLDS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
const HOLDS_TIMES: u32 = 20;

/// More than a statement that stores messages may take (`statement_timeout`).
const INSERT_LIMIT: Duration = Duration::from_secs(15);

impl Watermark {
    pub(super) fn new(database: Database) -> Self {
        Self { database, oldest: Arc::default(), insert_limit: INSERT_LIMIT }
    }

    #[cfg(test)]
    pub(super) fn with_insert_limit(self, insert_limit: Duration) -> Self {
        Self { insert_limit, ..self }
    }

    /// Returns a sequence below which nothing is left to publish.
    pub(super) async fn sequence(&self) -> Result<i64, DatabaseError> {
        // An index of SQLite has no deleted rows.
        if !self.database.is_postgres() {
            return Ok(0);
        }
        let begun = Instant::now();
        let known = *self.known();
        if let Some(Oldest { sequence, .. }) = known.filter(|known| begun < known.until) {
            return Ok(sequence);
        }
        let row: Option<Row> = self.database.row(&OLDEST, self.database.parameters()).await?;
        let (oldest, latest) = row
            .map(|row| (row.oldest.unwrap_or_default(), row.drawn.unwrap_or_default()))
            .unwrap_or_default();
        let now = Instant::now();
        let drawn = Drawn { at: now, sequence: latest };
        let (drawn, decided) = match known {
            Some(known) if begun - known.drawn.at < self.insert_limit => {
                (known.drawn, known.decided)
            }
            Some(known) => (drawn, known.drawn.sequence),
            None => (drawn, 0),
        };
        let sequence = oldest.min(decided);
        let [least, most] = HOLDS;
        let until = begun + ((now - begun) * HOLDS_TIMES).clamp(least, most);
        *self.known() = Some(Oldest { sequence, until, drawn, decided });
        Ok(sequence)
    }

    /// Looks it up again next time: a message may have come back below it.
    pub(super) fn look_again(&self) {
        if let Some(oldest) = &mut *self.known() {
            oldest.until = Instant::now();
        }
    }

    fn known(&self) -> MutexGuard<'_, Option<Oldest>> {
        self.oldest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(FromQueryResult)]
struct Row {
    oldest: Option<i64>,
    drawn: Option<i64>,
}

// An outbox without rows begins with the next sequence.
static OLDEST: Sql = Sql::new(
    "
SELECT coalesce((SELECT min(sequence) FROM outbox), drawn + 1) AS oldest, drawn
FROM (SELECT pg_sequence_last_value('outbox_sequence_seq') AS drawn) AS it",
);
