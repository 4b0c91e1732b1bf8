use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use application::ports::{
    Admitted, Batch, CallOutcome, DeliveryState, Lease, LedgerError, Record, Recorded, Start,
    Started,
};
use domain::MessageId;

use super::{
    Fenced,
    entry::{EntryRow, RecordedRow},
    lock,
    outcomes::Manner,
    part::{Part, buried},
    postgres, sqlite,
    starts::{Starts, Step},
};
use crate::{
    database::{Database, DatabaseError, Events, Parameters, millis},
    refusal::{code, first_taken, in_parts},
};

/// The entries of one consumer group for one topic, and the steps of a consumer, each for one of its
/// partitions.
#[derive(Debug, Clone)]
pub(super) struct Entries {
    pub(super) database: Database,
    pub(super) group: String,
    topic: String,
    member: String,
    /// Numbers the statements that begin calls.
    turns: Arc<AtomicI64>,
    /// Whether a call had to reserve its cost.
    pub(super) buys: Arc<AtomicBool>,
}

impl Entries {
    /// `member` is the name under which the partition leases are held.
    pub(super) fn new(database: Database, group: String, topic: String, member: String) -> Self {
        Self { database, group, topic, member, turns: Arc::default(), buys: Arc::default() }
    }

    #[cfg(test)]
    pub(super) fn with_events(self, events: Events) -> Self {
        Self { database: self.database.with_events(events), ..self }
    }

    /// The parameters of the topic.
    fn topic(&self) -> Parameters {
        self.database
            .parameters()
            .with("group", self.group.as_str())
            .with("topic", self.topic.as_str())
    }

    /// The parameters of this consumer.
    fn member(&self) -> Parameters {
        self.topic().with("owner", self.member.as_str())
    }

    /// The parameters of a partition.
    pub(super) fn partition(&self, lease: &Lease) -> Parameters {
        self.topic().with("partition", lease.partition)
    }

    /// The parameters of a statement that is fenced by a lease.
    pub(super) fn fence(&self, lease: &Lease) -> Parameters {
        self.member().with("partition", lease.partition).with("epoch", lease.epoch)
    }

    fn next_turn(&self) -> i64 {
        self.turns.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The parameters of a fenced statement that takes a turn.
    fn turn(&self, lease: &Lease) -> Parameters {
        self.fence(lease).with("turn", self.next_turn())
    }

    /// The parameters of a fenced statement that begins calls.
    pub(super) fn call(&self, lease: &Lease, call_limit: Duration) -> Parameters {
        self.turn(lease).with("call_limit", millis(call_limit))
    }

    /// The ledger in SQLite.
    pub(super) fn sqlite(&self, lease: &Lease, events: Events) -> sqlite::Ledger<'_> {
        sqlite::Ledger {
            database: &self.database,
            group: &self.group,
            fence: self.fence(lease),
            events,
        }
    }

    /// Takes a part of a batch over, in one commit.
    async fn admit_part(&self, part: Part<'_>, events: Events) -> Result<Fenced, DatabaseError> {
        if self.database.is_postgres() {
            let mut taken = self.admit_parts(&[part], events).await?;
            return Ok(taken.remove(&part.lease.partition));
        }
        let parameters = self
            .call(part.lease, part.batch.call_limit)
            .with("next_offset", part.next_offset)
            .with("default_ttl", millis(part.batch.default_ttl));
        let ledger = self.sqlite(part.lease, events);
        self.database.step(async |it| ledger.admit(&it, parameters, part).await).await
    }

    /// Takes parts of batches of several partitions over, in one commit in PostgreSQL. Returns the entries
    /// of each partition. A partition whose lease belongs to another consumer has none.
    pub(super) async fn admit_parts(
        &self,
        parts: &[Part<'_>],
        events: Events,
    ) -> Result<HashMap<i32, Vec<EntryRow>>, DatabaseError> {
        let parameters = self.member().with("turn", self.next_turn());
        postgres::admit(&self.database, parameters, parts, events).await
    }

    /// Buries a record that the database refuses, and goes on.
    async fn admit_refused(
        &self,
        part: Part<'_>,
        error: DatabaseError,
    ) -> Result<Fenced, DatabaseError> {
        let buried: Vec<Record> = part.records.iter().map(buried).collect();
        let ways = [part, Part { records: &buried, ..part }, Part { records: &[], ..part }];
        let (partition, offset) = (part.lease.partition, part.records.first().map(|it| it.offset));
        let sqlstate = code(&error);
        tracing::error!(
            partition,
            offset,
            sqlstate,
            "the database refuses a record; it becomes a dead letter if that can be stored"
        );
        let step = |part| self.admit_part(part, Events::Off);
        first_taken(ways, step).await?.ok_or(error)
    }

    /// Does a step with entries, in one commit.
    async fn start_part(
        &self,
        lease: &Lease,
        step: Step,
        starts: Starts<'_>,
        call_limit: Duration,
    ) -> Result<Fenced, DatabaseError> {
        let events = self.database.events();
        let parameters = match step {
            Step::Buy | Step::Call => self.call(lease, call_limit),
            Step::Wait | Step::Fail | Step::Unknown => self.turn(lease),
        };
        let parameters = starts.with(step, parameters);
        if self.database.is_postgres() {
            return postgres::start(&self.database, step, parameters, events).await;
        }
        let ledger = self.sqlite(lease, events);
        self.database.step(async |it| ledger.start(&it, step, parameters).await).await
    }

    /// Ends an entry whose next call cannot be recorded.
    async fn start_refused(
        &self,
        lease: &Lease,
        id: MessageId,
        error: &DatabaseError,
    ) -> Result<Fenced, DatabaseError> {
        let sqlstate = code(error);
        tracing::error!(message.id = %id, sqlstate, "the database refuses a call; the message ends");
        let give_up = |(id, events): (Option<MessageId>, Events)| async move {
            let ids = id.iter().map(|id| id.as_uuid());
            let parameters = self.fence(lease).list("ids", ids);
            if self.database.is_postgres() {
                return postgres::give_up(&self.database, parameters, events).await;
            }
            let ledger = self.sqlite(lease, events);
            self.database.step(async |it| ledger.give_up(&it, parameters).await).await
        };
        // If the database refuses even that, the entry stays as it is, and the others go on.
        let ways =
            [(Some(id), self.database.events()), (Some(id), Events::Off), (None, Events::Off)];
        Ok(first_taken(ways, give_up).await?.unwrap_or_default())
    }

    /// Records outcomes, in one commit.
    async fn finish_part(
        &self,
        outcomes: &[CallOutcome],
        manner: Manner,
    ) -> Result<Vec<RecordedRow>, DatabaseError> {
        let database = &self.database;
        let finished = if database.is_postgres() {
            postgres::finish(database, &self.group, outcomes, manner).await?
        } else {
            let step =
                async |it| sqlite::finish(database, &it, &self.group, outcomes, manner).await;
            database.step(step).await?
        };
        Ok(finished.settle(database).await)
    }

    /// Records what can be stored of an outcome that the database refuses. It must count: otherwise
    /// the call would be taken for interrupted and repeated.
    async fn finish_refused(
        &self,
        outcome: &CallOutcome,
        error: &DatabaseError,
    ) -> Result<Vec<RecordedRow>, DatabaseError> {
        let sqlstate = code(error);
        tracing::error!(
            message.id = %outcome.id,
            sqlstate,
            "the database refuses an outcome; it is recorded without its texts"
        );
        let bare = Manner { texts: false, events: self.database.events(), unknown: false };
        let silent = Manner { events: Events::Off, ..bare };
        let ways = [bare, silent, Manner { unknown: true, ..silent }];
        let step = |manner| self.finish_part(std::slice::from_ref(outcome), manner);
        Ok(first_taken(ways, step).await?.unwrap_or_default())
    }

    /// See [`DeliveryLedger::admit`].
    pub(super) async fn admit(
        &self,
        lease: &Lease,
        batch: &Batch,
    ) -> Result<Admitted, LedgerError> {
        let refused = &AtomicUsize::new(0);
        let events = self.database.events();
        let admit = |places| self.admit_part(Part::of(lease, batch, places), events);
        let bury = |place, error| async move {
            let part = Part::of(lease, batch, place..place + 1);
            let entries = self.admit_refused(part, error).await?;
            let is_buried = entries.as_ref().is_none_or(Vec::is_empty);
            if part.messages().next().is_some() && is_buried {
                refused.fetch_add(1, Ordering::Relaxed);
            }
            Ok(entries)
        };
        let parts = in_parts(batch.records.len(), admit, bury).await?;
        let entries = fenced(lease, parts)?;
        Ok(Admitted { refused: refused.load(Ordering::Relaxed), ..admitted(entries)? })
    }

    /// See [`DeliveryLedger::start`].
    pub(super) async fn start(
        &self,
        lease: &Lease,
        starts: &[Start],
        call_limit: Duration,
    ) -> Result<Started, LedgerError> {
        let mut parts = Vec::new();
        let unaffordable = &Mutex::new(Vec::new());
        for step in Step::ALL {
            let ours: Vec<&Start> = starts.iter().filter(|it| Step::of(it) == step).collect();
            // Without any entry, one statement says whether the lease is held.
            if ours.is_empty() && (step != Step::Call || !starts.is_empty()) {
                continue;
            }
            let ours = &ours[..];
            let start = |places: Range<usize>| {
                self.start_part(lease, step, Starts(&ours[places]), call_limit)
            };
            let give_up = |place: usize, error| async move {
                self.start_refused(lease, ours[place].id, &error).await
            };
            let begun = if step == Step::Buy {
                let buy = |places: Range<usize>| {
                    self.buy_part(lease, Starts(&ours[places]), call_limit, unaffordable)
                };
                in_parts(ours.len(), buy, give_up).await?
            } else {
                in_parts(ours.len(), start, give_up).await?
            };
            parts.extend(begun);
        }

        let unaffordable = std::mem::take(&mut *lock(unaffordable));
        let mut started = Started { unaffordable, ..Started::default() };
        for entry in fenced(lease, parts)? {
            let recorded = entry.recorded.recorded()?;
            match recorded.state {
                DeliveryState::Calling => started.calls.push(entry.call()?),
                DeliveryState::Pending => {}
                _ => started.ended.push(recorded),
            }
        }
        Ok(started)
    }

    /// See [`DeliveryLedger::finish`].
    pub(super) async fn finish(
        &self,
        outcomes: &[CallOutcome],
    ) -> Result<Vec<Recorded>, DatabaseError> {
        let whole = Manner { texts: true, events: self.database.events(), unknown: false };
        let finish = |places: Range<usize>| self.finish_part(&outcomes[places], whole);
        let without_texts = |place: usize, error| async move {
            self.finish_refused(&outcomes[place], &error).await
        };
        let parts = in_parts(outcomes.len(), finish, without_texts).await?;
        self.give_back(outcomes).await;
        parts.iter().flatten().map(RecordedRow::recorded).collect()
    }
}

/// Returns the entries of all parts, or an error if a part found that the lease is lost.
fn fenced(
    lease: &Lease,
    parts: Vec<Fenced>,
) -> Result<impl Iterator<Item = EntryRow> + use<>, LedgerError> {
    let parts: Option<Vec<Vec<EntryRow>>> = parts.into_iter().collect();
    let parts = parts.ok_or(LedgerError::Fenced { partition: lease.partition })?;
    Ok(parts.into_iter().flatten())
}

/// Returns what was taken over, from its entries.
pub(super) fn admitted(
    entries: impl IntoIterator<Item = EntryRow>,
) -> Result<Admitted, DatabaseError> {
    let mut admitted = Admitted::default();
    for entry in entries {
        let recorded = entry.recorded.recorded()?;
        if !entry.recorded.has_ended() {
            admitted.ages.push(recorded.age);
        }
        match recorded.state {
            DeliveryState::Calling => admitted.calls.push(entry.call()?),
            DeliveryState::Pending => admitted.fresh.push(recorded.id),
            _ => admitted.expired.push(recorded),
        }
    }
    Ok(admitted)
}
