use std::{collections::BTreeMap, ops::Range, time::Duration};

use application::ports::StoreError;
use autometrics::autometrics;
use sea_orm::{ConnectionTrait, DbErr, QueryResult, Value};
use serde_json::json;

use crate::{
    backlog::SqlBacklog,
    database::{Database, Sql, Told, begin, millis, parsed},
    events::{TELL_POSTGRES, TELL_SQLITE},
    refusal::{code, first_taken, in_parts},
};

/// Ends, wipes and deletes what its owner should have ended and did not: rows of groups and topics
/// that no process has any more (ADR 34).
///
/// Any process may do it, and several at a time.
#[derive(Debug, Clone)]
pub struct SqlHousekeeping {
    database: Database,
    backlog: SqlBacklog,
    events: bool,
}

/// What [`SqlHousekeeping::end_expired`] ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expired {
    /// Messages that no consumer had taken over.
    pub untaken: u64,
    /// Messages of consumers that are gone, which were still to be sent.
    pub expired: u64,
    /// Messages of consumers that are gone, which may have been sent.
    pub unknown: u64,
    /// Records of the embedded queue.
    pub records: u64,
}

/// An open entry of a ledger.
#[derive(Debug, Clone)]
struct Entry {
    id: String,
    group: String,
}

/// Rows that one statement touches at most: none of ours may take long.
const ROWS: u64 = 10_000;

/// How long a consumer that holds its partition has to end what has expired: what it cannot read,
/// say, it does not end.
const OVERDUE: Duration = Duration::from_secs(3_600);

impl SqlHousekeeping {
    /// `events`: others are told of what is ended.
    pub fn new(database: Database, events: bool) -> Self {
        let backlog = SqlBacklog::new(database.clone(), String::new()).with_events(events);
        Self { database, backlog, events }
    }

    /// Ends what has expired and wipes its codes: messages that no consumer took over, entries of
    /// partitions that no living consumer holds, and records of the embedded queue.
    ///
    /// A call that may still be under way is left alone until half a minute after its end. It ends
    /// as unknown.
    #[autometrics(struct_name = "SqlHousekeeping")]
    pub async fn end_expired(&self) -> Result<Expired, StoreError> {
        self.try_end_expired().await.map_err(|error| Told(error).into())
    }

    /// Deletes what is of longer ago than `retention`, whichever group or topic it is of: ended
    /// entries, dead letters, and what is known of groups without a consumer. Says how many rows.
    ///
    /// Also ends what has been expired for an hour under a living consumer, and deletes members
    /// that died a day ago and events that nobody has posted for a week.
    #[autometrics(struct_name = "SqlHousekeeping")]
    pub async fn prune(&self, retention: Duration) -> Result<u64, StoreError> {
        self.try_prune(retention).await.map_err(|error| Told(error).into())
    }

    async fn try_end_expired(&self) -> Result<Expired, DbErr> {
        let untaken = self.backlog.end_expired().await?;
        let (expired, unknown) = self.end_entries(ABANDONED, vec![]).await?;
        let records = self.trim().await?;
        Ok(Expired { untaken, expired, unknown, records })
    }

    async fn try_prune(&self, retention: Duration) -> Result<u64, DbErr> {
        self.end_entries(OVERDUE_ENTRIES, vec![millis(OVERDUE).into()]).await?;
        self.database.execute(DATE_LEASES, vec![]).await?;
        let old = || vec![millis(retention).into()];
        let mut pruned = 0;
        for (sql, values) in [
            (PRUNE_ENTRIES, old()),
            (PRUNE_DEAD_LETTERS, old()),
            (PRUNE_LEASES, old()),
            (PRUNE_MEMBERS, vec![]),
            (PRUNE_EVENTS, vec![]),
        ] {
            loop {
                let deleted = self.database.execute(sql, values.clone()).await?;
                pruned += deleted;
                if deleted < ROWS {
                    break;
                }
            }
        }
        Ok(pruned)
    }

    /// Ends the open entries that `find` selects. Says how many as expired and as unknown.
    async fn end_entries(&self, find: Sql, values: Vec<Value>) -> Result<(u64, u64), DbErr> {
        let (mut expired, mut unknown) = (0, 0);
        loop {
            let found = self.database.rows(find, values.clone()).await?;
            let found: Vec<Entry> = found.iter().map(Entry::read).collect::<Result<_, _>>()?;
            if found.is_empty() {
                return Ok((expired, unknown));
            }
            let found = &found;
            let end = |places: Range<usize>| self.end(&found[places], self.events);
            let end_alone = |place: usize, error: DbErr| async move {
                tracing::error!(
                    message.id = found[place].id,
                    sqlstate = code(&error),
                    "the database refuses the end of an expired message"
                );
                let entry = std::slice::from_ref(&found[place]);
                // It must not stay: its code would.
                let step = |ends: bool| async move {
                    if ends { self.end(entry, false).await } else { self.forget(entry).await }
                };
                Ok(first_taken([true, false], step).await?.unwrap_or_default())
            };
            let states = in_parts(found.len(), end, end_alone).await?.concat();
            let count = |state| states.iter().filter(|it| *it == state).count() as u64;
            expired += count("expired");
            unknown += count("unknown");
            // Where others have locked the rest, they end it.
            if (states.len() as u64) < ROWS {
                return Ok((expired, unknown));
            }
        }
    }

    /// Ends these, in one commit, as far as nobody else did. Returns their states.
    async fn end(&self, entries: &[Entry], events: bool) -> Result<Vec<String>, DbErr> {
        let state = |row: &QueryResult| row.try_get::<String>("", "state");
        if self.database.is_postgres() {
            let sql = end_postgres(events);
            let statement = self.database.as_written(&sql, self.list(entries)?);
            let rows = self.database.step(async |it| it.query_all_raw(statement).await).await?;
            return rows.iter().map(state).collect();
        }
        let transaction = begin(&self.database.connection()).await?;
        let run = async |sql, values| {
            transaction.query_all_raw(self.database.as_written(sql, values)).await
        };
        let rows = run(END_SQLITE, self.list(entries)?).await?;
        if events {
            let mut ended: BTreeMap<String, Vec<[String; 2]>> = BTreeMap::new();
            for row in &rows {
                let text = |column| row.try_get::<String>("", column);
                ended.entry(text("group_id")?).or_default().push([text("id")?, text("state")?]);
            }
            for (group, ended) in ended {
                run(TELL_SQLITE, vec![json!(ended).to_string().into(), group.into()]).await?;
            }
        }
        transaction.commit().await?;
        rows.iter().map(state).collect()
    }

    /// Deletes these, whose end cannot be stored.
    async fn forget(&self, entries: &[Entry]) -> Result<Vec<String>, DbErr> {
        self.database.execute(FORGET, self.list(entries)?).await?;
        Ok(Vec::new())
    }

    /// Entries as parameters.
    fn list(&self, entries: &[Entry]) -> Result<Vec<Value>, DbErr> {
        if !self.database.is_postgres() {
            let pairs: Vec<_> = entries.iter().map(|it| [&it.id, &it.group]).collect();
            return Ok(vec![json!(pairs).to_string().into()]);
        }
        let ids = entries.iter().map(|it| parsed::<uuid::Uuid>(&it.id, "an id"));
        let groups: Vec<String> = entries.iter().map(|it| it.group.clone()).collect();
        Ok(vec![ids.collect::<Result<Vec<_>, _>>()?.into(), groups.into()])
    }

    /// Deletes records of the embedded queue, of any topic, up to the first of each partition that
    /// has not expired: there must be no gap.
    async fn trim(&self) -> Result<u64, DbErr> {
        let mut trimmed = 0;
        for place in self.database.rows(QUEUES, vec![]).await? {
            let values = vec![
                place.try_get::<String>("", "topic")?.into(),
                place.try_get::<i32>("", "partition")?.into(),
            ];
            trimmed += self.database.execute(TRIM, values).await?;
        }
        Ok(trimmed)
    }
}

impl Entry {
    fn read(row: &QueryResult) -> Result<Self, DbErr> {
        Ok(Self { id: row.try_get("", "id")?, group: row.try_get("", "group_id")? })
    }
}

/// Whether an open entry has expired and nobody calls for it.
macro_rules! is_late_postgres {
    () => {
        "expires_at <= now()
    AND (state = 'pending' OR due_at <= now() - interval '30 seconds')"
    };
}
macro_rules! is_late_sqlite {
    () => {
        "expires_at <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
  AND (state = 'pending'
       OR due_at <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - 30000)"
    };
}

// Goes from partition to partition through the index of what is open, and into those that nobody
// holds: what living consumers have open, which may be very much, is not read.
const ABANDONED: Sql = Sql {
    postgres: concat!(
        "
WITH RECURSIVE place AS (
    (
        SELECT group_id, topic, partition
        FROM delivery
        WHERE state IN ('pending', 'calling')
        ORDER BY group_id, topic, partition
        LIMIT 1
    )
    UNION ALL
    SELECT next.group_id, next.topic, next.partition
    FROM place CROSS JOIN LATERAL (
        SELECT group_id, topic, partition
        FROM delivery
        WHERE state IN ('pending', 'calling')
          AND (group_id, topic, partition) > (place.group_id, place.topic, place.partition)
        ORDER BY group_id, topic, partition
        LIMIT 1
    ) AS next
)
SELECT late.id, late.group_id
FROM place CROSS JOIN LATERAL (
    SELECT message_id::text AS id, group_id
    FROM delivery
    WHERE delivery.group_id = place.group_id AND delivery.topic = place.topic
      AND delivery.partition = place.partition
      AND state IN ('pending', 'calling') AND ",
        is_late_postgres!(),
        "
    LIMIT 10000
) AS late
WHERE NOT EXISTS (
    SELECT 1
    FROM partition_lease AS lease
    WHERE lease.group_id = place.group_id AND lease.topic = place.topic
      AND lease.partition = place.partition
      AND lease.owner IS NOT NULL AND lease.expires_at > now()
)
LIMIT 10000"
    ),
    sqlite: concat!(
        "
SELECT message_id AS id, group_id
FROM delivery
WHERE state IN ('pending', 'calling') AND ",
        is_late_sqlite!(),
        "
  AND NOT EXISTS (
      SELECT 1
      FROM partition_lease AS lease
      WHERE lease.group_id = delivery.group_id AND lease.topic = delivery.topic
        AND lease.partition = delivery.partition
        AND lease.owner IS NOT NULL
        AND lease.expires_at > CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
  )
LIMIT 10000"
    ),
};

const OVERDUE_ENTRIES: Sql = Sql {
    postgres: concat!(
        "
SELECT message_id::text AS id, group_id
FROM delivery
WHERE state IN ('pending', 'calling') AND expires_at <= now() - $1 * interval '1 millisecond'
  AND ",
        is_late_postgres!(),
        "
LIMIT 10000"
    ),
    sqlite: concat!(
        "
SELECT message_id AS id, group_id
FROM delivery
WHERE state IN ('pending', 'calling')
  AND expires_at <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - $1
  AND ",
        is_late_sqlite!(),
        "
LIMIT 10000"
    ),
};

/// `events`: what is ended is told of.
fn end_postgres(events: bool) -> String {
    const ENDED: &str = ", ended AS (SELECT message_id AS id, state FROM closed)";
    let told = if events { [ENDED, TELL_POSTGRES] } else { [""; 2] };
    [END_POSTGRES, told[0], told[1], "SELECT state FROM closed"].concat()
}

const END_POSTGRES: &str = concat!(
    "
WITH late AS (
    SELECT own.message_id, own.group_id
    FROM (SELECT * FROM unnest($1::uuid[], $2::text[]) ORDER BY 1) AS named (message_id, group_id)
        CROSS JOIN LATERAL (
            SELECT message_id, group_id
            FROM delivery
            WHERE delivery.message_id = named.message_id AND delivery.group_id = named.group_id
              AND state || '' IN ('pending', 'calling') AND ",
    is_late_postgres!(),
    "
            FOR UPDATE SKIP LOCKED
        ) AS own
), closed AS (
    UPDATE delivery
    SET state = CASE state WHEN 'pending' THEN 'expired' ELSE 'unknown' END,
        code = NULL,
        ended_at = now(),
        detail = 'no consumer ended it',
        attempts = CASE state
            WHEN 'pending' THEN attempts
            ELSE attempts || jsonb_build_object('attempt', attempt, 'outcome', 'ambiguous',
                'detail', 'interrupted', 'called_at', called_at, 'ended_at', now())
        END
    WHERE (message_id, group_id) IN (SELECT message_id, group_id FROM late)
    RETURNING message_id, state
)"
);

const END_SQLITE: &str = concat!(
    "
UPDATE delivery
SET state = iif(state = 'pending', 'expired', 'unknown'),
    code = NULL,
    ended_at = clock.now,
    detail = 'no consumer ended it',
    attempts = iif(state = 'pending', attempts, json_insert(attempts, '$[#]',
        json_object('attempt', attempt, 'outcome', 'ambiguous', 'detail', 'interrupted',
            'called_at', called_at, 'ended_at', clock.now)))
FROM (SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now) AS clock
WHERE (message_id, group_id) IN (SELECT value ->> 0, value ->> 1 FROM json_each($1))
  AND state IN ('pending', 'calling') AND ",
    is_late_sqlite!(),
    "
RETURNING message_id AS id, group_id, state"
);

const FORGET: Sql = Sql {
    postgres: concat!(
        "
DELETE FROM delivery
WHERE (message_id, group_id) IN (SELECT * FROM unnest($1::uuid[], $2::text[]))
  AND state || '' IN ('pending', 'calling') AND ",
        is_late_postgres!()
    ),
    sqlite: concat!(
        "
DELETE FROM delivery
WHERE (message_id, group_id) IN (SELECT value ->> 0, value ->> 1 FROM json_each($1))
  AND state IN ('pending', 'calling') AND ",
        is_late_sqlite!()
    ),
};

const QUEUES_SQL: &str = r#"SELECT topic, "partition" FROM queue_partition"#;
const QUEUES: Sql = Sql { postgres: QUEUES_SQL, sqlite: QUEUES_SQL };

// A record says in its headers when it expires, in a form that can be compared as a text. One that
// does not is given the longest time that a message may have.
const TRIM: Sql = Sql {
    postgres: r#"
DELETE FROM queue_record
WHERE topic = $1 AND "partition" = $2 AND "offset" < coalesce((
    SELECT "offset"
    FROM queue_record
    WHERE topic = $1 AND "partition" = $2
      AND coalesce(
          (substring(headers FROM '"ce_expirytime":"([^"]*)"') COLLATE "C")
              > to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
          written_at > (extract(epoch FROM now()) * 1000)::bigint - 3600000)
    ORDER BY "offset"
    LIMIT 1
), 9223372036854775807)"#,
    sqlite: r#"
DELETE FROM queue_record
WHERE topic = $1 AND "partition" = $2 AND "offset" < coalesce((
    SELECT "offset"
    FROM queue_record
    WHERE topic = $1 AND "partition" = $2
      AND coalesce(
          headers ->> 'ce_expirytime' > strftime('%Y-%m-%dT%H:%M:%fZ', 'now'),
          written_at > CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - 3600000)
    ORDER BY "offset"
    LIMIT 1
), 9223372036854775807)"#,
};

// Not before it has expired: an entry is what keeps a message that is read again from being sent.
const PRUNE_ENTRIES: Sql = Sql {
    postgres: "
DELETE FROM delivery
WHERE (message_id, group_id) IN (
    SELECT message_id, group_id
    FROM delivery
    WHERE accepted_at < now() - $1 * interval '1 millisecond' AND ended_at IS NOT NULL
      AND expires_at <= now()
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
    sqlite: "
DELETE FROM delivery
WHERE place IN (
    SELECT place
    FROM delivery
    WHERE ended_at IS NOT NULL
      AND accepted_at < CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - $1
      AND expires_at <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
    LIMIT 10000
)",
};

const PRUNE_DEAD_LETTERS: Sql = Sql {
    postgres: "
DELETE FROM dead_letter
WHERE id IN (
    SELECT id
    FROM dead_letter
    WHERE recorded_at < now() - $1 * interval '1 millisecond'
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
    sqlite: "
DELETE FROM dead_letter
WHERE id IN (
    SELECT id
    FROM dead_letter
    WHERE recorded_at < CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - $1
    LIMIT 10000
)",
};

// Versions before said nothing of when a partition was given up: it counts from now on.
const DATE_LEASES: Sql = Sql {
    postgres: "
UPDATE partition_lease
SET expires_at = now()
WHERE owner IS NULL AND expires_at = '-infinity'",
    sqlite: "
UPDATE partition_lease
SET expires_at = CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
WHERE owner IS NULL AND expires_at = 0",
};

// A group is forgotten as a whole: one that has lost some of its partitions would take them for new.
const PRUNE_LEASES: Sql = Sql {
    postgres: "
DELETE FROM partition_lease
WHERE (group_id, topic, partition) IN (
    SELECT group_id, topic, partition
    FROM partition_lease AS old
    WHERE old.expires_at < now() - $1 * interval '1 millisecond'
      AND NOT EXISTS (
          SELECT 1
          FROM partition_lease AS other
          WHERE other.group_id = old.group_id AND other.topic = old.topic
            AND other.expires_at >= now() - $1 * interval '1 millisecond'
      )
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
    sqlite: "
DELETE FROM partition_lease
WHERE expires_at < CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - $1
  AND NOT EXISTS (
      SELECT 1
      FROM partition_lease AS other
      WHERE other.group_id = partition_lease.group_id AND other.topic = partition_lease.topic
        AND other.expires_at >= CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - $1
  )",
};

// A day later, so that a consumer which only slept does not have to fear for its row.
const PRUNE_MEMBERS: Sql = Sql {
    postgres: "DELETE FROM consumer_member WHERE expires_at < now() - interval '1 day'",
    sqlite: "
DELETE FROM consumer_member
WHERE expires_at < CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - 86400000",
};

// One that is tried again is due within hours; these nobody posts any more.
const PRUNE_EVENTS: Sql = Sql {
    postgres: "
DELETE FROM event
WHERE sequence IN (
    SELECT sequence
    FROM event
    WHERE due_at < now() - interval '7 days'
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
    sqlite: "
DELETE FROM event
WHERE sequence IN (
    SELECT sequence
    FROM event
    WHERE due_at < CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - 604800000
    LIMIT 10000
)",
};
