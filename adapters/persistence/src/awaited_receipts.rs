mod postgres;
mod sqlite;

use std::{collections::HashMap, time::Duration};

use application::ports::{
    AwaitedReceipts, ExtraSend, Overdue, Rerouting, StoreError, Verification,
};
use autometrics::autometrics;
use domain::{ATTEMPTS, GatewayName, MessageId, VerificationId};
use sea_orm::FromQueryResult;

use crate::{
    database::{Database, DatabaseError, Fragment, Parameters, Sql, millis, parsed},
    verification_row::{VERIFICATION_COLUMNS, VerificationRow},
};

/// Messages whose delivery receipt is awaited.
#[derive(Debug, Clone)]
pub struct SqlAwaitedReceipts {
    database: Database,
}

impl SqlAwaitedReceipts {
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    fn attempts(&self) -> Parameters {
        self.database.parameters().with("attempts", i16::from(ATTEMPTS))
    }

    async fn lease(&self, limit: usize, lease: Duration) -> Result<Vec<LeasedRow>, DatabaseError> {
        #[derive(FromQueryResult)]
        struct Found {
            found: i32,
        }

        // Without a due message, which is the rule, nothing is written.
        let found: Option<Found> = self.database.row(&ANY, self.database.parameters()).await?;
        if found.is_none_or(|row| row.found == 0) {
            return Ok(Vec::new());
        }
        self.database.execute(&FORGET_SETTLED, self.attempts()).await?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let parameters = self.attempts().with("limit", limit).with("lease", millis(lease));
        self.database.rows(&LEASE, parameters).await
    }

    async fn verifications(
        &self,
        ids: impl Iterator<Item = VerificationId>,
    ) -> Result<HashMap<VerificationId, Verification>, DatabaseError> {
        let parameters = self.database.parameters().list("ids", ids.map(VerificationId::as_uuid));
        let read = VerificationRow::verification;
        let all = self.database.readable_rows(&VERIFICATIONS, parameters, read).await?;
        Ok(all.into_iter().map(|it| (it.id, it)).collect())
    }
}

#[derive(FromQueryResult)]
struct LeasedRow {
    message: String,
    gateway: String,
    is_undelivered: bool,
}

impl LeasedRow {
    fn leased(&self) -> Result<(MessageId, GatewayName, Rerouting), DatabaseError> {
        let reason =
            if self.is_undelivered { Rerouting::Undelivered } else { Rerouting::NoReceipt };
        Ok((parsed(&self.message, "an id")?, parsed(&self.gateway, "a gateway")?, reason))
    }
}

impl AwaitedReceipts for SqlAwaitedReceipts {
    #[autometrics(struct_name = "SqlAwaitedReceipts")]
    async fn claim(&self, limit: usize, lease: Duration) -> Result<Vec<Overdue>, StoreError> {
        let rows = self.lease(limit, lease).await?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let leased: Vec<_> = rows.iter().map(LeasedRow::leased).collect::<Result<_, _>>()?;
        let ids = leased.iter().map(|(message, ..)| VerificationId::of(*message));
        let mut verifications = self.verifications(ids).await?;
        let overdue = |(message, gateway, reason)| {
            // It has one message that is the latest.
            let verification = verifications.remove(&VerificationId::of(message))?;
            Some(Overdue { message, gateway, reason, verification })
        };
        Ok(leased.into_iter().filter_map(overdue).collect())
    }

    #[autometrics(struct_name = "SqlAwaitedReceipts")]
    async fn send_elsewhere(&self, extra: ExtraSend) -> Result<bool, StoreError> {
        let database = &self.database;
        if database.is_postgres() {
            return Ok(postgres::send_elsewhere(database, &extra).await?);
        }
        let step = async |it| sqlite::send_elsewhere(database, &it, &extra).await;
        Ok(database.step(step).await?)
    }

    #[autometrics(struct_name = "SqlAwaitedReceipts")]
    async fn forget(&self, message: MessageId) -> Result<(), StoreError> {
        static FORGET: Sql = Sql::new("DELETE FROM awaited_receipt WHERE message_id = :message");
        let parameters = self.database.parameters().id("message", message.as_uuid());
        self.database.execute(&FORGET, parameters).await?;
        Ok(())
    }
}

/// Makes a message due if a receipt says that it will not arrive.
///
/// A statement of its own, after that of the receipt: it sees the outcome of the call, however closely
/// the two came together. After a crash in between, the message is due when its time is up.
pub(crate) async fn make_due(database: &Database, message: MessageId) -> Result<(), DatabaseError> {
    static MAKE_DUE: Sql = Sql::new(
        "
UPDATE awaited_receipt
SET due_at = {now}
WHERE message_id = :message AND due_at > {now} AND EXISTS (
    SELECT 1 FROM delivery WHERE message_id = :message AND undelivered_at IS NOT NULL
)",
    );
    let parameters = database.parameters().id("message", message.as_uuid());
    database.execute(&MAKE_DUE, parameters).await?;
    Ok(())
}

/// Returns the gateways that messages must not go through.
pub(crate) async fn passed_over(
    database: &Database,
    messages: &[MessageId],
) -> Result<HashMap<MessageId, Vec<GatewayName>>, DatabaseError> {
    #[derive(FromQueryResult)]
    struct Row {
        id: String,
        passed_over: String,
    }

    let parameters =
        database.parameters().list("ids", messages.iter().map(|message| message.as_uuid()));
    let rows: Vec<Row> = database.rows(&PASSED_OVER, parameters).await?;
    let read = |Row { id, passed_over }: Row| {
        let names = passed_over.split_whitespace().map(|name| parsed(name, "a gateway"));
        Ok((parsed(&id, "an id")?, names.collect::<Result<_, _>>()?))
    };
    rows.into_iter().map(read).collect()
}

static ANY: Sql = Sql::new(
    "SELECT CAST(EXISTS (SELECT 1 FROM awaited_receipt WHERE due_at <= {now}) AS integer) AS found",
);

/// Whether no later code is on its way to the phone of a verification.
const IS_NEWEST: Fragment = Fragment::new(
    "is_newest",
    "EXISTS (
        SELECT 1
        FROM phone AS known
        WHERE known.phone IN (verification.phone, 'api:' || verification.phone)
          AND verification.id IN (known.newest, known.api_newest)
    )",
);

/// Whether the code of a message is still to be sent again.
const IS_WANTED: Fragment = Fragment::new(
    "is_wanted",
    "
    EXISTS (
        SELECT 1
        FROM verification
        WHERE verification.id = awaited_receipt.verification_id
          AND verification.status || '' = 'pending' AND verification.expires_at > {now}
          AND verification.sends = awaited_receipt.send AND verification.attempts < :attempts
          AND {is_newest}
    ) AND NOT EXISTS (
        SELECT 1
        FROM delivery
        WHERE delivery.message_id = awaited_receipt.message_id AND delivered_at IS NOT NULL
    )",
);

// Both look at the messages that are due for longest, so that a round costs the same however many are
// due.
static FORGET_SETTLED: Sql = Sql::with(
    &[IS_WANTED, IS_NEWEST],
    "
DELETE FROM awaited_receipt
WHERE message_id = ANY (ARRAY(
    SELECT message_id
    FROM awaited_receipt
    WHERE due_at <= now()
    ORDER BY due_at
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
)) AND NOT ({is_wanted})",
    "
DELETE FROM awaited_receipt
WHERE message_id IN (
    SELECT message_id
    FROM awaited_receipt
    WHERE due_at <= {now}
    ORDER BY due_at
    LIMIT 1000
) AND NOT ({is_wanted})",
);

static LEASE: Sql = Sql::with(
    &[IS_WANTED, IS_NEWEST],
    "
UPDATE awaited_receipt
SET due_at = now() + {duration(:lease)}
WHERE message_id = ANY (ARRAY(
    SELECT message_id
    FROM awaited_receipt
    WHERE due_at <= now()
    ORDER BY due_at
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
)) AND {is_wanted}
RETURNING message_id::text AS message, gateway, EXISTS (
    SELECT 1
    FROM delivery
    WHERE delivery.message_id = awaited_receipt.message_id AND undelivered_at IS NOT NULL
) AS is_undelivered",
    "
UPDATE awaited_receipt
SET due_at = {now} + :lease
WHERE message_id IN (
    SELECT message_id
    FROM awaited_receipt
    WHERE due_at <= {now}
    ORDER BY due_at
    LIMIT :limit
) AND {is_wanted}
RETURNING message_id AS message, gateway, EXISTS (
    SELECT 1
    FROM delivery
    WHERE delivery.message_id = awaited_receipt.message_id AND undelivered_at IS NOT NULL
) AS is_undelivered",
);

static VERIFICATIONS: Sql = Sql::with(
    &[VERIFICATION_COLUMNS],
    "SELECT {verification_columns} FROM verification WHERE id = ANY (:ids::uuid[])",
    "
SELECT {verification_columns}
FROM verification
WHERE id IN (SELECT value FROM json_each(:ids))",
);

static PASSED_OVER: Sql = Sql::pair(
    "SELECT message_id::text AS id, passed_over FROM extra_send WHERE message_id = ANY (:ids::uuid[])",
    "
SELECT message_id AS id, passed_over
FROM extra_send
WHERE message_id IN (SELECT value FROM json_each(:ids))",
);
