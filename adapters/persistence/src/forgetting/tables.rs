//! The tables that have something of a phone, and what becomes of it.

use crate::database::Sql;

/// What is erased in one table.
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
    ($table:literal, $by:expr, $postgres:literal, $sqlite:literal) => {
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
    ($table:literal, $by:expr, $both:literal) => {
        delete!($table, $by, $both, $both)
    };
}

/// In the order in which they are erased. A row is erased after the rows that are found through it:
/// if the work stops halfway, the next run still finds the others. `delivery` is the last.
pub(super) static ERASURES: [Erasure; 13] = [
    delete!("phone", By::Phone, "phone IN (:phone, 'api:' || :phone)"),
    delete!(
        "idempotency",
        By::Verifications,
        "done = ANY (:ids::uuid[])",
        "done IN (SELECT value FROM json_each(:ids))"
    ),
    delete!(
        "event",
        By::Verifications,
        "verification = ANY (:ids::uuid[])",
        "verification IN (SELECT value FROM json_each(:ids))"
    ),
    delete!(
        "verification",
        By::Verifications,
        "id = ANY (:ids::uuid[])",
        "id IN (SELECT value FROM json_each(:ids))"
    ),
    delete!(
        "limit_counter",
        By::Phone,
        "key IN (:phone, '+' || :phone, '?' || :phone, 'api:' || :phone, 'api?' || :phone)"
    ),
    delete!(
        "outbox",
        By::Messages,
        "id = ANY (:ids::uuid[])",
        "id IN (SELECT value FROM json_each(:ids))"
    ),
    delete!(
        "in_transit",
        By::Messages,
        "id = ANY (:ids::uuid[])",
        "id IN (SELECT value FROM json_each(:ids))"
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
    delete!(
        "awaited_receipt",
        By::Messages,
        "message_id = ANY (:ids::uuid[])",
        "message_id IN (SELECT value FROM json_each(:ids))"
    ),
    delete!(
        "extra_send",
        By::Messages,
        "message_id = ANY (:ids::uuid[])",
        "message_id IN (SELECT value FROM json_each(:ids))"
    ),
    delete!(
        "gateway_note",
        By::Messages,
        "message_id = ANY (:ids::uuid[])",
        "message_id IN (SELECT value FROM json_each(:ids))"
    ),
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

/// So many of [`ERASURES`] come before the messages of the phone end: a message whose verification is
/// gone ends without an event.
pub(super) const BEFORE_ITS_MESSAGES_END: usize = 4;
