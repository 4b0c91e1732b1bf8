use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use application::{
    BoxError, Chain,
    ports::{
        Admitted, Batch, Call, CallOutcome, DeliveryLedger, DeliveryState, Due, Incoming, Lease,
        LedgerError, Record, Recorded, Started, Unreadable, Verdict,
    },
};
use autometrics::autometrics;
use domain::{Message, MessageId, PhoneNumber};
use sea_orm::{ConnectionTrait, DbErr, QueryResult, Value};
use serde_json::json;
use tokio::time::timeout;
use uuid::Uuid;

use crate::{
    database::{Database, Told, Transaction, begin, lasting, millis, parsed, since_1970, time},
    events::TELL_SQLITE,
    refusal::{code, first_taken, in_parts},
};

mod sql;

/// How long what a sweep would do too may take.
const TIDYING: Duration = Duration::from_secs(1);

/// What one consumer group knows of the delivery of each message of one topic.
#[derive(Debug, Clone)]
pub struct SqlDeliveryLedger {
    database: Database,
    group: String,
    topic: String,
    member: String,
    /// Numbers the statements that begin calls.
    turns: Arc<AtomicI64>,
    events: bool,
}

/// What one statement takes over of a batch.
#[derive(Clone, Copy)]
struct Part<'a> {
    batch: &'a Batch,
    records: &'a [Record],
    next_offset: i64,
}

/// How an outcome is recorded.
#[derive(Debug, Clone, Copy)]
struct Manner {
    texts: bool,
    events: bool,
    /// As unknown, whatever it was.
    unknown: bool,
}

/// Why a message is a dead letter that the database refuses.
const REFUSED: Unreadable = Unreadable("the database cannot store the message");

impl<'a> Part<'a> {
    fn of(batch: &'a Batch, places: Range<usize>) -> Self {
        let next = batch.records.get(places.end);
        let next_offset = next.map_or(batch.next_offset, |record| record.offset);
        Self { batch, records: &batch.records[places], next_offset }
    }

    fn messages(self) -> impl Iterator<Item = &'a Incoming> + Clone {
        self.records.iter().filter_map(|record| record.content.as_ref().ok())
    }

    fn unreadable(self) -> impl Iterator<Item = (i64, &'a Unreadable)> {
        self.records
            .iter()
            .filter_map(|record| Some((record.offset, record.content.as_ref().err()?)))
    }
}

impl SqlDeliveryLedger {
    /// `member` is the name under which the partition leases are held.
    pub fn new(database: Database, group: String, topic: String, member: String) -> Self {
        Self { database, group, topic, member, turns: Arc::default(), events: false }
    }

    /// Whether others are told how messages ended.
    #[must_use]
    pub fn with_events(self, events: bool) -> Self {
        Self { events, ..self }
    }

    /// The parameters that name a lease; most statements begin with them.
    fn lease<const N: usize>(&self, lease: &Lease, more: [Value; N]) -> Vec<Value> {
        [
            Value::from(self.group.clone()),
            self.topic.clone().into(),
            lease.partition.into(),
            self.member.clone().into(),
            lease.epoch.into(),
        ]
        .into_iter()
        .chain(more)
        .collect()
    }

    /// The number of the next statement that begins calls.
    fn turn(&self) -> Value {
        (self.turns.fetch_add(1, Ordering::Relaxed) + 1).into()
    }

    /// A step of a transaction in SQLite.
    async fn run(
        &self,
        transaction: &Transaction,
        sql: &str,
        values: Vec<Value>,
    ) -> Result<Vec<QueryResult>, DbErr> {
        transaction.query_all_raw(self.database.as_written(sql, values)).await
    }

    /// One statement of PostgreSQL.
    async fn run_alone(&self, sql: &str, values: Vec<Value>) -> Result<Vec<QueryResult>, DbErr> {
        let statement = self.database.as_written(sql, values);
        self.database.step(async |it| it.query_all_raw(statement).await).await
    }

    /// Tells of what a step of a transaction in SQLite has ended.
    async fn tell(&self, transaction: &Transaction, rows: &[QueryResult]) -> Result<(), DbErr> {
        let mut ended = Vec::new();
        for row in rows.iter().filter(|row| !is_held(row)) {
            let Recorded { id, state, .. } = read_recorded(row)?;
            if !matches!(state, DeliveryState::Pending | DeliveryState::Calling) {
                ended.push(json!([id.to_string(), state.as_str()]));
            }
        }
        let values = vec![json!(ended).to_string().into(), self.group.clone().into()];
        self.run(transaction, TELL_SQLITE, values).await.map(|_| ())
    }

    /// Takes a part of a batch over, in one commit.
    async fn admit_part(
        &self,
        lease: &Lease,
        part: Part<'_>,
        events: bool,
    ) -> Result<Vec<QueryResult>, DbErr> {
        if !self.database.is_postgres() {
            return self.admit_sqlite(lease, part, events).await;
        }
        let rows = self.admit_postgres(lease, part, events).await?;
        self.leave_transit(part, &rows).await;
        Ok(rows)
    }

    /// Buries a record that the database refuses, and goes on.
    async fn admit_refused(
        &self,
        lease: &Lease,
        part: Part<'_>,
        error: DbErr,
    ) -> Result<Vec<QueryResult>, DbErr> {
        let buried: Vec<Record> = part.records.iter().map(buried).collect();
        let ways = [
            (part, false),
            (Part { records: &buried, ..part }, false),
            (Part { records: &[], ..part }, false),
        ];
        let (partition, offset) = (lease.partition, part.records.first().map(|it| it.offset));
        let sqlstate = code(&error);
        tracing::error!(partition, offset, sqlstate, "the database refuses a record");
        let step = |(part, events)| self.admit_part(lease, part, events);
        first_taken(ways, step).await?.ok_or(error)
    }

    /// `admit` for PostgreSQL: one statement, one round trip, one commit.
    async fn admit_postgres(
        &self,
        lease: &Lease,
        part: Part<'_>,
        events: bool,
    ) -> Result<Vec<QueryResult>, DbErr> {
        let batch = part.batch;
        let messages = || part.messages();
        let text = |read: fn(&Incoming) -> String| messages().map(read).collect::<Vec<_>>().into();
        let number = |read: fn(&Incoming) -> i64| messages().map(read).collect::<Vec<_>>().into();
        let dead = || part.unreadable();
        let values = self.lease(
            lease,
            [
                part.next_offset.into(),
                millis(batch.default_ttl).into(),
                messages().map(|m| m.message.id.as_uuid()).collect::<Vec<Uuid>>().into(),
                text(|m| m.message.phone.as_str().to_owned()),
                text(|m| m.message.code.as_text().into_owned()),
                text(trace),
                number(accepted_at),
                number(expires_at),
                number(sequence),
                messages().map(|m| call_now(batch, m)).collect::<Vec<i32>>().into(),
                millis(batch.call_limit).into(),
                self.turn(),
                dead().map(|(offset, _)| offset).collect::<Vec<i64>>().into(),
                dead().map(|(_, reason)| reason.0.to_owned()).collect::<Vec<_>>().into(),
            ],
        );
        self.run_alone(&sql::admit_postgres(events), values).await
    }

    /// Takes out of transit what was settled while it was taken over.
    async fn leave_transit(&self, part: Part<'_>, admitted: &[QueryResult]) {
        let ours: Vec<&Incoming> =
            part.messages().filter(|incoming| incoming.sequence.is_some()).collect();
        let held = admitted.iter().find(|row| is_held(row));
        let left = held.and_then(|row| row.try_get::<i64>("", "age").ok()).unwrap_or(0);
        if usize::try_from(left).is_ok_and(|left| left >= ours.len()) || held.is_none() {
            return;
        }
        let values = vec![
            ours.iter().map(|incoming| sequence(incoming)).collect::<Vec<i64>>().into(),
            ours.iter().map(|incoming| incoming.message.id.as_uuid()).collect::<Vec<Uuid>>().into(),
        ];
        let statement = self.database.as_written(sql::LEAVE_TRANSIT_POSTGRES, values);
        let step = self.database.step(async |it| it.execute_raw(statement).await);
        // The calls that were just begun wait for this.
        if !matches!(timeout(TIDYING, step).await, Ok(Ok(_))) {
            // A sweep will find it.
            tracing::debug!("messages that were taken over stay in transit for a while");
        }
    }

    /// `admit` for SQLite, where a statement writes to one table.
    async fn admit_sqlite(
        &self,
        lease: &Lease,
        part: Part<'_>,
        events: bool,
    ) -> Result<Vec<QueryResult>, DbErr> {
        let batch = part.batch;
        let messages: serde_json::Value = part
            .messages()
            .map(|incoming| {
                json!([
                    incoming.message.id.to_string(),
                    incoming.message.phone.as_str(),
                    incoming.message.code.as_text(),
                    trace(incoming),
                    accepted_at(incoming),
                    expires_at(incoming),
                    sequence(incoming),
                    call_now(batch, incoming),
                ])
            })
            .collect();
        let dead: serde_json::Value =
            part.unreadable().map(|(offset, reason)| json!([offset, reason.0])).collect();
        let messages = || Value::from(messages.to_string());

        let transaction = begin(&self.database.connection()).await?;
        let held = self
            .run(&transaction, sql::MOVE_ON, self.lease(lease, [part.next_offset.into()]))
            .await?;
        if held.is_empty() {
            return Ok(held);
        }
        let key =
            [Value::from(self.group.clone()), self.topic.clone().into(), lease.partition.into()];
        let with = |more: Value| key.iter().cloned().chain([more]).collect::<Vec<_>>();
        self.run(&transaction, sql::BURY, with(dead.to_string().into())).await?;
        for sql in [sql::LEAVE_OUTBOX, sql::LEAVE_TRANSIT] {
            self.run(&transaction, sql, vec![messages()]).await?;
        }
        let mut values = with(messages());
        values.extend([
            Value::from(millis(batch.default_ttl)),
            lease.epoch.into(),
            millis(batch.call_limit).into(),
            self.turn(),
        ]);
        let mut rows = self.run(&transaction, sql::TAKE, values).await?;
        if events {
            self.tell(&transaction, &rows).await?;
        }
        transaction.commit().await?;
        rows.extend(held);
        Ok(rows)
    }

    /// Begins calls, in one commit.
    async fn start_part(
        &self,
        lease: &Lease,
        ids: &[MessageId],
        call_limit: Duration,
    ) -> Result<Vec<QueryResult>, DbErr> {
        let values = [Value::from(millis(call_limit)), self.turn()];
        let postgres = sql::start_postgres(self.events);
        self.step_of(lease, ids, values, (&postgres, sql::START_SQLITE), self.events).await
    }

    /// Ends an entry whose next call cannot be recorded.
    async fn start_refused(
        &self,
        lease: &Lease,
        id: MessageId,
        error: &DbErr,
    ) -> Result<Vec<QueryResult>, DbErr> {
        let sqlstate = code(error);
        tracing::error!(message.id = %id, sqlstate, "the database refuses a call: message ended");
        let give_up = |(id, events): (Option<MessageId>, bool)| async move {
            let postgres = sql::give_up_postgres(events);
            let ids = id.as_slice();
            self.step_of(lease, ids, [], (&postgres, sql::GIVE_UP_SQLITE), events).await
        };
        // Where even that is refused the entry stays as it is, and the others go on.
        let ways = [(Some(id), self.events), (Some(id), false), (None, false)];
        Ok(first_taken(ways, give_up).await?.unwrap_or_default())
    }

    /// A fenced statement about entries. Its parameters are the lease and `ids`, then `more`; in
    /// SQLite group, ids, epoch, then `more`.
    async fn step_of<const N: usize>(
        &self,
        lease: &Lease,
        ids: &[MessageId],
        more: [Value; N],
        (postgres, sqlite): (&str, &str),
        events: bool,
    ) -> Result<Vec<QueryResult>, DbErr> {
        if self.database.is_postgres() {
            let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
            let mut values = self.lease(lease, [ids.into()]);
            values.extend(more);
            return self.run_alone(postgres, values).await;
        }
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let transaction = begin(&self.database.connection()).await?;
        let mut rows = self.run(&transaction, sql::HELD, self.lease(lease, [])).await?;
        if !rows.is_empty() {
            let ids = json!(ids).to_string().into();
            let mut values = vec![self.group.clone().into(), ids, lease.epoch.into()];
            values.extend(more);
            rows.extend(self.run(&transaction, sqlite, values).await?);
            if events {
                self.tell(&transaction, &rows).await?;
            }
        }
        transaction.commit().await?;
        Ok(rows)
    }

    /// Records outcomes, in one commit.
    async fn finish_part(
        &self,
        outcomes: &[CallOutcome],
        manner: Manner,
    ) -> Result<Vec<QueryResult>, DbErr> {
        let rows = outcomes.iter().map(|outcome| {
            let (verdict, wait, reference) = match &outcome.verdict {
                _ if manner.unknown => ("unknown", 0, None),
                Verdict::Sent { reference } => ("sent", 0, reference.as_deref()),
                Verdict::Failed => ("failed", 0, None),
                Verdict::Unknown => ("unknown", 0, None),
                Verdict::Retry { after } => ("pending", millis(*after), None),
            };
            let [reference, detail] = [reference.unwrap_or_default(), &*outcome.detail]
                .map(|text| if manner.texts { text } else { "" });
            (outcome, verdict, wait, reference, detail)
        });
        let mut values = vec![Value::from(self.group.clone())];
        if self.database.is_postgres() {
            let ids: Vec<Uuid> = outcomes.iter().map(|outcome| outcome.id.as_uuid()).collect();
            let said: serde_json::Map<_, _> = rows
                .map(|(outcome, verdict, wait, reference, detail)| {
                    let call = format!("{} {}", outcome.id.as_uuid(), outcome.attempt);
                    let outcome = json!({
                        "verdict": verdict,
                        "wait": wait,
                        "reference": reference,
                        "detail": detail,
                        "class": outcome.class.as_str(),
                    });
                    (call, outcome)
                })
                .collect();
            values.extend([ids.into(), serde_json::Value::from(said).into()]);
        } else {
            let said: serde_json::Value = rows
                .map(|(outcome, verdict, wait, reference, detail)| {
                    let class = outcome.class.as_str();
                    let id = outcome.id.to_string();
                    json!([id, outcome.attempt, verdict, wait, reference, detail, class])
                })
                .collect();
            values.push(said.to_string().into());
        }
        if !manner.events {
            return self.database.rows(sql::FINISH, values).await;
        }
        if self.database.is_postgres() {
            return self.run_alone(&sql::finish_and_tell_postgres(), values).await;
        }
        let transaction = begin(&self.database.connection()).await?;
        let rows = self.run(&transaction, sql::FINISH.sqlite, values).await?;
        self.tell(&transaction, &rows).await?;
        transaction.commit().await?;
        Ok(rows)
    }

    /// Records what can be stored of an outcome that the database refuses: it must count, or the
    /// call would be taken for interrupted and made again.
    async fn finish_refused(
        &self,
        outcome: &CallOutcome,
        error: &DbErr,
    ) -> Result<Vec<QueryResult>, DbErr> {
        let sqlstate = code(error);
        tracing::error!(
            message.id = %outcome.id,
            sqlstate,
            "the database refuses an outcome: recorded without its texts"
        );
        let bare = Manner { texts: false, events: self.events, unknown: false };
        let untold = Manner { events: false, ..bare };
        let ways = [bare, untold, Manner { unknown: true, ..untold }];
        let step = |manner| self.finish_part(std::slice::from_ref(outcome), manner);
        Ok(first_taken(ways, step).await?.unwrap_or_default())
    }
}

impl DeliveryLedger for SqlDeliveryLedger {
    #[autometrics(struct_name = "SqlDeliveryLedger")]
    async fn admit(&self, lease: &Lease, batch: &Batch) -> Result<Admitted, LedgerError> {
        let refused = &AtomicUsize::new(0);
        let admit = |places| self.admit_part(lease, Part::of(batch, places), self.events);
        let bury = |place, error| async move {
            let part = Part::of(batch, place..place + 1);
            let rows = self.admit_refused(lease, part, error).await?;
            let is_new = |row: &QueryResult| !is_held(row);
            if part.messages().next().is_some() && !rows.iter().any(is_new) {
                refused.fetch_add(1, Ordering::Relaxed);
            }
            Ok(rows)
        };
        let parts = in_parts(batch.records.len(), admit, bury).await.map_err(unavailable)?;
        let mut admitted =
            Admitted { refused: refused.load(Ordering::Relaxed), ..Admitted::default() };
        for row in fenced(lease, &parts)? {
            let recorded = read_recorded(row).map_err(unavailable)?;
            match recorded.state {
                DeliveryState::Calling => {
                    admitted.calls.push(read_call(row).map_err(unavailable)?);
                }
                DeliveryState::Pending => admitted.fresh.push(recorded.id),
                _ => admitted.expired.push(recorded),
            }
        }
        Ok(admitted)
    }

    #[autometrics(struct_name = "SqlDeliveryLedger")]
    async fn start(
        &self,
        lease: &Lease,
        ids: &[MessageId],
        call_limit: Duration,
    ) -> Result<Started, LedgerError> {
        let start = |places: Range<usize>| self.start_part(lease, &ids[places], call_limit);
        let give_up = |place: usize, error| async move {
            self.start_refused(lease, ids[place], &error).await
        };
        let parts = in_parts(ids.len(), start, give_up).await.map_err(unavailable)?;

        let mut started = Started::default();
        for row in fenced(lease, &parts)? {
            let recorded = read_recorded(row).map_err(unavailable)?;
            if recorded.state == DeliveryState::Calling {
                started.calls.push(read_call(row).map_err(unavailable)?);
            } else {
                started.ended.push(recorded);
            }
        }
        Ok(started)
    }

    #[autometrics(struct_name = "SqlDeliveryLedger")]
    async fn finish(&self, outcomes: &[CallOutcome]) -> Result<Vec<Recorded>, LedgerError> {
        let whole = Manner { texts: true, events: self.events, unknown: false };
        let finish = |places: Range<usize>| self.finish_part(&outcomes[places], whole);
        let without = |place: usize, error| async move {
            self.finish_refused(&outcomes[place], &error).await
        };
        let parts = in_parts(outcomes.len(), finish, without).await.map_err(unavailable)?;
        parts.iter().flatten().map(read_recorded).collect::<Result<_, _>>().map_err(unavailable)
    }

    #[autometrics(struct_name = "SqlDeliveryLedger")]
    async fn open(&self, lease: &Lease) -> Result<Vec<(PhoneNumber, usize)>, LedgerError> {
        let values =
            vec![self.group.clone().into(), self.topic.clone().into(), lease.partition.into()];
        let rows = self.database.rows(sql::OPEN, values).await.map_err(unavailable)?;
        let read = |row: &QueryResult| -> Result<(PhoneNumber, usize), BoxError> {
            let phone = row.try_get::<String>("", "phone")?.parse()?;
            Ok((phone, usize::try_from(row.try_get::<i64>("", "entries")?)?))
        };
        Ok(readable(rows.iter().map(read)))
    }

    #[autometrics(struct_name = "SqlDeliveryLedger")]
    async fn due(&self, lease: &Lease, limit: usize) -> Result<Vec<Due>, LedgerError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let values = self.lease(lease, [limit.into()]);
        let rows = self.database.rows(sql::DUE, values).await.map_err(unavailable)?;
        let read = |row: &QueryResult| -> Result<Due, BoxError> {
            let text = |column| row.try_get::<String>("", column);
            Ok(Due {
                message: Message {
                    id: text("id")?.parse()?,
                    phone: text("phone")?.parse()?,
                    code: text("code")?.parse()?,
                },
                trace: row
                    .try_get::<Option<String>>("", "trace")?
                    .and_then(|trace| trace.parse().ok()),
                interrupted: row.try_get("", "interrupted")?,
                attempt: attempt(row)?,
                expired: row.try_get("", "expired")?,
            })
        };
        Ok(readable(fenced(lease, &[rows])?.map(read)))
    }
}

// What a record does not say goes to the database as an empty text or as -1: an array of a
// statement cannot hold nulls.
const ABSENT: i64 = -1;

fn trace(incoming: &Incoming) -> String {
    incoming.trace.as_ref().map(|trace| trace.as_str().to_owned()).unwrap_or_default()
}

fn accepted_at(incoming: &Incoming) -> i64 {
    incoming.validity.map_or(ABSENT, |validity| since_1970(validity.accepted_at))
}

fn expires_at(incoming: &Incoming) -> i64 {
    incoming.validity.map_or(ABSENT, |validity| since_1970(validity.expires_at))
}

fn call_now(batch: &Batch, incoming: &Incoming) -> i32 {
    i32::from(batch.call_now.contains(&incoming.message.id))
}

fn sequence(incoming: &Incoming) -> i64 {
    incoming.sequence.unwrap_or(ABSENT)
}

/// The rows of fenced statements but the first kind, which says that the lease is ours.
fn fenced<'a>(
    lease: &Lease,
    parts: &'a [Vec<QueryResult>],
) -> Result<impl Iterator<Item = &'a QueryResult> + use<'a>, LedgerError> {
    if !parts.iter().all(|rows| rows.iter().any(is_held)) {
        return Err(LedgerError::Fenced { partition: lease.partition });
    }
    Ok(parts.iter().flatten().filter(|row| !is_held(row)))
}

fn buried(record: &Record) -> Record {
    let content = Err(record.content.as_ref().err().cloned().unwrap_or(REFUSED));
    Record { offset: record.offset, content }
}

fn is_held(row: &QueryResult) -> bool {
    row.try_get::<String>("", "state").is_ok_and(|state| state == "held")
}

/// Rows that make no sense were written by somebody else; they must not hold up the others.
fn readable<T>(rows: impl Iterator<Item = Result<T, BoxError>>) -> Vec<T> {
    rows.filter_map(|row| {
        row.inspect_err(|error| {
            tracing::error!(error = %Chain(&**error), "unreadable row in the delivery ledger");
        })
        .ok()
    })
    .collect()
}

fn read_recorded(row: &QueryResult) -> Result<Recorded, DbErr> {
    let age: i64 = row.try_get("", "age")?;
    let state: String = row.try_get("", "state")?;
    let state = match &*state {
        "pending" => DeliveryState::Pending,
        "calling" => DeliveryState::Calling,
        "sent" => DeliveryState::Sent,
        "failed" => DeliveryState::Failed,
        "expired" => DeliveryState::Expired,
        "unknown" => DeliveryState::Unknown,
        _ => return Err(DbErr::Type("a state that is none".to_owned())),
    };
    Ok(Recorded {
        id: id(row)?,
        state,
        age: Duration::from_millis(u64::try_from(age).unwrap_or(0)),
    })
}

fn read_call(row: &QueryResult) -> Result<Call, DbErr> {
    let millis = |column| row.try_get::<i64>("", column);
    Ok(Call {
        id: id(row)?,
        attempt: attempt(row)?,
        expires_at: time(millis("expires_at")?),
        good_for: lasting(millis("good_for")?),
    })
}

fn id(row: &QueryResult) -> Result<MessageId, DbErr> {
    parsed(&row.try_get::<String>("", "id")?, "an id")
}

fn attempt(row: &QueryResult) -> Result<u32, DbErr> {
    Ok(row.try_get::<i32>("", "attempt")?.cast_unsigned())
}

fn unavailable(error: DbErr) -> LedgerError {
    LedgerError::Unavailable(Told(error).into())
}
