//! Moves messages of the Go service from its table to the outbox, and back (ADR 73).

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use autometrics::autometrics;
use domain::{CarriedCode, Code, Message, MessageId, PhoneNumber};
use rand_core::CryptoRng;

use crate::{
    TraceParent, Vault, VaultClosed,
    ports::{
        GivingBack, GoRow, GoTable, Ids, MessageStream, StartFrom, StoreError, Stored, StreamError,
        Taking,
    },
};

/// The most rows of one commit.
const BATCH: usize = 1_000;

/// How many ids one statement looks through. The table has no index on the state of its rows.
const PART: i64 = 50_000;

/// How far the clock that dates records may be behind the one that dates rows.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);

/// Takes rows over that the Go processor has never claimed.
#[derive(Debug)]
pub struct TakeOver<T, R> {
    table: T,
    messages: Messages<R>,
}

/// Takes rows over that the Go processor claimed before it was stopped.
#[derive(Debug)]
pub struct TakeOverClaimed<T, S, R> {
    table: T,
    messages: Messages<R>,
    /// The topic of the Go service.
    stream: S,
}

/// Gives messages back to the Go service that were never published.
#[derive(Debug)]
pub struct GiveBack<T> {
    table: T,
}

/// The reason why messages were not given back.
#[derive(Debug, thiserror::Error)]
pub enum GiveBackError {
    #[error(
        "a processor relays the outbox, or was killed: start one if none runs, and stop all of them"
    )]
    Relayed,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The result of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TakenOver {
    pub taken: u64,
    /// Rows whose messages were in the topic. They are `done` now.
    pub published: u64,
    /// The id after which the next batch begins. `None` if this was the last batch.
    pub next: Option<i64>,
}

/// The reason why rows were not taken over. A batch that was committed before stays taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    #[error("the table of the Go service could not be read or changed")]
    Store(#[from] StoreError),
    #[error("the topic of the Go service could not be read")]
    Stream(#[from] StreamError),
    #[error("the topic of the Go service does not exist")]
    NoTopic,
    #[error("the Go processor is still working: it has just claimed rows")]
    StillWorking,
    #[error(transparent)]
    Closed(#[from] VaultClosed),
}

/// Makes messages of rows.
#[derive(Debug)]
struct Messages<R> {
    vault: Vault,
    rng: Mutex<R>,
}

impl<T: GoTable, R: CryptoRng + Send + 'static> TakeOver<T, R> {
    /// `rng` must be seeded from the operating system: codes are sealed with it.
    pub fn new(table: T, vault: Vault, rng: R) -> Self {
        Self { table, messages: Messages::new(vault, rng) }
    }

    /// Takes over one batch of `ids`, in one commit. A row without a valid message is left.
    ///
    /// After a crash, a row is either `new` or in the outbox.
    #[autometrics(struct_name = "TakeOver")]
    pub async fn execute(&self, ids: Ids) -> Result<TakenOver, TakeOverError> {
        let part = Ids { last: ids.after.saturating_add(PART).min(ids.last), ..ids };
        let rows = self.table.waiting(part, false, BATCH).await?;
        let next = match rows.last() {
            Some(row) if rows.len() >= BATCH => row.id,
            _ => part.last,
        };
        let rows = self.messages.of(rows)?;
        let taken = if rows.is_empty() { 0 } else { self.table.take(&rows).await? };
        Ok(TakenOver { taken, published: 0, next: (next < ids.last).then_some(next) })
    }
}

impl<T: GoTable, S: MessageStream, R: CryptoRng + Send + 'static> TakeOverClaimed<T, S, R> {
    /// `rng` must be seeded from the operating system: codes are sealed with it.
    pub fn new(table: T, stream: S, vault: Vault, rng: R) -> Self {
        Self { table, messages: Messages::new(vault, rng), stream }
    }

    /// Returns the rows that the Go processor has claimed.
    pub async fn claimed(&self, ids: Ids) -> Result<Vec<GoRow>, StoreError> {
        let mut claimed = Vec::new();
        for mut part in ids.parts(PART) {
            loop {
                let rows = self.table.waiting(part, true, BATCH).await?;
                let is_last = rows.len() < BATCH;
                claimed.extend(rows);
                match claimed.last() {
                    Some(row) if !is_last => part.after = row.id,
                    _ => break,
                }
            }
        }
        Ok(claimed)
    }

    /// Takes over the rows of `ids` that the Go processor had claimed already when `before` was
    /// read. A row whose message is in the topic becomes `done` instead.
    ///
    /// The Go processor must be stopped. Nothing is taken over if it has claimed a row since `before`;
    /// the caller therefore waits for longer than the processor does between two claims. Each batch
    /// is one commit.
    #[autometrics(struct_name = "TakeOverClaimed")]
    pub async fn execute(&self, ids: Ids, before: &[GoRow]) -> Result<TakenOver, TakeOverError> {
        let claimed = self.claimed(ids).await?;
        let before: HashSet<_> = before.iter().map(|row| (row.id, row.reserved_to)).collect();
        if claimed.iter().any(|row| !before.contains(&(row.id, row.reserved_to))) {
            return Err(TakeOverError::StillWorking);
        }
        let published = self.published(&claimed).await?;
        let (published, rows): (Vec<_>, Vec<_>) =
            claimed.into_iter().partition(|row| published.contains(&row.id));
        let rows = self.messages.of(rows)?;
        let mut done = TakenOver::default();
        for rows in published.chunks(BATCH) {
            done.published += self.table.mark_done(rows).await?;
        }
        for rows in rows.chunks(BATCH) {
            done.taken += self.table.take(rows).await?;
        }
        Ok(done)
    }

    /// Returns the ids of the rows whose phone and code are in a record of the topic. Of several rows
    /// with the same phone and code, as many as there are records.
    async fn published(&self, rows: &[GoRow]) -> Result<HashSet<i64>, TakeOverError> {
        let mut wanted: HashMap<_, VecDeque<i64>> = HashMap::new();
        for row in rows {
            if let Ok((phone, code)) = &row.content {
                let content = (phone.clone(), code.as_str().to_owned());
                wanted.entry(content).or_default().push_back(row.id);
            }
        }
        let Some(oldest) = rows.iter().map(|row| row.accepted_at).min() else {
            return Ok(HashSet::new());
        };
        let partitions = self.stream.partitions().await?;
        if partitions.is_empty() {
            return Err(TakeOverError::NoTopic);
        }
        let mut found = HashSet::new();
        for partition in partitions {
            let end = self.stream.first_offset(partition, StartFrom::Latest).await?;
            let since = StartFrom::Since(oldest - CLOCKS_DIFFER);
            let mut offset = self.stream.first_offset(partition, since).await?;
            while offset < end {
                let fetched = self.stream.fetch(partition, offset).await?;
                let contents = fetched.records.into_iter().filter_map(|it| it.content.ok());
                for Message { phone, code, .. } in contents.map(|it| it.message) {
                    if let CarriedCode::Clear { code, .. } = code {
                        // A record is of one row, the oldest first.
                        let rows = wanted.get_mut(&(phone, code.as_str().to_owned()));
                        found.extend(rows.and_then(VecDeque::pop_front));
                    }
                }
                offset = fetched.next_offset;
            }
        }
        Ok(found)
    }
}

impl<T: GoTable> GiveBack<T> {
    pub fn new(table: T) -> Self {
        Self { table }
    }

    /// Gives back each message of `ids` that is in the outbox and was never published. Returns how
    /// many. Each batch is one commit: after a crash, a message is either in the outbox
    /// or its row is `new`.
    ///
    /// The id of a message tells which row it came from.
    #[autometrics(struct_name = "GiveBack")]
    pub async fn execute(&self, ids: Ids) -> Result<u64, GiveBackError> {
        let mut unpublished = HashMap::new();
        let mut after = 0;
        loop {
            let stored = self.table.unpublished(after, BATCH).await?;
            let stored = stored.ok_or(GiveBackError::Relayed)?;
            unpublished.extend(stored.iter().map(|Stored { sequence, id }| (*id, *sequence)));
            match stored.last() {
                Some(last) if stored.len() >= BATCH => after = last.sequence,
                _ => break,
            }
        }
        let mut given = 0;
        for part in ids.parts(PART) {
            let rows = self.table.done(part).await?.into_iter();
            let rows: Vec<_> = rows
                .filter_map(|(row, id)| {
                    unpublished.get(&id).map(|sequence| GivingBack { row, sequence: *sequence })
                })
                .collect();
            for rows in rows.chunks(BATCH) {
                given += self.table.give_back(rows).await?.ok_or(GiveBackError::Relayed)?;
            }
        }
        Ok(given)
    }
}

impl<R: CryptoRng> Messages<R> {
    fn new(vault: Vault, rng: R) -> Self {
        Self { vault, rng: Mutex::new(rng) }
    }

    /// Returns the rows that are messages. Other rows are left as they are.
    fn of(&self, rows: Vec<GoRow>) -> Result<Vec<Taking>, VaultClosed> {
        let taking = |row: GoRow| {
            let (phone, code) = row.content.clone().ok()?;
            Some(self.taking(row, phone, &code))
        };
        rows.into_iter().filter_map(taking).collect()
    }

    fn taking(&self, row: GoRow, phone: PhoneNumber, code: &Code) -> Result<Taking, VaultClosed> {
        let keys = self.vault.keys().ok_or(VaultClosed)?;
        // A generator is consistent between two draws, so a panic elsewhere does not damage it.
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        let id = MessageId::of_go_row(row.id, row.created_at);
        let code = match &keys.payload {
            Some(keys) => {
                let mut nonce = [0; 24];
                rng.fill_bytes(&mut nonce);
                keys.seal(id, &phone, code, None, nonce)
            }
            None => code.clone().into(),
        };
        let trace = TraceParent::generate(&mut *rng);
        Ok(Taking { row, message: Message { id, phone, code }, trace })
    }
}
