use application::ports::{Attempt, CheckOutcome, EventKind, Target, Violation};
use domain::{ATTEMPTS, CodeHash, Counter, KeyId, Origin, PhoneNumber, Policy, VerificationId};
use sea_orm::{DatabaseConnection, FromQueryResult};

use super::outcome::{ApprovalRow, KnownRow, WrongRow};
use crate::{
    database::{Database, DatabaseError, Parameters, Sql, Transaction, begin, clock, parsed},
    idempotency::note_done_sqlite,
    limits::{self, UsedRow, violations},
    verifications::{
        newest::{NEWEST_OF_API, NEWEST_OF_V1},
        sqlite::{clear_newest, record},
    },
};

/// One attempt in its transaction.
struct Check<'a> {
    database: &'a Database,
    transaction: &'a Transaction,
    attempt: &'a Attempt,
    guesses: &'a [Policy],
    now: i64,
}

/// What a guess is counted under, and what it is tried against.
#[derive(Debug)]
struct Guessed {
    found: Option<Found>,
    counter: String,
    /// Whether the attempt may be made if this has room. Otherwise it is counted only for the work
    /// to be the same.
    counts: bool,
}

/// A verification, before the attempt.
#[derive(Debug, FromQueryResult)]
struct Found {
    id: String,
    phone: String,
    origin: String,
    exhausted: bool,
    is_right: Option<bool>,
}

/// A verification that was named by its id.
#[derive(Debug, FromQueryResult)]
struct FoundById {
    #[sea_orm(nested)]
    found: Found,
    #[sea_orm(nested)]
    known: KnownRow,
}

pub(super) async fn check(
    database: &Database,
    connection: &DatabaseConnection,
    attempt: &Attempt,
    guesses: &[Policy],
) -> Result<CheckOutcome, DatabaseError> {
    let transaction = begin(connection).await?;
    let now = clock(&transaction).await?;
    let check = Check { database, transaction: &transaction, attempt, guesses, now };
    match check.decide().await? {
        Ok(tried) => {
            transaction.commit().await?;
            Ok(tried)
        }
        Err(untried) => Ok(untried),
    }
}

impl Check<'_> {
    fn parameters(&self) -> Parameters {
        self.database.parameters().with("now", self.now)
    }

    /// Returns what is to be committed, or in `Err` why nothing is.
    async fn decide(&self) -> Result<Result<CheckOutcome, CheckOutcome>, DatabaseError> {
        let targets = match self.targets().await? {
            Ok(targets) => targets,
            Err(untried) => return Ok(Err(untried)),
        };
        let mut with_room = Vec::new();
        let mut over = Vec::new();
        for target in targets {
            let used = self.used_up(&target).await?;
            if used.is_empty() {
                with_room.push(target);
            } else if target.counts && over.is_empty() {
                over = used;
            }
        }
        if !with_room.iter().any(|target| target.counts) {
            return Ok(Err(CheckOutcome::Limited(over)));
        }
        if let Some(right) = with_room.iter().find(|target| target.is_right()) {
            return Ok(Ok(self.approve(right).await?));
        }
        let mut tried = CheckOutcome::Nothing;
        for target in &with_room {
            let wrong = self.guess(target).await?;
            if let (CheckOutcome::Nothing, Some(wrong)) = (&tried, wrong) {
                tried = wrong;
            }
        }
        Ok(Ok(tried))
    }

    /// Returns what the attempt is made at, or why it is not made.
    async fn targets(&self) -> Result<Result<Vec<Guessed>, CheckOutcome>, DatabaseError> {
        let Attempt { target, hashes, api_hashes, .. } = self.attempt;
        match target {
            Target::Id(id) => {
                let find = self.hashed(hashes).id("id", id.as_uuid());
                let row: Option<FoundById> = self.transaction.row(&TARGET_BY_ID, find).await?;
                let Some(row) = row else { return Ok(Err(CheckOutcome::Unknown)) };
                if let Some(untried) = row.known.untried()? {
                    return Ok(Err(untried));
                }
                Ok(Ok(vec![Guessed::by_id(row.found)?]))
            }
            Target::Newest { phone, of } => {
                let find = |hashes: &[(KeyId, CodeHash)]| {
                    self.hashed(hashes).with("phone", phone.as_str())
                };
                let v1: Option<Found> = self.transaction.row(&TARGET_OF_V1, find(hashes)).await?;
                let api: Option<Found> =
                    self.transaction.row(&TARGET_OF_API, find(api_hashes)).await?;
                let id = |found: &Option<Found>| found.as_ref().map(Found::id).transpose();
                if (id(&v1)?, id(&api)?) != (of.v1, of.api) {
                    return Ok(Err(CheckOutcome::Changed));
                }
                Ok(Ok(Guessed::by_phone(phone, v1, api)))
            }
        }
    }

    fn hashed(&self, hashes: &[(KeyId, CodeHash)]) -> Parameters {
        let parameters = self.parameters().with("attempts", ATTEMPTS);
        parameters.rows("hashed", hashes.iter(), |rows| {
            rows.column("pepper", |(pepper, _)| pepper.as_str().to_owned())
                .column("hash", |(_, hash)| hash.as_bytes().to_vec())
        })
    }

    /// Returns the windows of a target that have no room.
    async fn used_up(&self, target: &Guessed) -> Result<Vec<Violation>, DatabaseError> {
        let parameters = self.parameters().with("key", target.counter.as_str());
        let parameters = parameters.list("policies", self.policies());
        let rows: Vec<UsedRow> = self.transaction.rows(&GUESSES, parameters).await?;
        Ok(violations(self.guesses, &rows))
    }

    fn policies(&self) -> impl Iterator<Item = String> {
        self.guesses.iter().map(|policy| policy.name.as_str().to_owned())
    }

    /// Counts a guess and, if there is something to guess, a wrong attempt at it.
    async fn guess(&self, target: &Guessed) -> Result<Option<CheckOutcome>, DatabaseError> {
        self.count_guess(target).await?;
        let Some(found) = target.found.as_ref().filter(|found| !found.exhausted) else {
            return Ok(None);
        };
        self.count_attempt(found.id()?).await?.wrong().map(Some)
    }

    async fn count_guess(&self, target: &Guessed) -> Result<(), DatabaseError> {
        let counters = self
            .guesses
            .iter()
            .map(|policy| Counter { policy: policy.clone(), key: target.counter.clone() });
        let counters: Vec<Counter> = counters.collect();
        limits::count_sqlite(self.database, self.transaction, counters.iter(), self.now).await?;
        Ok(())
    }

    async fn count_attempt(&self, id: VerificationId) -> Result<WrongRow, DatabaseError> {
        let parameters = self.parameters().id("id", id.as_uuid());
        let row = self.transaction.row(&COUNT_ATTEMPT, parameters).await?;
        row.ok_or_else(|| DatabaseError::missing("the verification that was tried"))
    }

    /// Approves the verification that the code is right for.
    async fn approve(&self, target: &Guessed) -> Result<CheckOutcome, DatabaseError> {
        let missing = || DatabaseError::missing("the verification that was approved");
        let id = target.found.as_ref().ok_or_else(missing)?.id()?;
        let by_id = || self.parameters().id("id", id.as_uuid());
        self.count_guess(target).await?;
        self.count_attempt(id).await?;
        let row: Option<ApprovalRow> = self.transaction.row(&APPROVE, by_id()).await?;
        let approval = row.ok_or_else(missing)?.approval()?;
        clear_newest(self.database, self.transaction, approval.phone.as_str(), id).await?;
        let forgive = by_id().with("key", target.counter.as_str());
        let forgive = forgive.list("policies", self.policies());
        self.transaction.execute(&FORGIVE, forgive).await?;
        record(self.database, self.transaction, EventKind::Approved, id, self.now).await?;
        let claim = self.attempt.claim.as_ref();
        note_done_sqlite(self.database, self.transaction, id, claim).await?;
        Ok(CheckOutcome::Right(approval))
    }
}

impl Guessed {
    fn by_id(found: Found) -> Result<Self, DatabaseError> {
        let origin: Origin = parsed(&found.origin, "an origin")?;
        let of_origin = if origin == Origin::Api { "api:" } else { "" };
        let counter = format!("{of_origin}{}", found.phone);
        Ok(Self { counter, found: Some(found), counts: true })
    }

    /// One for each origin, as the statement of PostgreSQL has it.
    fn by_phone(phone: &PhoneNumber, v1: Option<Found>, api: Option<Found>) -> Vec<Self> {
        let is_none = v1.is_none() && api.is_none();
        let of = |found: Option<Found>, [known, unknown]: [&str; 2], counts| {
            let of_origin = if found.is_some() { known } else { unknown };
            let counter = format!("{of_origin}{}", phone.as_str());
            Self { counts: counts || found.is_some(), found, counter }
        };
        vec![of(v1, ["", "?"], is_none), of(api, ["api:", "api?"], false)]
    }

    fn is_right(&self) -> bool {
        let is_right = |found: &Found| found.is_right == Some(true) && !found.exhausted;
        self.found.as_ref().is_some_and(is_right)
    }
}

impl Found {
    fn id(&self) -> Result<VerificationId, DatabaseError> {
        parsed(&self.id, "an id").map(VerificationId::from_uuid)
    }
}

static TARGET_BY_ID: Sql = Sql::new(
    "
SELECT id, phone, origin, attempts >= :attempts AS exhausted,
    (pepper_id, code_hash) IN (SELECT pepper, unhex(hash) FROM :hashed) AS is_right,
    CASE WHEN status = 'pending' AND expires_at <= {now} THEN 'expired' ELSE status END AS status,
    expires_at - {now} AS good_for, expires_at - created_at AS ttl
FROM verification
WHERE id = :id",
);

static TARGET_OF_V1: Sql = Sql::with(
    &[NEWEST_OF_V1],
    "",
    "
SELECT id, verification.phone, origin, attempts >= :attempts AS exhausted,
    (pepper_id, code_hash) IN (SELECT pepper, unhex(hash) FROM :hashed) AS is_right\
    {newest_of_v1(:phone)}",
);

static TARGET_OF_API: Sql = Sql::with(
    &[NEWEST_OF_API],
    "",
    "
SELECT id, verification.phone, origin, attempts >= :attempts AS exhausted,
    (pepper_id, code_hash) IN (SELECT pepper, unhex(hash) FROM :hashed) AS is_right\
    {newest_of_api(:phone)}",
);

static GUESSES: Sql = Sql::new(
    "
SELECT policy, used, ends_at - {now} AS remains
FROM limit_counter
WHERE policy IN (SELECT value FROM json_each(:policies)) AND ends_at > {now} AND key = :key",
);

static COUNT_ATTEMPT: Sql = Sql::new(
    "UPDATE verification SET attempts = attempts + 1 WHERE id = :id RETURNING attempts, pepper_id",
);

static APPROVE: Sql = Sql::new(
    "
UPDATE verification
SET status = 'approved', ended_at = {now}, code_hash = NULL, seed = NULL
WHERE id = :id
RETURNING id, phone, region, origin",
);

// Only the guesses at this verification: a stranger's guesses stay counted, however often the owner
// of the phone is approved.
static FORGIVE: Sql = Sql::new(
    "
UPDATE limit_counter
SET used = max(used - (SELECT attempts FROM verification WHERE id = :id), 0)
WHERE key = :key AND policy IN (SELECT value FROM json_each(:policies))",
);
