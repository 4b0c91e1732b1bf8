//! The tables that have rows of a phone, and how each is erased.

use crate::database::Sql;

/// The erasure of a phone from one table.
pub(super) struct Erasure {
    pub(super) table: &'static str,
    pub(super) how: &'static str,
    pub(super) by: By,
    pub(super) count: Sql,
    pub(super) erase: Sql,
}

/// How the rows are found.
#[derive(Debug, Clone, Copy)]
pub(super) enum By {
    /// `:phone`.
    Phone,
    /// `:phone`, and `:key`, the key of its records.
    Key,
    /// `:ids` of messages.
    Messages,
    /// `:ids` of verifications.
    Verifications,
}

/// Makes the statements that count and that delete the same rows.
macro_rules! delete {
    ($table:literal, $by:expr, where $both:literal) => {
        delete!($table, $by, $both, $both)
    };
    ($table:literal, $by:expr, ids in $column:literal) => {
        delete!(
            $table,
            $by,
            concat!($column, " = ANY (:ids::uuid[])"),
            concat!($column, " IN (SELECT value FROM json_each(:ids))")
        )
    };
    ($table:literal, $by:expr, $postgres:expr, $sqlite:expr) => {
        Erasure {
            table: $table,
            how: "deleted",
            by: $by,
            count: Sql::pair(
                concat!("SELECT count(*) AS rows FROM ", $table, " WHERE ", $postgres),
                concat!("SELECT count(*) AS rows FROM ", $table, " WHERE ", $sqlite),
            ),
            erase: Sql::pair(
                concat!("DELETE FROM ", $table, " WHERE ", $postgres),
                concat!("DELETE FROM ", $table, " WHERE ", $sqlite),
            ),
        }
    };
}

// The lists are erased in their order. A row is erased after the rows that are found through it: if the
// work stops halfway, the next run still finds the others.

/// Erased before the messages of the phone end: a message whose verification is gone ends without an
/// event, and without a receipt that is awaited no code is sent again.
pub(super) static ACCOUNT: [Erasure; 5] = [
    delete!("phone", By::Phone, where "phone IN (:phone, 'api:' || :phone)"),
    delete!("idempotency", By::Verifications, ids in "done"),
    delete!("event", By::Verifications, ids in "verification"),
    delete!("verification", By::Verifications, ids in "id"),
    delete!("awaited_receipt", By::Messages, ids in "message_id"),
];

/// Erased as soon as each group knows these messages.
pub(super) static WAITING_MESSAGES: [Erasure; 1] = [delete!("outbox", By::Messages, ids in "id")];

/// Erased when all messages have ended.
pub(super) static REST: [Erasure; 6] = [
    delete!(
        "limit_counter",
        By::Phone,
        where "key IN (:phone, '+' || :phone, '?' || :phone, 'api:' || :phone, 'api?' || :phone)"
    ),
    delete!(
        "gateway_receipt",
        By::Messages,
        "(gateway, reference) IN (
            SELECT coalesce(delivery.gateway, 'default'), delivery.reference
            FROM delivery
            WHERE message_id = ANY (:ids::uuid[]) AND delivery.reference IS NOT NULL)",
        "(gateway, reference) IN (
            SELECT coalesce(delivery.gateway, 'default'), delivery.reference
            FROM delivery
            WHERE delivery.message_id IN (SELECT value FROM json_each(:ids))
              AND delivery.reference IS NOT NULL)"
    ),
    delete!("extra_send", By::Messages, ids in "message_id"),
    delete!("gateway_note", By::Messages, ids in "message_id"),
    // A record stays, because the queue may have no gap. One that every group has read is emptied.
    // Of one in clear that is still to be read, the ledger knows the message; a sealed one leaves
    // with the queue's next trimming.
    Erasure {
        table: "queue_record",
        how: "kept without the number",
        by: By::Key,
        count: Sql::new(
            "SELECT count(*) AS rows FROM queue_record WHERE key = :key AND :phone <> ''",
        ),
        erase: Sql::pair(
            r#"
UPDATE queue_record
SET key = NULL,
    value = CASE
        WHEN "offset" < (
            SELECT min(lease.next_offset)
            FROM partition_lease AS lease
            WHERE lease.topic = queue_record.topic
              AND lease.partition = queue_record."partition"
        ) THEN NULL
        ELSE convert_to(replace(convert_from(value, 'UTF8'), :phone, '0000000'), 'UTF8')
    END
WHERE key = :key"#,
            r#"
UPDATE queue_record
SET key = NULL,
    value = CASE
        WHEN "offset" < (
            SELECT min(lease.next_offset)
            FROM partition_lease AS lease
            WHERE lease.topic = queue_record.topic
              AND lease.partition = queue_record."partition"
        ) THEN NULL
        ELSE CAST(replace(CAST(value AS TEXT), :phone, '0000000') AS BLOB)
    END
WHERE key = :key"#,
        ),
    },
    Erasure {
        table: "delivery",
        how: "kept without the number and the provider's id",
        by: By::Messages,
        count: Sql::pair(
            "
SELECT count(*) AS rows
FROM delivery
WHERE message_id = ANY (:ids::uuid[]) AND phone <> '0000000'",
            "
SELECT count(*) AS rows
FROM delivery
WHERE message_id IN (SELECT value FROM json_each(:ids)) AND phone <> '0000000'",
        ),
        erase: Sql::pair(
            "
UPDATE delivery
SET phone = '0000000', reference = NULL, trace = NULL
WHERE message_id = ANY (:ids::uuid[]) AND phone <> '0000000'
  AND state || '' NOT IN ('pending', 'calling')",
            "
UPDATE delivery
SET phone = '0000000', reference = NULL, trace = NULL
WHERE message_id IN (SELECT value FROM json_each(:ids)) AND phone <> '0000000'
  AND state NOT IN ('pending', 'calling')",
        ),
    },
];

/// Returns all erasures.
pub(super) fn all() -> impl Iterator<Item = &'static Erasure> {
    ACCOUNT.iter().chain(&WAITING_MESSAGES).chain(&REST)
}
