use application::ports::{Answer, AnswerClaim, Answers, Begun, StoreError};
use autometrics::autometrics;
use domain::VerificationId;
use sea_orm::FromQueryResult;

use crate::database::{Database, DatabaseError, Parameters, Sql, Transaction, bytes, parsed};

/// Answers to requests with an `Idempotency-Key`.
#[derive(Debug, Clone)]
pub struct SqlAnswers {
    database: Database,
}

/// Tries to claim a key that another request is giving back at the same moment.
const TRIES: usize = 3;

impl SqlAnswers {
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    /// Returns nothing if the claim was given back between the two statements.
    async fn try_begin(
        &self,
        key: [u8; 32],
        body: [u8; 32],
    ) -> Result<Option<Begun>, DatabaseError> {
        let parameters = || self.database.parameters().with("key", key.to_vec());
        let begin = parameters().with("body", body.to_vec());
        if let Some(row) = self.database.row::<ClaimRow>(&BEGIN, begin).await? {
            return Ok(Some(Begun::Ours(row.claim(key)?)));
        }
        let Some(row) = self.database.row::<AnswerRow>(&FIND, parameters()).await? else {
            return Ok(None);
        };
        if row.body_hash != body {
            return Ok(Some(Begun::Other));
        }
        Ok(Some(row.answer()?.map_or(Begun::Running, Begun::Answered)))
    }

    /// The parameters that name a claim.
    fn claim(&self, claim: &AnswerClaim) -> Parameters {
        self.database
            .parameters()
            .with("key", claim.key.to_vec())
            .with("holder", claim.holder.to_vec())
    }
}

impl Answers for SqlAnswers {
    #[autometrics(struct_name = "SqlAnswers")]
    async fn begin(&self, key: [u8; 32], body: [u8; 32]) -> Result<Begun, StoreError> {
        for _ in 0..TRIES {
            if let Some(begun) = self.try_begin(key, body).await? {
                return Ok(begun);
            }
        }
        Ok(Begun::Running)
    }

    #[autometrics(struct_name = "SqlAnswers")]
    async fn done(&self, claim: &AnswerClaim) -> Result<Option<VerificationId>, StoreError> {
        let row: Option<DoneRow> = self.database.row(&DONE, self.claim(claim)).await?;
        Ok(row.and_then(|row| row.done).map(|id| verification_id(&id)).transpose()?)
    }

    #[autometrics(struct_name = "SqlAnswers")]
    async fn keep(&self, claim: &AnswerClaim, answer: &Answer) -> Result<(), StoreError> {
        let parameters = self
            .claim(claim)
            .with("status", i32::from(answer.status))
            .with("headers", serde_json::json!(answer.headers).to_string())
            .with("body", answer.body.clone());
        self.database.execute(&KEEP, parameters).await?;
        Ok(())
    }

    #[autometrics(struct_name = "SqlAnswers")]
    async fn forget(&self, claim: &AnswerClaim) -> Result<(), StoreError> {
        self.database.execute(&FORGET, self.claim(claim)).await?;
        Ok(())
    }

    #[autometrics(struct_name = "SqlAnswers")]
    async fn give_up(&self, claim: &AnswerClaim) -> Result<(), StoreError> {
        self.database.execute(&GIVE_UP, self.claim(claim)).await?;
        Ok(())
    }
}

// A claim lasts two minutes, which is more than all steps of a request may take together. A request
// with the same body takes over a claim that has ended. After a day, any request may claim the key.
static BEGIN: Sql = Sql::pair(
    "
INSERT INTO idempotency AS known (key_hash, body_hash, holder, running_until, expires_at)
VALUES (:key, :body,
    -- begins with the time, as the id of the verification does that it becomes
    substring(int8send({millis(now())}) FROM 3)
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
    "
INSERT INTO idempotency AS known (key_hash, body_hash, holder, running_until, expires_at)
SELECT :key, :body, unhex(printf('%012x', now) || hex(randomblob(10))), now + 120000, now + 86400000
FROM (SELECT {now} AS now)
WHERE true
ON CONFLICT (key_hash) DO UPDATE SET
    body_hash = excluded.body_hash,
    holder = excluded.holder,
    running_until = excluded.running_until,
    expires_at = excluded.expires_at,
    first_holder = CASE WHEN known.expires_at > {now}
        THEN coalesce(known.first_holder, known.holder) END,
    done = CASE WHEN known.expires_at > {now} THEN known.done END,
    status = NULL,
    headers = NULL,
    body = NULL
WHERE known.expires_at <= {now}
   OR (known.status IS NULL AND known.running_until <= {now}
       AND known.body_hash = excluded.body_hash)
RETURNING holder, first_holder, done",
);

static FIND: Sql = Sql::pair(
    "
SELECT body_hash, status::integer AS status, headers, body
FROM idempotency
WHERE key_hash = :key",
    "SELECT body_hash, status, headers, body FROM idempotency WHERE key_hash = :key",
);

static DONE: Sql = Sql::new(
    "SELECT {text(done)} AS done FROM idempotency WHERE key_hash = :key AND holder = :holder",
);

static KEEP: Sql = Sql::new(
    "
UPDATE idempotency
SET status = :status, headers = :headers, body = :body
WHERE key_hash = :key AND holder = :holder",
);

static FORGET: Sql = Sql::new("DELETE FROM idempotency WHERE key_hash = :key AND holder = :holder");

static GIVE_UP: Sql = Sql::new(
    "
UPDATE idempotency
SET running_until = {now}
WHERE key_hash = :key AND holder = :holder AND status IS NULL",
);

/// Notes in SQLite, in the transaction that does the work, what the holders that take the claim over
/// find as done.
pub(crate) async fn note_done_sqlite(
    database: &Database,
    transaction: &Transaction,
    id: VerificationId,
    claim: Option<&AnswerClaim>,
) -> Result<(), DatabaseError> {
    static NOTE: Sql = Sql::new(
        "
UPDATE idempotency
SET done = :id
WHERE key_hash = :claim_key AND coalesce(first_holder, holder) = :claim_first",
    );
    if claim.is_some() {
        let parameters = done_under(database.parameters().id("id", id.as_uuid()), claim);
        transaction.execute(&NOTE, parameters).await?;
    }
    Ok(())
}

/// The parameters that say under which claim work is done; nulls if there is none.
pub(crate) fn done_under(parameters: Parameters, claim: Option<&AnswerClaim>) -> Parameters {
    parameters
        .with("claim_key", claim.map(|claim| claim.key.to_vec()))
        .with("claim_first", claim.map(|claim| claim.first.to_vec()))
}

#[derive(FromQueryResult)]
struct ClaimRow {
    holder: Vec<u8>,
    first_holder: Option<Vec<u8>>,
    done: Option<String>,
}

#[derive(FromQueryResult)]
struct DoneRow {
    done: Option<String>,
}

#[derive(FromQueryResult)]
struct AnswerRow {
    body_hash: Vec<u8>,
    status: Option<i32>,
    headers: Option<String>,
    body: Option<String>,
}

impl ClaimRow {
    fn claim(self, key: [u8; 32]) -> Result<AnswerClaim, DatabaseError> {
        let holder = bytes(self.holder, "holder")?;
        let first = match self.first_holder {
            Some(first) => bytes(first, "first_holder")?,
            None => holder,
        };
        let done = self.done.map(|id| verification_id(&id)).transpose()?;
        Ok(AnswerClaim { key, holder, first, done })
    }
}

impl AnswerRow {
    /// Returns nothing while the request runs.
    fn answer(self) -> Result<Option<Answer>, DatabaseError> {
        let Some(status) = self.status else { return Ok(None) };
        let not_headers = || DatabaseError::not("the headers of an answer");
        let headers = self.headers.ok_or_else(not_headers)?;
        let headers: serde_json::Value =
            serde_json::from_str(&headers).map_err(|_| not_headers())?;
        let headers = headers.as_array().into_iter().flatten().filter_map(|header| {
            let text = |place: usize| header.get(place)?.as_str().map(str::to_owned);
            Some((text(0)?, text(1)?))
        });
        Ok(Some(Answer {
            status: u16::try_from(status).map_err(|_| DatabaseError::not("a status"))?,
            headers: headers.collect(),
            body: self.body.ok_or_else(|| DatabaseError::not("the body of an answer"))?,
        }))
    }
}

fn verification_id(text: &str) -> Result<VerificationId, DatabaseError> {
    parsed(text, "an id").map(VerificationId::from_uuid)
}
