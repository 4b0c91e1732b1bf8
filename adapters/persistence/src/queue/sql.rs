//! The statements of the embedded queue.

use crate::database::Sql;

/// The partitions of a topic.
pub(super) static PARTITIONS_OF: Sql = Sql::new(
    r#"SELECT "partition" FROM queue_partition WHERE topic = :topic ORDER BY "partition""#,
);

/// Creates the partitions. One statement creates all of them: a consumer that sees only some of them
/// takes them for all.
pub(super) static CREATE: Sql = Sql::new(
    r#"
INSERT INTO queue_partition (topic, "partition", next_offset)
VALUES (:topic, 0, 0), (:topic, 1, 0), (:topic, 2, 0), (:topic, 3, 0)
ON CONFLICT (topic, "partition") DO NOTHING"#,
);

/// Reserves `count` offsets of a partition. Returns the offset after them, and the database's time.
pub(super) static RESERVE: Sql = Sql::new(
    r#"
INSERT INTO queue_partition (topic, "partition", next_offset) VALUES (:topic, :partition, :count)
ON CONFLICT (topic, "partition")
DO UPDATE SET next_offset = queue_partition.next_offset + excluded.next_offset
RETURNING next_offset, {millis({clock})} AS now"#,
);

/// Stores records from the offset `first` on.
pub(super) static APPEND: Sql = Sql::pair(
    r#"
INSERT INTO queue_record (topic, "partition", "offset", key, value, headers, written_at)
SELECT :topic, :partition, :first + place - 1, new.key, new.value, new.headers, :now
FROM :new#place"#,
    r#"
INSERT INTO queue_record (topic, "partition", "offset", key, value, headers, written_at)
SELECT :topic, :partition, :first + place - 1, new.key, unhex(new.value), new.headers, :now
FROM :new#place"#,
);

/// The records from `offset` on, and the end of the partition. One statement reads both, so that
/// they are of one moment.
pub(super) static READ: Sql = Sql::new(
    r#"
SELECT p.next_offset, r."offset", r.value, r.headers, r.written_at
FROM queue_partition p LEFT JOIN (
    SELECT "offset", value, headers, written_at FROM queue_record
    WHERE topic = :topic AND "partition" = :partition AND "offset" >= :offset
    ORDER BY "offset" LIMIT :limit
) r ON true
WHERE p.topic = :topic AND p."partition" = :partition
ORDER BY r."offset""#,
);

/// The offset of the first record; without records, the end.
pub(super) static FIRST: Sql = Sql::new(
    r#"
SELECT COALESCE(
    (SELECT MIN("offset") FROM queue_record WHERE topic = :topic AND "partition" = :partition),
    next_offset) AS "offset"
FROM queue_partition WHERE topic = :topic AND "partition" = :partition"#,
);

/// The offset of the first record that was written at `since` or later; without one, the end.
pub(super) static FIRST_SINCE: Sql = Sql::new(
    r#"
SELECT COALESCE(
    (SELECT MIN("offset") FROM queue_record
     WHERE topic = :topic AND "partition" = :partition AND written_at >= :since),
    next_offset) AS "offset"
FROM queue_partition WHERE topic = :topic AND "partition" = :partition"#,
);

/// The end of a partition.
pub(super) static END: Sql = Sql::new(
    r#"
SELECT next_offset AS "offset" FROM queue_partition WHERE topic = :topic AND "partition" = :partition"#,
);

/// Deletes from a partition the records before the first one that is not older than `older_than`, and the
/// records that all groups have passed.
///
/// The statement keeps every record after a kept record, because the queue may have no gap. A
/// group whose offset is beyond the end read a queue that was here before, and has passed nothing
/// of this one.
pub(super) static TRIM: Sql = Sql::new(
    r#"
DELETE FROM queue_record WHERE topic = :topic AND "partition" = :partition AND (
    "offset" < COALESCE(
        (SELECT "offset" FROM queue_record
         WHERE topic = :topic AND "partition" = :partition
             AND written_at >= {millis({clock})} - :older_than
         ORDER BY "offset" LIMIT 1),
        9223372036854775807)
    OR "offset" < (
        SELECT MIN(CASE WHEN lease.next_offset <= p.next_offset THEN lease.next_offset ELSE 0 END)
        FROM partition_lease lease JOIN queue_partition p USING (topic, "partition")
        WHERE topic = :topic AND "partition" = :partition))"#,
);
