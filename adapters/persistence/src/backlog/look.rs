//! Looks for messages to publish.

use std::{num::NonZeroU32, ops::RangeInclusive};

use application::ports::{Found, Outgoing, Tenure};
use domain::{Message, Validity};
use sea_orm::{FromQueryResult, QueryResult};

use super::tenure::SERVER;
use crate::database::{Database, DatabaseError, Sql, lasting, parsed, time};

pub(super) async fn look(
    database: &Database,
    tenure: &Tenure,
    gaps: &[RangeInclusive<i64>],
    cursor: i64,
    limit: NonZeroU32,
) -> Result<Found, DatabaseError> {
    let parameters = database
        .parameters()
        .rows("gap", gaps.iter(), |gap| {
            gap.column("lowest", |it| *it.start()).column("highest", |it| *it.end())
        })
        .with("cursor", cursor)
        .with("limit", i64::from(limit.get()));
    let parameters = if database.is_postgres() {
        parameters.with("server", tenure.server)
    } else {
        let lowest = gaps.first().map_or(cursor + 1, |gap| *gap.start());
        parameters.with("lowest", lowest)
    };
    found(&database.raw_rows(&LOOK, parameters).await?)
}

fn found(rows: &[QueryResult]) -> Result<Found, DatabaseError> {
    let mut found = Found::default();
    for row in rows {
        let Numbered { sequence } = Numbered::from_query_result(row, "")?;
        let read = Row::from_query_result(row, "").map_err(DatabaseError::from);
        match read.and_then(Row::outgoing) {
            Ok(message) => found.messages.push(message),
            Err(error) => {
                tracing::error!(
                    sequence,
                    %error,
                    "skipping a row of the outbox that this service did not write; nothing is sent for it"
                );
                found.unreadable.push(sequence);
            }
        }
    }
    Ok(found)
}

/// The number of a row, which can be read even if the rest cannot.
#[derive(FromQueryResult)]
struct Numbered {
    sequence: i64,
}

#[derive(FromQueryResult)]
struct Row {
    sequence: i64,
    id: String,
    phone: String,
    code: String,
    trace: String,
    accepted_at: i64,
    expires_at: i64,
    age: i64,
}

impl Row {
    fn outgoing(self) -> Result<Outgoing, DatabaseError> {
        Ok(Outgoing {
            sequence: self.sequence,
            message: Message {
                id: parsed(&self.id, "an id")?,
                phone: parsed(&self.phone, "a phone")?,
                code: parsed(&self.code, "a code")?,
            },
            validity: Validity {
                accepted_at: time(self.accepted_at),
                expires_at: time(self.expires_at),
            },
            trace: parsed(&self.trace, "a trace")?,
            age: lasting(self.age),
        })
    }
}

// In PostgreSQL, each gap is read through the index, because published messages stay between the
// gaps. SQLite reads past them: its one writer leaves no gaps, unless the queue refuses messages.
static LOOK: Sql = Sql::with(
    &[SERVER],
    "
SELECT sequence, id::text AS id, phone, code, trace, {millis(accepted_at)} AS accepted_at,
    {millis(expires_at)} AS expires_at, {millis(now() - accepted_at)} AS age
FROM (
    SELECT own.*
    FROM :gap CROSS JOIN LATERAL (
        SELECT sequence, id, phone, code, trace, accepted_at, expires_at
        FROM outbox
        WHERE sequence BETWEEN gap.lowest AND gap.highest AND expires_at > now()
    ) AS own
    UNION ALL
    (
        SELECT sequence, id, phone, code, trace, accepted_at, expires_at
        FROM outbox
        WHERE sequence > :cursor AND expires_at > now()
        ORDER BY sequence
        LIMIT :limit
    )
) AS unread
WHERE {server} = :server
ORDER BY sequence
LIMIT :limit",
    "
SELECT sequence, id, phone, code, trace, accepted_at, expires_at, {now} - accepted_at AS age
FROM outbox
WHERE sequence >= :lowest
  AND (
      sequence > :cursor
      OR EXISTS (SELECT 1 FROM :gap WHERE outbox.sequence BETWEEN gap.lowest AND gap.highest)
  )
  AND expires_at > {now}
ORDER BY sequence
LIMIT :limit",
);
