use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use application::{
    BoxError, Chain,
    ports::{
        Admitted, Batch, Call, CallOutcome, DeliveryLedger, DeliveryState, Due, Incoming, Lease,
        LedgerError, Recorded, Started, Verdict,
    },
};
use autometrics::autometrics;
use domain::{Message, MessageId, PhoneNumber};
use sea_orm::{ConnectionTrait, DbErr, QueryResult, Value};
use serde_json::json;
use tokio::time::timeout;
use uuid::Uuid;

use crate::{
    database::{Database, Told, Transaction, begin, lasting, millis, since_1970, time},
    events::TELL_SQLITE,
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

    /// Deletes what ended, and the dead letters, of longer ago than `retention`; says how many.
    ///
    /// An entry is what keeps a record that is read again from being sent again, so the topic
    /// must not keep its records for longer.
    pub async fn prune(&self, retention: Duration) -> Result<u64, LedgerError> {
        let mut pruned = 0;
        for sql in [sql::PRUNE, sql::PRUNE_DEAD] {
            loop {
                let values = vec![self.group.clone().into(), millis(retention).into()];
                let deleted = self.database.execute(sql, values).await.map_err(unavailable)?;
                pruned += deleted;
                if deleted < sql::PRUNED {
                    break;
                }
            }
        }
        Ok(pruned)
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
    ) -> Result<Vec<QueryResult>, LedgerError> {
        transaction.query_all_raw(self.database.as_written(sql, values)).await.map_err(unavailable)
    }

    /// One statement of PostgreSQL.
    async fn run_alone(
        &self,
        sql: &str,
        values: Vec<Value>,
    ) -> Result<Vec<QueryResult>, LedgerError> {
        let statement = self.database.as_written(sql, values);
        let rows = self.database.step(async |it| it.query_all_raw(statement).await).await;
        rows.map_err(unavailable)
    }

    /// Tells of what a step of a transaction in SQLite has ended, if others are told.
    async fn tell(
        &self,
        transaction: &Transaction,
        rows: &[QueryResult],
    ) -> Result<(), LedgerError> {
        if !self.events {
            return Ok(());
        }
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

    /// `admit` for PostgreSQL: one statement, one round trip, one commit.
    async fn admit_postgres(
        &self,
        lease: &Lease,
        batch: &Batch,
    ) -> Result<Vec<QueryResult>, LedgerError> {
        let messages = || batch.messages.iter();
        let text = |read: fn(&Incoming) -> String| messages().map(read).collect::<Vec<_>>().into();
        let number = |read: fn(&Incoming) -> i64| messages().map(read).collect::<Vec<_>>().into();
        let dead = || batch.unreadable.iter();
        let values = self.lease(
            lease,
            [
                batch.next_offset.into(),
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
                dead().map(|(offset, _)| *offset).collect::<Vec<i64>>().into(),
                dead().map(|(_, reason)| reason.0.to_owned()).collect::<Vec<_>>().into(),
            ],
        );
        self.run_alone(&sql::admit_postgres(self.events), values).await
    }

    /// Takes out of transit what was settled while it was taken over.
    async fn leave_transit(&self, batch: &Batch, admitted: &[QueryResult]) {
        let ours: Vec<&Incoming> =
            batch.messages.iter().filter(|incoming| incoming.sequence.is_some()).collect();
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
        batch: &Batch,
    ) -> Result<Vec<QueryResult>, LedgerError> {
        let messages: serde_json::Value = batch
            .messages
            .iter()
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
            batch.unreadable.iter().map(|(offset, reason)| json!([offset, reason.0])).collect();
        let messages = || Value::from(messages.to_string());

        let transaction = begin(&self.database.connection()).await.map_err(unavailable)?;
        let held = self
            .run(&transaction, sql::MOVE_ON, self.lease(lease, [batch.next_offset.into()]))
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
        self.tell(&transaction, &rows).await?;
        transaction.commit().await.map_err(unavailable)?;
        rows.extend(held);
        Ok(rows)
    }
}

impl DeliveryLedger for SqlDeliveryLedger {
    #[autometrics(struct_name = "SqlDeliveryLedger")]
    async fn admit(&self, lease: &Lease, batch: &Batch) -> Result<Admitted, LedgerError> {
        let rows = if self.database.is_postgres() {
            self.admit_postgres(lease, batch).await?
        } else {
            self.admit_sqlite(lease, batch).await?
        };
        if self.database.is_postgres() {
            self.leave_transit(batch, &rows).await;
        }
        let mut admitted = Admitted::default();
        for row in fenced(lease, &rows)? {
            let recorded = read_recorded(row)?;
            match recorded.state {
                DeliveryState::Calling => admitted.calls.push(read_call(row)?),
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
        let limit = Value::from(millis(call_limit));
        let turn = self.turn();
        let rows = if self.database.is_postgres() {
            let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
            let values = self.lease(lease, [ids.into(), limit, turn]);
            self.run_alone(&sql::start_postgres(self.events), values).await?
        } else {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            let transaction = begin(&self.database.connection()).await.map_err(unavailable)?;
            let mut rows = self.run(&transaction, sql::HELD, self.lease(lease, [])).await?;
            if !rows.is_empty() {
                let ids = json!(ids).to_string().into();
                let values = vec![self.group.clone().into(), ids, limit, lease.epoch.into(), turn];
                rows.extend(self.run(&transaction, sql::START_SQLITE, values).await?);
                self.tell(&transaction, &rows).await?;
            }
            transaction.commit().await.map_err(unavailable)?;
            rows
        };

        let mut started = Started::default();
        for row in fenced(lease, &rows)? {
            let recorded = read_recorded(row)?;
            if recorded.state == DeliveryState::Calling {
                started.calls.push(read_call(row)?);
            } else {
                started.expired.push(recorded);
            }
        }
        Ok(started)
    }

    #[autometrics(struct_name = "SqlDeliveryLedger")]
    async fn finish(&self, outcomes: &[CallOutcome]) -> Result<Vec<Recorded>, LedgerError> {
        let rows = outcomes.iter().map(|outcome| {
            let (verdict, wait, reference) = match &outcome.verdict {
                Verdict::Sent { reference } => ("sent", 0, reference.as_deref()),
                Verdict::Failed => ("failed", 0, None),
                Verdict::Unknown => ("unknown", 0, None),
                Verdict::Retry { after } => ("pending", millis(*after), None),
            };
            (outcome, verdict, wait, reference.unwrap_or_default())
        });
        let mut values = vec![Value::from(self.group.clone())];
        if self.database.is_postgres() {
            let ids: Vec<Uuid> = outcomes.iter().map(|outcome| outcome.id.as_uuid()).collect();
            let said: serde_json::Map<_, _> = rows
                .map(|(outcome, verdict, wait, reference)| {
                    let call = format!("{} {}", outcome.id.as_uuid(), outcome.attempt);
                    let outcome = json!({
                        "verdict": verdict,
                        "wait": wait,
                        "reference": reference,
                        "detail": outcome.detail,
                        "class": outcome.class.as_str(),
                    });
                    (call, outcome)
                })
                .collect();
            values.extend([ids.into(), serde_json::Value::from(said).into()]);
        } else {
            let said: serde_json::Value = rows
                .map(|(outcome, verdict, wait, reference)| {
                    json!([
                        outcome.id.to_string(),
                        outcome.attempt,
                        verdict,
                        wait,
                        reference,
                        outcome.detail,
                        outcome.class.as_str(),
                    ])
                })
                .collect();
            values.push(said.to_string().into());
        }
        let rows = if !self.events {
            self.database.rows(sql::FINISH, values).await.map_err(unavailable)?
        } else if self.database.is_postgres() {
            self.run_alone(&sql::finish_and_tell_postgres(), values).await?
        } else {
            let transaction = begin(&self.database.connection()).await.map_err(unavailable)?;
            let rows = self.run(&transaction, sql::FINISH.sqlite, values).await?;
            self.tell(&transaction, &rows).await?;
            transaction.commit().await.map_err(unavailable)?;
            rows
        };
        rows.iter().map(read_recorded).collect()
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
        Ok(readable(fenced(lease, &rows)?.map(read)))
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

/// The rows of a fenced statement but the first kind, which says that the lease is ours.
fn fenced<'a>(
    lease: &Lease,
    rows: &'a [QueryResult],
) -> Result<impl Iterator<Item = &'a QueryResult> + use<'a>, LedgerError> {
    if !rows.iter().any(is_held) {
        return Err(LedgerError::Fenced { partition: lease.partition });
    }
    Ok(rows.iter().filter(|row| !is_held(row)))
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

fn read_recorded(row: &QueryResult) -> Result<Recorded, LedgerError> {
    let age: i64 = row.try_get("", "age").map_err(unavailable)?;
    let state: String = row.try_get("", "state").map_err(unavailable)?;
    let state = match &*state {
        "pending" => DeliveryState::Pending,
        "calling" => DeliveryState::Calling,
        "sent" => DeliveryState::Sent,
        "failed" => DeliveryState::Failed,
        "expired" => DeliveryState::Expired,
        "unknown" => DeliveryState::Unknown,
        _ => return Err(LedgerError::Unavailable("a state that is none".into())),
    };
    Ok(Recorded {
        id: id(row)?,
        state,
        age: Duration::from_millis(u64::try_from(age).unwrap_or(0)),
    })
}

fn read_call(row: &QueryResult) -> Result<Call, LedgerError> {
    let millis = |column| row.try_get::<i64>("", column).map_err(unavailable);
    Ok(Call {
        id: id(row)?,
        attempt: attempt(row).map_err(unavailable)?,
        expires_at: time(millis("expires_at")?),
        good_for: lasting(millis("good_for")?),
    })
}

fn id(row: &QueryResult) -> Result<MessageId, LedgerError> {
    let text: String = row.try_get("", "id").map_err(unavailable)?;
    text.parse().map_err(|error: uuid::Error| LedgerError::Unavailable(error.into()))
}

fn attempt(row: &QueryResult) -> Result<u32, DbErr> {
    Ok(row.try_get::<i32>("", "attempt")?.cast_unsigned())
}

fn unavailable(error: DbErr) -> LedgerError {
    LedgerError::Unavailable(Told(error).into())
}
