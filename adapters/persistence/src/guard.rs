use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use application::ports::{
    GuardCounts, GuardDecision, GuardDelta, GuardKey, GuardRecords, GuardTotal, PastVerification,
    StoreError, StoredDecision,
};
use autometrics::autometrics;
use domain::{GuardMode, Rolling, VerificationId};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, QueryResult, Value};
use serde_json::json;
use uuid::Uuid;

use crate::database::{
    Database, Sql, Told, begin, clock, lasting, millis, parsed, since_1970, time,
};

/// Sends and approvals of all processes, and what the guard decided.
#[derive(Debug, Clone)]
pub struct SqlGuard {
    database: Database,
    events: bool,
}

/// What one rule has said of one key, in its order: a row. A flood makes as many decisions as it
/// has requests.
#[derive(Debug)]
struct Run<'a> {
    first: &'a GuardDecision,
    others: Vec<&'a GuardDecision>,
}

/// Decisions behind the first one in a row.
const OTHERS: usize = 999;

impl SqlGuard {
    pub fn new(database: Database) -> Self {
        Self { database, events: false }
    }

    /// Whether others are told of what was blocked.
    #[must_use]
    pub fn with_events(self, events: bool) -> Self {
        Self { events, ..self }
    }

    fn told<'a>(&self, decisions: &'a [GuardDecision]) -> impl Iterator<Item = &'a str> {
        let events = self.events;
        let blocked =
            decisions.iter().filter(move |it| events && it.rule.mode == GuardMode::Enforce);
        blocked.map(|decision| &*decision.phone)
    }

    /// One statement.
    async fn add_postgres(
        &self,
        moved: &[GuardDelta],
        decisions: &[GuardDecision],
        window: Duration,
    ) -> Result<Vec<QueryResult>, DbErr> {
        let texts = |texts: Vec<&str>| {
            Value::from(texts.into_iter().map(str::to_owned).collect::<Vec<String>>())
        };
        let keys = || moved.iter();
        let runs = Run::all(decisions);
        let first = || runs.iter().map(|run| run.first);
        let rules: Vec<String> = first().map(|it| it.rule.to_string()).collect();
        let verifications =
            first().map(|it| it.verification.map_or(Uuid::nil(), VerificationId::as_uuid));
        let values = vec![
            texts(keys().map(|it| it.key.scope.as_str()).collect()),
            texts(keys().map(|it| &*it.key.key).collect()),
            keys().map(|it| it.sends.cast_signed()).collect::<Vec<i64>>().into(),
            keys().map(|it| it.approvals.cast_signed()).collect::<Vec<i64>>().into(),
            millis(window).into(),
            rules.into(),
            texts(first().map(|it| it.rule.mode.as_str()).collect()),
            texts(first().map(|it| it.scope.as_str()).collect()),
            texts(first().map(|it| &*it.key).collect()),
            first().map(|it| it.sends.cast_signed()).collect::<Vec<i64>>().into(),
            first().map(|it| it.approvals.cast_signed()).collect::<Vec<i64>>().into(),
            verifications.collect::<Vec<Uuid>>().into(),
            runs.iter().map(|run| run.others().unwrap_or_default()).collect::<Vec<_>>().into(),
            texts(self.told(decisions).collect()),
        ];
        let statement = self.database.as_written(ADD_POSTGRES, values);
        self.database.step(async |it| it.query_all_raw(statement).await).await
    }

    /// The same in SQLite, where a statement writes to one table.
    async fn add_sqlite(
        &self,
        connection: DatabaseConnection,
        moved: &[GuardDelta],
        decisions: &[GuardDecision],
        window: Duration,
    ) -> Result<Vec<QueryResult>, DbErr> {
        let transaction = begin(&connection).await?;
        let now = clock(&transaction).await?;
        let run = async |sql, rows: serde_json::Value, more: Vec<Value>| {
            let values = [vec![rows.to_string().into(), now.into()], more].concat();
            transaction.query_all_raw(self.database.as_written(sql, values)).await
        };
        let counts = moved
            .iter()
            .map(|it| json!([it.key.scope.as_str(), it.key.key, it.sends, it.approvals]));
        let totals = run(ADD, counts.collect(), vec![millis(window).into()]).await?;
        let runs = Run::all(decisions);
        let decided = runs.iter().map(|run| {
            let it = run.first;
            json!([
                it.rule.to_string(),
                it.rule.mode.as_str(),
                it.scope.as_str(),
                it.key,
                it.sends,
                it.approvals,
                it.verification.map(|id| id.as_uuid().to_string()),
                run.others(),
            ])
        });
        run(DECIDE, decided.collect(), vec![]).await?;
        run(TELL, self.told(decisions).collect(), vec![]).await?;
        transaction.commit().await?;
        Ok(totals)
    }
}

impl<'a> Run<'a> {
    fn all(decisions: &'a [GuardDecision]) -> Vec<Self> {
        let mut runs: Vec<Self> = Vec::new();
        let mut latest = HashMap::new();
        for decision in decisions {
            let place = latest.entry((decision.rule, &decision.key)).or_insert(runs.len());
            match runs.get_mut(*place) {
                Some(run) if run.others.len() < OTHERS => run.others.push(decision),
                _ => {
                    *place = runs.len();
                    runs.push(Self { first: decision, others: Vec::new() });
                }
            }
        }
        runs
    }

    /// What follows the first, as it is kept: a list of `[sends, approvals, verification]`.
    fn others(&self) -> Option<String> {
        let others = self.others.iter().map(|it| {
            json!([it.sends, it.approvals, it.verification.map(|id| id.as_uuid().to_string())])
        });
        (!self.others.is_empty()).then(|| others.collect::<serde_json::Value>().to_string())
    }
}

impl GuardCounts for SqlGuard {
    #[autometrics(struct_name = "SqlGuard")]
    async fn add(
        &self,
        moved: &[GuardDelta],
        decisions: &[GuardDecision],
        window: Duration,
    ) -> Result<Vec<GuardTotal>, StoreError> {
        let rows = if self.database.is_postgres() {
            self.add_postgres(moved, decisions, window).await
        } else {
            let step = async |it| self.add_sqlite(it, moved, decisions, window).await;
            self.database.step(step).await
        };
        let rows = rows.map_err(Told)?;
        Ok(rows.iter().map(read_total).collect::<Result<_, _>>().map_err(Told)?)
    }
}

impl GuardRecords for SqlGuard {
    #[autometrics(struct_name = "SqlGuard")]
    async fn past(
        &self,
        since: Duration,
        after: Option<(SystemTime, VerificationId)>,
        limit: usize,
    ) -> Result<Vec<PastVerification>, StoreError> {
        let (at, id) = after.map_or((0, VerificationId::NIL), |(at, id)| (since_1970(at), id));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let values =
            vec![millis(since).into(), at.into(), self.database.id(id.as_uuid()), limit.into()];
        let rows = self.database.rows(PAST, values).await.map_err(Told)?;
        Ok(rows.iter().map(read_past).collect::<Result<_, _>>().map_err(Told)?)
    }

    #[autometrics(struct_name = "SqlGuard")]
    async fn decisions(
        &self,
        since: Duration,
        limit: usize,
    ) -> Result<Vec<StoredDecision>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let values = vec![millis(since).into(), limit.into()];
        let rows = self.database.rows(DECISIONS, values).await.map_err(Told)?;
        Ok(rows.iter().map(read_decision).collect::<Result<_, _>>().map_err(Told)?)
    }

    #[autometrics(struct_name = "SqlGuard")]
    async fn allow(&self, keys: &[GuardKey], period: Duration) -> Result<(), StoreError> {
        let values = if self.database.is_postgres() {
            let scopes = keys.iter().map(|it| it.scope.as_str().to_owned());
            let names = keys.iter().map(|it| it.key.clone());
            vec![scopes.collect::<Vec<_>>().into(), names.collect::<Vec<_>>().into()]
        } else {
            let keys = keys.iter().map(|it| json!([it.scope.as_str(), it.key]));
            vec![keys.collect::<serde_json::Value>().to_string().into()]
        };
        let values = [values, vec![millis(period).into()]].concat();
        self.database.execute(ALLOW, values).await.map_err(Told)?;
        Ok(())
    }
}

// Buckets turn here as `Rolling::later` has it. Rows are locked in one order.
const ADD_POSTGRES: &str = "
WITH counted AS (
    INSERT INTO guard_count AS known
        (scope, key, began_at, sends, approvals, day_began_at, day_sends, day_approvals)
    SELECT scope, key, now(), sends, approvals, now(), sends, approvals
    FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[])
        AS moved (scope, key, sends, approvals)
    ORDER BY scope, key
    ON CONFLICT (scope, key) DO UPDATE SET
        began_at = CASE
            WHEN now() - known.began_at < $5 * interval '1 millisecond' THEN known.began_at
            WHEN now() - known.began_at < 2 * $5 * interval '1 millisecond'
                THEN known.began_at + $5 * interval '1 millisecond'
            ELSE now() END,
        sends_before = CASE
            WHEN now() - known.began_at < $5 * interval '1 millisecond' THEN known.sends_before
            WHEN now() - known.began_at < 2 * $5 * interval '1 millisecond' THEN known.sends
            ELSE 0 END,
        approvals_before = CASE
            WHEN now() - known.began_at < $5 * interval '1 millisecond' THEN known.approvals_before
            WHEN now() - known.began_at < 2 * $5 * interval '1 millisecond' THEN known.approvals
            ELSE 0 END,
        sends = excluded.sends + CASE
            WHEN now() - known.began_at < $5 * interval '1 millisecond' THEN known.sends
            ELSE 0 END,
        approvals = excluded.approvals + CASE
            WHEN now() - known.began_at < $5 * interval '1 millisecond' THEN known.approvals
            ELSE 0 END,
        day_began_at = CASE
            WHEN now() - known.day_began_at < interval '1 day' THEN known.day_began_at
            WHEN now() - known.day_began_at < 2 * interval '1 day' THEN known.day_began_at + interval '1 day'
            ELSE now() END,
        day_sends_before = CASE
            WHEN now() - known.day_began_at < interval '1 day' THEN known.day_sends_before
            WHEN now() - known.day_began_at < 2 * interval '1 day' THEN known.day_sends
            ELSE 0 END,
        day_approvals_before = CASE
            WHEN now() - known.day_began_at < interval '1 day' THEN known.day_approvals_before
            WHEN now() - known.day_began_at < 2 * interval '1 day' THEN known.day_approvals
            ELSE 0 END,
        day_sends = excluded.sends + CASE
            WHEN now() - known.day_began_at < interval '1 day' THEN known.day_sends
            ELSE 0 END,
        day_approvals = excluded.approvals + CASE
            WHEN now() - known.day_began_at < interval '1 day' THEN known.day_approvals
            ELSE 0 END
    RETURNING scope, key, sends, approvals, sends_before, approvals_before,
        (extract(epoch FROM now() - began_at) * 1000)::bigint AS age,
        day_sends, day_approvals, day_sends_before, day_approvals_before,
        (extract(epoch FROM now() - day_began_at) * 1000)::bigint AS day_age,
        coalesce(allowed_until > now(), false) AS allowed
), decided AS (
    INSERT INTO guard_decision (rule, mode, scope, key, sends, approvals, verification, others)
    SELECT rule, mode, scope, key, sends, approvals,
        nullif(verification, '00000000-0000-0000-0000-000000000000'), nullif(others, '')::json
    FROM unnest($6::text[], $7::text[], $8::text[], $9::text[], $10::bigint[], $11::bigint[],
            $12::uuid[], $13::text[])
        AS run (rule, mode, scope, key, sends, approvals, verification, others)
), told AS (
    INSERT INTO event (kind, phone) SELECT 'blocked', phone FROM unnest($14::text[]) AS phone
)
SELECT * FROM counted";

const ADD: &str = "
INSERT INTO guard_count AS known
    (scope, key, began_at, sends, approvals, day_began_at, day_sends, day_approvals)
SELECT value ->> 0, value ->> 1, $2, value ->> 2, value ->> 3, $2, value ->> 2, value ->> 3
FROM json_each($1)
WHERE true
ON CONFLICT (scope, key) DO UPDATE SET
    began_at = CASE
        WHEN $2 - known.began_at < $3 THEN known.began_at
        WHEN $2 - known.began_at < 2 * $3 THEN known.began_at + $3
        ELSE $2 END,
    sends_before = CASE
        WHEN $2 - known.began_at < $3 THEN known.sends_before
        WHEN $2 - known.began_at < 2 * $3 THEN known.sends
        ELSE 0 END,
    approvals_before = CASE
        WHEN $2 - known.began_at < $3 THEN known.approvals_before
        WHEN $2 - known.began_at < 2 * $3 THEN known.approvals
        ELSE 0 END,
    sends = excluded.sends + iif($2 - known.began_at < $3, known.sends, 0),
    approvals = excluded.approvals + iif($2 - known.began_at < $3, known.approvals, 0),
    day_began_at = CASE
        WHEN $2 - known.day_began_at < 86400000 THEN known.day_began_at
        WHEN $2 - known.day_began_at < 172800000 THEN known.day_began_at + 86400000
        ELSE $2 END,
    day_sends_before = CASE
        WHEN $2 - known.day_began_at < 86400000 THEN known.day_sends_before
        WHEN $2 - known.day_began_at < 172800000 THEN known.day_sends
        ELSE 0 END,
    day_approvals_before = CASE
        WHEN $2 - known.day_began_at < 86400000 THEN known.day_approvals_before
        WHEN $2 - known.day_began_at < 172800000 THEN known.day_approvals
        ELSE 0 END,
    day_sends = excluded.sends + iif($2 - known.day_began_at < 86400000, known.day_sends, 0),
    day_approvals = excluded.approvals
        + iif($2 - known.day_began_at < 86400000, known.day_approvals, 0)
RETURNING scope, key, sends, approvals, sends_before, approvals_before, $2 - began_at AS age,
    day_sends, day_approvals, day_sends_before, day_approvals_before, $2 - day_began_at AS day_age,
    coalesce(allowed_until > $2, false) AS allowed";

const ALLOW: Sql = Sql {
    postgres: "
INSERT INTO guard_count (scope, key, began_at, sends, approvals, allowed_until)
SELECT scope, key, now(), 0, 0, now() + $3 * interval '1 millisecond'
FROM unnest($1::text[], $2::text[]) AS allowed (scope, key)
ON CONFLICT (scope, key) DO UPDATE SET allowed_until = excluded.allowed_until",
    sqlite: "
INSERT INTO guard_count (scope, key, began_at, sends, approvals, allowed_until)
SELECT value ->> 0, value ->> 1, now, 0, 0, now + $2
FROM json_each($1), (SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now)
WHERE true
ON CONFLICT (scope, key) DO UPDATE SET allowed_until = excluded.allowed_until",
};

const DECIDE: &str = "
INSERT INTO guard_decision
    (decided_at, rule, mode, scope, key, sends, approvals, verification, others)
SELECT $2, value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5,
    value ->> 6, value ->> 7
FROM json_each($1)";

const TELL: &str = "
INSERT INTO event (kind, phone, at, due_at)
SELECT 'blocked', value, $2, $2
FROM json_each($1)";

// A page begins behind a time that was told in milliseconds, so in these it goes on: PostgreSQL
// orders by what it returns.
const PAST: Sql = Sql {
    postgres: "
SELECT id::text AS id, phone, region, sends::integer AS sends,
    (extract(epoch FROM created_at) * 1000)::bigint AS created_at,
    (extract(epoch FROM CASE WHEN status = 'approved' THEN ended_at END) * 1000)::bigint
        AS approved_at
FROM verification
WHERE origin = 'v1'
  AND verification.created_at > now() - $1 * interval '1 millisecond'
  AND verification.created_at >= to_timestamp(($2::bigint - 1) / 1000.0)
  AND ((extract(epoch FROM verification.created_at) * 1000)::bigint, verification.id) > ($2, $3)
ORDER BY created_at, verification.id
LIMIT $4",
    sqlite: "
SELECT id, phone, region, sends, created_at,
    CASE WHEN status = 'approved' THEN ended_at END AS approved_at
FROM verification, (SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now)
WHERE origin = 'v1' AND created_at > now - $1 AND created_at >= $2
  AND (created_at, id) > ($2, $3)
ORDER BY created_at, id
LIMIT $4",
};

const DECISIONS: Sql = Sql {
    postgres: "
SELECT (extract(epoch FROM decided_at) * 1000)::bigint AS decided_at, rule, key, it.sends,
    it.approvals, it.verification::text AS verification
FROM (
        SELECT *
        FROM guard_decision
        WHERE guard_decision.decided_at > now() - $1 * interval '1 millisecond'
        ORDER BY id DESC
        LIMIT $2
    ) AS run CROSS JOIN LATERAL (
        SELECT 0 AS place, run.sends, run.approvals, run.verification
        UNION ALL
        SELECT place, (value ->> 0)::bigint, (value ->> 1)::bigint, (value ->> 2)::uuid
        FROM json_array_elements(others) WITH ORDINALITY AS other (value, place)
    ) AS it
ORDER BY id DESC, place DESC
LIMIT $2",
    sqlite: "
WITH run AS (
    SELECT *
    FROM guard_decision
    WHERE decided_at > CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - $1
    ORDER BY id DESC
    LIMIT $2
)
SELECT id, -1 AS place, decided_at, rule, key, sends, approvals, verification
FROM run
UNION ALL
SELECT run.id, other.key, decided_at, rule, run.key, other.value ->> 0, other.value ->> 1,
    other.value ->> 2
FROM run, json_each(others) AS other
ORDER BY id DESC, place DESC
LIMIT $2",
};

fn number(row: &QueryResult, column: &'static str) -> Result<u64, DbErr> {
    Ok(u64::try_from(row.try_get::<i64>("", column)?).unwrap_or(0))
}

fn read_total(row: &QueryResult) -> Result<GuardTotal, DbErr> {
    let scope = parsed(&row.try_get::<String>("", "scope")?, "a scope")?;
    Ok(GuardTotal {
        key: GuardKey { scope, key: row.try_get("", "key")? },
        window: Rolling {
            sends: number(row, "sends")?,
            approvals: number(row, "approvals")?,
            sends_before: number(row, "sends_before")?,
            approvals_before: number(row, "approvals_before")?,
            age: lasting(row.try_get("", "age")?),
        },
        day: Rolling {
            sends: number(row, "day_sends")?,
            approvals: number(row, "day_approvals")?,
            sends_before: number(row, "day_sends_before")?,
            approvals_before: number(row, "day_approvals_before")?,
            age: lasting(row.try_get("", "day_age")?),
        },
        allowed: row.try_get("", "allowed")?,
    })
}

fn read_past(row: &QueryResult) -> Result<PastVerification, DbErr> {
    let region: Option<String> = row.try_get("", "region")?;
    Ok(PastVerification {
        id: read_id(&row.try_get::<String>("", "id")?)?,
        phone: parsed(&row.try_get::<String>("", "phone")?, "a phone")?,
        region: region.map(|region| parsed(&region, "a region")).transpose()?,
        sends: u8::try_from(row.try_get::<i32>("", "sends")?).unwrap_or(u8::MAX),
        created_at: time(row.try_get("", "created_at")?),
        approved_at: row.try_get::<Option<i64>>("", "approved_at")?.map(time),
    })
}

fn read_decision(row: &QueryResult) -> Result<StoredDecision, DbErr> {
    let verification: Option<String> = row.try_get("", "verification")?;
    Ok(StoredDecision {
        decided_at: time(row.try_get("", "decided_at")?),
        rule: row.try_get("", "rule")?,
        key: row.try_get("", "key")?,
        sends: number(row, "sends")?,
        approvals: number(row, "approvals")?,
        verification: verification.map(|id| read_id(&id)).transpose()?,
    })
}

fn read_id(text: &str) -> Result<VerificationId, DbErr> {
    parsed(text, "an id").map(VerificationId::from_uuid)
}
