//! The story of a verification, a message or a phone, for an operator.
//!
//! Everything is read by primary keys, but for two kinds of rows: rows of `outbox`, `event` and
//! `dead_letter`, which leave soon, and of which [`LOOKED_AT`] are looked at; and the
//! verifications and messages of a phone, which have no index by phone ([`walk`]).

mod rows;
pub(crate) mod walk;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use application::ports::{StoreError, Verification, Verifications};
use domain::{GatewayName, MessageId, PhoneNumber, VerificationId};

use self::rows::{AWAITED, DEAD_LETTERS, ENTRIES, EVENTS, EXTRA, WAITING};
use crate::{
    SqlVerifications,
    database::{Database, DatabaseError, Parameters, since_1970},
};

/// The rows of a table whose rows leave soon that are looked at.
pub const LOOKED_AT: u64 = 10_000;

/// Tells what the database knows of messages.
#[derive(Debug, Clone)]
pub struct SqlStories {
    database: Database,
}

/// What is known of a verification and its messages, or of a message that has no verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Story {
    /// `None` if it was removed, or never was.
    pub verification: Option<Verification>,
    /// By id.
    pub messages: Vec<MessageStory>,
    /// Events that wait to be posted.
    pub events: Vec<UnpostedEvent>,
}

/// What is known of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageStory {
    pub id: MessageId,
    /// Where it waits before a consumer takes it over.
    pub waiting: Option<WaitingMessage>,
    /// One for each group that took it over, and one without a group if it expired before.
    pub entries: Vec<LedgerEntry>,
    /// Why it was sent, if no caller asked for it.
    pub extra: Option<ExtraMessage>,
    /// The receipt without which the code is sent again.
    pub awaited: Option<Awaited>,
    /// The newest dead letters that may be this message: they were recorded after its acceptance in a
    /// partition of its phone. Only of a message that no group has.
    pub dead_letters: Vec<i64>,
}

/// A message in the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingMessage {
    pub phone: PhoneNumber,
    pub accepted_at: SystemTime,
    pub expires_at: SystemTime,
    /// Whether the relay has stored that it published the message.
    pub is_published: bool,
}

/// What one group did with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerEntry {
    /// Empty if the message expired before a group had it.
    pub group: String,
    pub topic: String,
    pub partition: i32,
    pub phone: PhoneNumber,
    /// As it is stored: `pending`, `calling`, `sent`, `failed`, `expired` or `unknown`.
    pub state: String,
    pub accepted_at: SystemTime,
    pub admitted_at: Option<SystemTime>,
    pub expires_at: SystemTime,
    /// Of a pending entry, when it is called next; of one that is calling, when the call must have
    /// ended.
    pub due_at: SystemTime,
    /// When the call in progress began.
    pub called_at: Option<SystemTime>,
    pub ended_at: Option<SystemTime>,
    /// The gateway of the call in progress, or of the last one.
    pub gateway: Option<String>,
    /// The provider's id of the message.
    pub reference: Option<String>,
    pub detail: Option<String>,
    pub delivered_at: Option<SystemTime>,
    pub undelivered_at: Option<SystemTime>,
    /// The calls that have ended, in their order.
    pub calls: Vec<EndedCall>,
}

/// A call of a gateway, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedCall {
    pub gateway: String,
    pub outcome: String,
    pub detail: String,
    pub called_at: Option<SystemTime>,
    pub ended_at: Option<SystemTime>,
}

/// Why a message was sent that no caller asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraMessage {
    /// The gateway of the message before it.
    pub gateway: GatewayName,
    pub reason: String,
    pub sent_at: SystemTime,
}

/// A receipt that is awaited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Awaited {
    pub gateway: GatewayName,
    pub due_at: SystemTime,
}

/// An event that was not taken yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpostedEvent {
    pub kind: String,
    pub at: SystemTime,
    pub due_at: SystemTime,
    pub attempts: u64,
}

/// What is known of a phone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhoneStories {
    /// The newest first.
    pub stories: Vec<Story>,
    /// Whether there are more than were asked for.
    pub has_more: bool,
    pub looked: Looked,
}

/// How far verifications and the ledger were looked through, the newest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Looked {
    pub rows: u64,
    /// Whether all rows were looked at.
    pub everywhere: bool,
}

/// The ids of a verification and all of its messages, or of one message.
#[derive(Debug, Clone, Copy)]
struct Ids {
    first: MessageId,
    last: MessageId,
}

impl SqlStories {
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    /// Returns the story of a verification and all of its messages. `None` if nothing is known.
    pub async fn of_verification(&self, id: VerificationId) -> Result<Option<Story>, StoreError> {
        let ids = Ids { first: MessageId::from_uuid(id.as_uuid()), last: id.message(u8::MAX) };
        self.story(Some(id), ids).await
    }

    /// Returns the story of one message, with its verification. `None` if nothing is known of the
    /// message.
    pub async fn of_message(&self, id: MessageId) -> Result<Option<Story>, StoreError> {
        let verification = VerificationId::number_of(id).map(|_| VerificationId::of(id));
        let story = self.story(verification, Ids { first: id, last: id }).await?;
        Ok(story.filter(|story| !story.messages.is_empty()))
    }

    /// Returns up to `limit` stories of a phone. Looks at up to `most` rows of each table;
    /// `progress` gets the number of rows so far.
    pub async fn of_phone(
        &self,
        phone: &PhoneNumber,
        limit: usize,
        most: u64,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<PhoneStories, StoreError> {
        let (found, looked) = walk::of_phone(&self.database, phone, most, progress).await?;
        // Messages that another producer wrote belong to no verification.
        let (ours, foreign): (Vec<MessageId>, Vec<MessageId>) = found.into_iter().partition(|id| {
            let is_verification = id.as_uuid().as_bytes()[15] == 0;
            is_verification || VerificationId::number_of(*id).is_some()
        });
        let ours: BTreeSet<VerificationId> = ours.into_iter().map(VerificationId::of).collect();
        let has_more = ours.len() + foreign.len() > limit;
        let mut stories = Vec::new();
        for id in ours.into_iter().rev().take(limit) {
            stories.extend(self.of_verification(id).await?);
        }
        for id in foreign.into_iter().take(limit.saturating_sub(stories.len())) {
            stories.extend(self.of_message(id).await?);
        }
        Ok(PhoneStories { stories, has_more, looked })
    }

    async fn story(
        &self,
        id: Option<VerificationId>,
        ids: Ids,
    ) -> Result<Option<Story>, StoreError> {
        let verification = match id {
            Some(id) => SqlVerifications::new(self.database.clone()).find(id).await?,
            None => None,
        };
        let messages = self.messages(ids).await?;
        if verification.is_none() && messages.is_empty() {
            return Ok(None);
        }
        let events = match id {
            Some(id) => self.events(id).await?,
            None => Vec::new(),
        };
        Ok(Some(Story { verification, messages, events }))
    }

    async fn messages(&self, ids: Ids) -> Result<Vec<MessageStory>, DatabaseError> {
        let database = &self.database;
        let mut messages: BTreeMap<MessageId, MessageStory> = BTreeMap::new();
        let mut of = |id: MessageId, add: &mut dyn FnMut(&mut MessageStory)| {
            add(messages.entry(id).or_insert_with(|| MessageStory::new(id)));
        };
        for row in database.rows::<rows::WaitingRow>(&WAITING, self.range(ids)).await? {
            let (id, waiting) = row.read()?;
            of(id, &mut |message| message.waiting = Some(waiting.clone()));
        }
        for row in database.rows::<rows::EntryRow>(&ENTRIES, self.range(ids)).await? {
            let (id, entry) = row.read()?;
            of(id, &mut |message| message.entries.push(entry.clone()));
        }
        for row in database.rows::<rows::ExtraRow>(&EXTRA, self.range(ids)).await? {
            let (id, extra) = row.read()?;
            of(id, &mut |message| message.extra = Some(extra.clone()));
        }
        for row in database.rows::<rows::AwaitedRow>(&AWAITED, self.range(ids)).await? {
            let (id, awaited) = row.read()?;
            of(id, &mut |message| message.awaited = Some(awaited.clone()));
        }
        let mut messages: Vec<MessageStory> = messages.into_values().collect();
        for message in &mut messages {
            if let Some(waiting) = message.waiting.as_ref().filter(|_| message.entries.is_empty()) {
                message.dead_letters = self.dead_letters(waiting).await?;
            }
        }
        Ok(messages)
    }

    /// Returns the newest dead letters in the partitions that records of the phone are in.
    async fn dead_letters(&self, waiting: &WaitingMessage) -> Result<Vec<i64>, DatabaseError> {
        let since = since_1970(waiting.accepted_at);
        let parameters = self.database.parameters().with("since", since);
        let rows: Vec<rows::DeadLetterRow> = self.database.rows(&DEAD_LETTERS, parameters).await?;
        let key = adapters_wire::key_of(&waiting.phone);
        let is_in_its_partition = |row: &rows::DeadLetterRow| {
            let partitions = usize::try_from(row.partitions).unwrap_or(1);
            adapters_wire::partition_of(key.as_bytes(), partitions) == row.partition
        };
        Ok(rows.iter().filter(|row| is_in_its_partition(row)).map(|row| row.id).take(10).collect())
    }

    async fn events(&self, id: VerificationId) -> Result<Vec<UnpostedEvent>, DatabaseError> {
        let parameters = self.database.parameters().id("id", id.as_uuid());
        let rows: Vec<rows::EventRow> = self.database.rows(&EVENTS, parameters).await?;
        Ok(rows.into_iter().map(rows::EventRow::read).collect())
    }

    fn range(&self, ids: Ids) -> Parameters {
        let Ids { first, last } = ids;
        self.database.parameters().id("first", first.as_uuid()).id("last", last.as_uuid())
    }
}

impl MessageStory {
    fn new(id: MessageId) -> Self {
        Self {
            id,
            waiting: None,
            entries: Vec::new(),
            extra: None,
            awaited: None,
            dead_letters: Vec::new(),
        }
    }
}
