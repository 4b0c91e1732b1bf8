use application::ports::{Answer, AnswerClaim, Answers, Begun, StoreError};
use autometrics::autometrics;
use domain::VerificationId;
use sea_orm::{DbErr, QueryResult, Value};

use crate::database::{Database, Sql, Told, bytes, parsed};

/// Answers to requests that may be repeated.
#[derive(Debug, Clone)]
pub struct SqlAnswers {
    database: Database,
}

/// Looks at what another may be giving back just then.
const TRIES: usize = 3;

impl SqlAnswers {
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    /// None: it was given back while it was looked at.
    async fn try_begin(&self, key: [u8; 32], body: [u8; 32]) -> Result<Option<Begun>, DbErr> {
        let values = vec![key.to_vec().into(), body.to_vec().into()];
        let rows = self.database.rows(BEGIN, values).await?;
        if let Some(row) = rows.first() {
            return Ok(Some(Begun::Ours(read_claim(key, row)?)));
        }
        let rows = self.database.rows(FIND, vec![key.to_vec().into()]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        if bytes::<32>(row, "body_hash")? != body {
            return Ok(Some(Begun::Other));
        }
        Ok(Some(read(row)?.map_or(Begun::Running, Begun::Answered)))
    }
}

impl Answers for SqlAnswers {
    #[autometrics(struct_name = "SqlAnswers")]
    async fn begin(&self, key: [u8; 32], body: [u8; 32]) -> Result<Begun, StoreError> {
        for _ in 0..TRIES {
            if let Some(begun) = self.try_begin(key, body).await.map_err(Told)? {
                return Ok(begun);
            }
        }
        Ok(Begun::Running)
    }

    #[autometrics(struct_name = "SqlAnswers")]
    async fn done(&self, claim: &AnswerClaim) -> Result<Option<VerificationId>, StoreError> {
        let rows = self.database.rows(DONE, named(claim)).await.map_err(Told)?;
        Ok(rows.first().map(read_done).transpose().map_err(Told)?.flatten())
    }

    #[autometrics(struct_name = "SqlAnswers")]
    async fn keep(&self, claim: &AnswerClaim, answer: &Answer) -> Result<(), StoreError> {
        let mut values = named(claim);
        values.extend([
            Value::from(i32::from(answer.status)),
            serde_json::json!(answer.headers).to_string().into(),
            answer.body.clone().into(),
        ]);
        self.database.execute(KEEP, values).await.map_err(Told)?;
        Ok(())
    }

    #[autometrics(struct_name = "SqlAnswers")]
    async fn forget(&self, claim: &AnswerClaim) -> Result<(), StoreError> {
        self.database.execute(FORGET, named(claim)).await.map_err(Told)?;
        Ok(())
    }

    #[autometrics(struct_name = "SqlAnswers")]
    async fn give_up(&self, claim: &AnswerClaim) -> Result<(), StoreError> {
        self.database.execute(GIVE_UP, named(claim)).await.map_err(Told)?;
        Ok(())
    }
}

// A holder begins with the time, as an id of a verification does: it becomes one.
//
// Two minutes are more than all steps of a request may take together. A claim that nobody came back
// for is taken over by whoever asks the same; after a day it is begun anew, by whoever asks.
const BEGIN: Sql = Sql {
    postgres: "
INSERT INTO idempotency AS known (key_hash, body_hash, holder, running_until, expires_at)
VALUES ($1, $2,
    substring(int8send((extract(epoch FROM now()) * 1000)::bigint) FROM 3)
        || substring(uuid_send(gen_random_uuid()) FROM 7),
    now() + interval '2 minutes', now() + interval '1 day')
ON CONFLICT (key_hash) DO UPDATE SET
    body_hash = excluded.body_hash,
    holder = excluded.holder,
    running_until = excluded.running_until,
    expires_at = excluded.expires_at,
    first_holder = CASE WHEN known.expires_at > now()
        THEN coalesce(known.first_holder, known.holder) END,
    done = CASE WHEN known.expires_at > now() THEN known.done END,
    status = NULL,
    headers = NULL,
    body = NULL
WHERE known.expires_at <= now()
   OR (known.status IS NULL AND known.running_until <= now()
       AND known.body_hash = excluded.body_hash)
RETURNING holder, first_holder, done::text AS done",
    sqlite: "
INSERT INTO idempotency AS known (key_hash, body_hash, holder, running_until, expires_at)
SELECT $1, $2, unhex(printf('%012x', now) || hex(randomblob(10))), now + 120000, now + 86400000
FROM (SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now)
WHERE true
ON CONFLICT (key_hash) DO UPDATE SET
    body_hash = excluded.body_hash,
    holder = excluded.holder,
    running_until = excluded.running_until,
    expires_at = excluded.expires_at,
    first_holder = CASE WHEN known.expires_at > CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
        THEN coalesce(known.first_holder, known.holder) END,
    done = CASE WHEN known.expires_at > CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
        THEN known.done END,
    status = NULL,
    headers = NULL,
    body = NULL
WHERE known.expires_at <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
   OR (known.status IS NULL
       AND known.running_until <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
       AND known.body_hash = excluded.body_hash)
RETURNING holder, first_holder, done",
};

const FIND: Sql = Sql {
    postgres: "
SELECT body_hash, status::integer AS status, headers, body FROM idempotency WHERE key_hash = $1",
    sqlite: "SELECT body_hash, status, headers, body FROM idempotency WHERE key_hash = $1",
};

const DONE: Sql = Sql {
    postgres: "SELECT done::text AS done FROM idempotency WHERE key_hash = $1 AND holder = $2",
    sqlite: "SELECT done FROM idempotency WHERE key_hash = $1 AND holder = $2",
};

const KEEP_SQL: &str = "
UPDATE idempotency
SET status = $3, headers = $4, body = $5
WHERE key_hash = $1 AND holder = $2";
const KEEP: Sql = Sql { postgres: KEEP_SQL, sqlite: KEEP_SQL };

const FORGET_SQL: &str = "DELETE FROM idempotency WHERE key_hash = $1 AND holder = $2";
const FORGET: Sql = Sql { postgres: FORGET_SQL, sqlite: FORGET_SQL };

const GIVE_UP: Sql = Sql {
    postgres: "
UPDATE idempotency
SET running_until = now()
WHERE key_hash = $1 AND holder = $2 AND status IS NULL",
    sqlite: "
UPDATE idempotency
SET running_until = CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
WHERE key_hash = $1 AND holder = $2 AND status IS NULL",
};

/// Tells those who take a claim over, in the statement that does the work. `$claim` and `$first`
/// are of [`done_under`].
macro_rules! tell_holders {
    ($done:literal, $claim:literal, $first:literal) => {
        concat!(
            "
    UPDATE idempotency
    SET done = ",
            $done,
            "
    WHERE key_hash = ",
            $claim,
            " AND coalesce(first_holder, holder) = ",
            $first
        )
    };
}
pub(crate) use tell_holders;

/// The parameters that say whom to tell; NULL: nobody.
pub(crate) fn done_under(claim: Option<&AnswerClaim>) -> [Value; 2] {
    [claim.map(|claim| claim.key.to_vec()).into(), claim.map(|claim| claim.first.to_vec()).into()]
}

/// The parameters that name a claim.
fn named(claim: &AnswerClaim) -> Vec<Value> {
    vec![claim.key.to_vec().into(), claim.holder.to_vec().into()]
}

fn read_claim(key: [u8; 32], row: &QueryResult) -> Result<AnswerClaim, DbErr> {
    let holder = bytes(row, "holder")?;
    let is_taken_over = row.try_get::<Option<Vec<u8>>>("", "first_holder")?.is_some();
    let first = if is_taken_over { bytes(row, "first_holder")? } else { holder };
    Ok(AnswerClaim { key, holder, first, done: read_done(row)? })
}

fn read_done(row: &QueryResult) -> Result<Option<VerificationId>, DbErr> {
    let done: Option<String> = row.try_get("", "done")?;
    Ok(done.map(|id| parsed(&id, "an id")).transpose()?.map(VerificationId::from_uuid))
}

/// None while it runs.
fn read(row: &QueryResult) -> Result<Option<Answer>, DbErr> {
    let Some(status) = row.try_get::<Option<i32>>("", "status")? else { return Ok(None) };
    let headers: String = row.try_get("", "headers")?;
    let headers: serde_json::Value = serde_json::from_str(&headers)
        .map_err(|_| DbErr::Type("not the headers of an answer".to_owned()))?;
    let headers = headers.as_array().into_iter().flatten().filter_map(|header| {
        let text = |place: usize| header.get(place)?.as_str().map(str::to_owned);
        Some((text(0)?, text(1)?))
    });
    Ok(Some(Answer {
        status: u16::try_from(status).map_err(|_| DbErr::Type("not a status".to_owned()))?,
        headers: headers.collect(),
        body: row.try_get("", "body")?,
    }))
}
