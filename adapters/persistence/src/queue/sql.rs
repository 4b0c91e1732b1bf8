//! The statements of the embedded queue.

use crate::database::Sql;

const fn same(sql: &'static str) -> Sql {
    Sql { postgres: sql, sqlite: sql }
}

/// The partitions of a topic.
pub(super) const PARTITIONS_OF: Sql =
    same(r#"SELECT "partition" FROM queue_partition WHERE topic = $1 ORDER BY "partition""#);

/// Creates the partitions. One statement creates all of them: a consumer that sees only some of them
/// takes them for all.
pub(super) const CREATE: Sql = same(
    r#"
INSERT INTO queue_partition (topic, "partition", next_offset)
VALUES ($1, 0, 0), ($1, 1, 0), ($1, 2, 0), ($1, 3, 0)
ON CONFLICT (topic, "partition") DO NOTHING"#,
);

/// Reserves `$3` offsets of a partition. Returns the offset after them, and the database's time.
pub(super) const RESERVE: Sql = Sql {
    postgres: r#"
INSERT INTO queue_partition (topic, "partition", next_offset) VALUES ($1, $2, $3)
ON CONFLICT (topic, "partition")
DO UPDATE SET next_offset = queue_partition.next_offset + excluded.next_offset
RETURNING next_offset, CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS bigint) AS now"#,
    sqlite: r#"
INSERT INTO queue_partition (topic, "partition", next_offset) VALUES ($1, $2, $3)
ON CONFLICT (topic, "partition")
DO UPDATE SET next_offset = queue_partition.next_offset + excluded.next_offset
RETURNING next_offset, CAST(unixepoch('subsec') * 1000 AS INTEGER) AS now"#,
};

/// Stores records from offset `$3` on. `$5` is a JSON array, in which a record is its key, its
/// value in hexadecimal and its headers.
pub(super) const APPEND: Sql = Sql {
    postgres: r#"
INSERT INTO queue_record (topic, "partition", "offset", key, value, headers, written_at)
SELECT $1, $2, $3 + place - 1, record ->> 0, decode(record ->> 1, 'hex'), record ->> 2, $4
FROM json_array_elements($5::json) WITH ORDINALITY AS new (record, place)"#,
    sqlite: r#"
INSERT INTO queue_record (topic, "partition", "offset", key, value, headers, written_at)
SELECT $1, $2, $3 + new.key, value ->> 0, unhex(value ->> 1), value ->> 2, $4
FROM json_each($5) AS new"#,
};

/// The records from offset `$3` on, and the end of the partition. One statement reads both, so that
/// they are of one moment.
pub(super) const READ: Sql = same(
    r#"
SELECT p.next_offset, r."offset", r.value, r.headers, r.written_at
FROM queue_partition p LEFT JOIN (
    SELECT "offset", value, headers, written_at FROM queue_record
    WHERE topic = $1 AND "partition" = $2 AND "offset" >= $3
    ORDER BY "offset" LIMIT $4
) r ON true
WHERE p.topic = $1 AND p."partition" = $2
ORDER BY r."offset""#,
);

/// The offset of the first record; without records, the end.
pub(super) const FIRST: Sql = same(
    r#"
SELECT COALESCE(
    (SELECT MIN("offset") FROM queue_record WHERE topic = $1 AND "partition" = $2),
    next_offset) AS "offset"
FROM queue_partition WHERE topic = $1 AND "partition" = $2"#,
);

/// The offset of the first record that was written at `$3` or later; without one, the end.
pub(super) const FIRST_SINCE: Sql = same(
    r#"
SELECT COALESCE(
    (SELECT MIN("offset") FROM queue_record
     WHERE topic = $1 AND "partition" = $2 AND written_at >= $3),
    next_offset) AS "offset"
FROM queue_partition WHERE topic = $1 AND "partition" = $2"#,
);

/// The end of a partition.
pub(super) const END: Sql = same(
    r#"
SELECT next_offset AS "offset" FROM queue_partition WHERE topic = $1 AND "partition" = $2"#,
);

/// Deletes from a partition the records before the first one that is not older than `$3`, and the
/// records that all groups have passed.
///
/// A record behind one that stays stays too, whatever its time, because there must be no gap. A
/// group whose offset is beyond the end read a queue that was here before, and has passed nothing
/// of this one.
pub(super) const TRIM: Sql = Sql {
    postgres: r#"
DELETE FROM queue_record WHERE topic = $1 AND "partition" = $2 AND (
    "offset" < COALESCE(
        (SELECT "offset" FROM queue_record
         WHERE topic = $1 AND "partition" = $2
             AND written_at >= CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS bigint) - $3
         ORDER BY "offset" LIMIT 1),
        9223372036854775807)
    OR "offset" < (
        SELECT MIN(CASE WHEN lease.next_offset <= p.next_offset THEN lease.next_offset ELSE 0 END)
        FROM partition_lease lease JOIN queue_partition p USING (topic, "partition")
        WHERE topic = $1 AND "partition" = $2))"#,
    sqlite: r#"
DELETE FROM queue_record WHERE topic = $1 AND "partition" = $2 AND (
    "offset" < COALESCE(
        (SELECT "offset" FROM queue_record
         WHERE topic = $1 AND "partition" = $2
             AND written_at >= CAST(unixepoch('subsec') * 1000 AS INTEGER) - $3
         ORDER BY "offset" LIMIT 1),
        9223372036854775807)
    OR "offset" < (
        SELECT MIN(CASE WHEN lease.next_offset <= p.next_offset THEN lease.next_offset ELSE 0 END)
        FROM partition_lease lease JOIN queue_partition p USING (topic, "partition")
        WHERE topic = $1 AND "partition" = $2))"#,
};
