//! The statements of the delivery ledger.
//!
//! `$1` to `$5` of a fenced statement name the lease: group, topic, partition, owner, epoch. It
//! returns a row in state `held` if the lease is ours, and has done nothing otherwise.
//!
//! `state || ''` is the state for which no index speaks. To a plan that was made for an empty table
//! all indexes are alike, and it would read all that is open to find a few by their ids.

use crate::{database::Sql, events::TELL_POSTGRES};

/// Takes a batch over. `events`: what has expired already is told of.
pub(super) fn admit_postgres(events: bool) -> String {
    const EXPIRED: &str =
        ", ended AS (SELECT message_id AS id, state FROM taken WHERE state = 'expired')";
    [ADMIT, if events { EXPIRED } else { "" }, if events { TELL_POSTGRES } else { "" }, ADMITTED]
        .concat()
}

// What a record says of time is bounded: an entry must expire, and leave the ledger, some day.
//
// Rows of the outbox are locked in the order of their sequence, here as in the backlog's
// statements: two that lock the same rows in different orders wait for each other.
const ADMIT: &str = "
WITH lease AS (
    UPDATE partition_lease
    SET next_offset = $6
    WHERE group_id = $1 AND topic = $2 AND partition = $3 AND owner = $4 AND epoch = $5
    RETURNING 1
), incoming AS (
    SELECT new.id, new.phone, new.code, nullif(new.trace, '') AS trace, new.sequence, new.place,
        new.call = 1 AS call,
        CASE WHEN new.accepted_at < 0 THEN now()
             ELSE least(to_timestamp(new.accepted_at / 1000.0), now()) END AS accepted_at,
        CASE WHEN new.expires_at < 0 THEN now() + $7 * interval '1 millisecond'
             ELSE least(to_timestamp(new.expires_at / 1000.0), now() + interval '1 day')
             END AS expires_at
    FROM lease,
        unnest($8::uuid[], $9::text[], $10::text[], $11::text[], $12::bigint[], $13::bigint[],
            $14::bigint[], $15::integer[])
        WITH ORDINALITY
        AS new (id, phone, code, trace, accepted_at, expires_at, sequence, call, place)
), judged AS (
    SELECT *, CASE WHEN expires_at <= now() THEN 'expired' WHEN call THEN 'calling' ELSE 'pending'
        END AS state
    FROM incoming
), taken AS (
    INSERT INTO delivery
        (group_id, topic, partition, message_id, phone, code, trace, state, accepted_at,
         expires_at, ended_at, attempt, epoch, turn, due_at, called_at)
    SELECT $1, $2, $3, id, phone,
        CASE WHEN state <> 'expired' THEN code END,
        trace, state, accepted_at, expires_at,
        CASE WHEN state = 'expired' THEN now() END,
        CASE WHEN state = 'calling' THEN 1 ELSE 0 END,
        CASE WHEN state = 'calling' THEN $5 END,
        CASE WHEN state = 'calling' THEN $17 ELSE 0 END,
        CASE WHEN state = 'calling' THEN now() + $16 * interval '1 millisecond' ELSE now() END,
        CASE WHEN state = 'calling' THEN now() END
    FROM judged
    ORDER BY place
    ON CONFLICT DO NOTHING
    RETURNING message_id, state, attempt, expires_at, accepted_at
), waiting AS (
    SELECT own.sequence
    FROM (SELECT sequence, id FROM incoming ORDER BY sequence) AS named
        CROSS JOIN LATERAL (
            SELECT sequence FROM outbox WHERE sequence = named.sequence AND id = named.id FOR UPDATE
        ) AS own
), left_outbox AS (
    DELETE FROM outbox WHERE sequence = ANY (ARRAY(SELECT sequence FROM waiting))
), transit AS (
    SELECT own.sequence
    FROM (SELECT sequence, id FROM incoming ORDER BY sequence) AS named
        CROSS JOIN LATERAL (
            SELECT sequence
            FROM in_transit
            WHERE sequence = named.sequence AND id = named.id
            FOR UPDATE
        ) AS own
), left_transit AS (
    DELETE FROM in_transit WHERE sequence = ANY (ARRAY(SELECT sequence FROM transit))
), buried AS (
    INSERT INTO dead_letter (group_id, topic, partition, record_offset, reason)
    SELECT $1, $2, $3, dead.record_offset, dead.reason
    FROM lease, unnest($18::bigint[], $19::text[]) AS dead (record_offset, reason)
    -- this may be the second try of a commit that was not heard of
    WHERE NOT EXISTS (
        SELECT 1
        FROM dead_letter AS known
        WHERE known.group_id = $1 AND known.topic = $2 AND known.partition = $3
          AND known.record_offset = dead.record_offset
    )
)";

// The age of the row in state `held` is the number of messages that left the outbox or transit.
const ADMITTED: &str = "
SELECT message_id::text AS id, state, attempt,
    (extract(epoch FROM expires_at) * 1000)::bigint AS expires_at,
    (extract(epoch FROM expires_at - now()) * 1000)::bigint AS good_for,
    (extract(epoch FROM now() - accepted_at) * 1000)::bigint AS age
FROM taken
UNION ALL
SELECT NULL, 'held', 0, 0, 0, (SELECT count(*) FROM waiting) + (SELECT count(*) FROM transit)
FROM lease";

// What was settled while `ADMIT` waited for its row in the outbox is in transit in a
// snapshot that it did not see.
pub(super) const LEAVE_TRANSIT_POSTGRES: &str = "
DELETE FROM in_transit
WHERE sequence = ANY (ARRAY(
    SELECT own.sequence
    FROM (SELECT * FROM unnest($1::bigint[], $2::uuid[]) ORDER BY 1) AS taken (sequence, id)
        CROSS JOIN LATERAL (
            SELECT sequence
            FROM in_transit
            WHERE sequence = taken.sequence AND id = taken.id
            FOR UPDATE SKIP LOCKED
        ) AS own
))";

// What `ADMIT` does, in SQLite, where a statement writes to one table.
pub(super) const MOVE_ON: &str = "
UPDATE partition_lease
SET next_offset = $6
WHERE group_id = $1 AND topic = $2 AND partition = $3 AND owner = $4 AND epoch = $5
RETURNING NULL AS id, 'held' AS state, 0 AS attempt, 0 AS expires_at, 0 AS good_for, 0 AS age";

pub(super) const TAKE: &str = "
INSERT INTO delivery
    (group_id, topic, partition, message_id, phone, code, trace, state, accepted_at, expires_at,
     admitted_at, ended_at, attempt, epoch, turn, due_at, called_at)
SELECT $1, $2, $3, id, phone,
    CASE WHEN state <> 'expired' THEN code END,
    nullif(trace, ''), state, accepted_at, expires_at, now,
    CASE WHEN state = 'expired' THEN now END,
    state = 'calling',
    CASE WHEN state = 'calling' THEN $6 END,
    iif(state = 'calling', $8, 0),
    now + iif(state = 'calling', $7, 0),
    CASE WHEN state = 'calling' THEN now END
FROM (
    SELECT *,
        CASE WHEN expires_at <= now THEN 'expired' WHEN call THEN 'calling' ELSE 'pending' END
            AS state
    FROM (
        SELECT value ->> 0 AS id, value ->> 1 AS phone, value ->> 2 AS code, value ->> 3 AS trace,
            CASE WHEN value ->> 4 < 0 THEN clock.now ELSE min(value ->> 4, clock.now) END
                AS accepted_at,
            CASE WHEN value ->> 5 < 0 THEN clock.now + $5
                 ELSE min(value ->> 5, clock.now + 86400000) END AS expires_at,
            value ->> 7 AS call, clock.now, key
        FROM json_each($4),
            (SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now) AS clock
    )
)
WHERE true
ORDER BY key
ON CONFLICT DO NOTHING
RETURNING message_id AS id, state, attempt, expires_at,
    expires_at - CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS good_for,
    CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - accepted_at AS age";

pub(super) const LEAVE_OUTBOX: &str = "
DELETE FROM outbox
WHERE (sequence, id) IN (SELECT value ->> 6, value ->> 0 FROM json_each($1))";

pub(super) const LEAVE_TRANSIT: &str = "
DELETE FROM in_transit
WHERE (sequence, id) IN (SELECT value ->> 6, value ->> 0 FROM json_each($1))";

pub(super) const BURY: &str = "
INSERT INTO dead_letter (group_id, topic, partition, record_offset, reason, recorded_at)
SELECT $1, $2, $3, value ->> 0, value ->> 1,
    CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
FROM json_each($4)
WHERE NOT EXISTS (
    SELECT 1
    FROM dead_letter AS known
    WHERE known.group_id = $1 AND known.topic = $2 AND known.partition = $3
      AND known.record_offset = value ->> 0
)";

pub(super) const HELD: &str = "
SELECT NULL AS id, 'held' AS state, 0 AS attempt, 0 AS expires_at, 0 AS good_for, 0 AS age
FROM partition_lease
WHERE group_id = $1 AND topic = $2 AND partition = $3 AND owner = $4 AND epoch = $5";

/// Begins calls. `events`: what has expired meanwhile is told of.
pub(super) fn start_postgres(events: bool) -> String {
    const EXPIRED: &str =
        ", ended AS (SELECT message_id AS id, state FROM begun WHERE state = 'expired')";
    [START, if events { EXPIRED } else { "" }, if events { TELL_POSTGRES } else { "" }, STARTED]
        .concat()
}

// A call that was interrupted is over when its time is; it may have been made, and is noted so.
// One that was begun under this lease was not made: see `DeliveryLedger::start`. A statement that
// we gave up may still be done, after later ones: `turn` numbers them, and the late one does
// nothing.
const START: &str = "
WITH lease AS (
    SELECT 1
    FROM partition_lease
    WHERE group_id = $1 AND topic = $2 AND partition = $3 AND owner = $4 AND epoch = $5
    FOR SHARE
), begun AS (
    UPDATE delivery
    SET state = CASE WHEN expires_at > now() THEN 'calling' ELSE 'expired' END,
        code = CASE WHEN expires_at > now() THEN code END,
        attempt = attempt + CASE WHEN expires_at > now() THEN 1 ELSE 0 END,
        epoch = $5,
        turn = $8,
        due_at = now() + $7 * interval '1 millisecond',
        called_at = CASE WHEN expires_at > now() THEN now() ELSE called_at END,
        ended_at = CASE WHEN expires_at > now() THEN NULL ELSE now() END,
        attempts = CASE
            WHEN state = 'pending' OR epoch = $5 THEN attempts
            ELSE attempts || jsonb_build_object('attempt', attempt, 'outcome', 'ambiguous',
                'detail', 'interrupted', 'called_at', called_at, 'ended_at', now())
        END
    FROM lease
    WHERE group_id = $1 AND message_id = ANY ($6::uuid[])
      AND (epoch IS DISTINCT FROM $5 OR turn < $8)
      AND (state || '' = 'pending'
          OR (state || '' = 'calling' AND (due_at <= now() OR epoch = $5)))
    RETURNING message_id, state, attempt, expires_at, accepted_at
)";

const STARTED: &str = "
SELECT message_id::text AS id, state, attempt,
    (extract(epoch FROM expires_at) * 1000)::bigint AS expires_at,
    (extract(epoch FROM expires_at - now()) * 1000)::bigint AS good_for,
    (extract(epoch FROM now() - accepted_at) * 1000)::bigint AS age
FROM begun
UNION ALL
SELECT NULL, 'held', 0, 0, 0, 0 FROM lease";

// The same in SQLite.
pub(super) const START_SQLITE: &str = "
UPDATE delivery
SET state = CASE WHEN expires_at > clock.now THEN 'calling' ELSE 'expired' END,
    code = CASE WHEN expires_at > clock.now THEN code END,
    attempt = attempt + (expires_at > clock.now),
    epoch = $3,
    turn = $5,
    due_at = clock.now + $4,
    called_at = CASE WHEN expires_at > clock.now THEN clock.now ELSE called_at END,
    ended_at = CASE WHEN expires_at > clock.now THEN NULL ELSE clock.now END,
    attempts = CASE
        WHEN state = 'pending' OR epoch IS $3 THEN attempts
        ELSE json_insert(attempts, '$[#]', json_object('attempt', attempt, 'outcome', 'ambiguous',
            'detail', 'interrupted', 'called_at', called_at, 'ended_at', clock.now))
    END
FROM (SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now) AS clock
WHERE group_id = $1 AND message_id IN (SELECT value FROM json_each($2))
  AND (epoch IS NOT $3 OR turn < $5)
  AND (state = 'pending' OR (state = 'calling' AND (due_at <= clock.now OR epoch = $3)))
RETURNING message_id AS id, state, attempt, expires_at,
    expires_at - CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS good_for,
    CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - accepted_at AS age";

/// Ends an entry that cannot go on. `events`: it is told of.
pub(super) fn give_up_postgres(events: bool) -> String {
    const ENDED: &str = ", ended AS (SELECT message_id AS id, state FROM begun)";
    [GIVE_UP, if events { ENDED } else { "" }, if events { TELL_POSTGRES } else { "" }, STARTED]
        .concat()
}

// One that was being called for may have been sent.
const GIVE_UP: &str = "
WITH lease AS (
    SELECT 1
    FROM partition_lease
    WHERE group_id = $1 AND topic = $2 AND partition = $3 AND owner = $4 AND epoch = $5
    FOR SHARE
), begun AS (
    UPDATE delivery
    SET state = CASE state WHEN 'pending' THEN 'failed' ELSE 'unknown' END,
        code = NULL,
        ended_at = now(),
        detail = 'the database refused its next call'
    FROM lease
    WHERE group_id = $1 AND message_id = ANY ($6::uuid[])
      AND (state || '' = 'pending'
          OR (state || '' = 'calling' AND (due_at <= now() OR epoch = $5)))
    RETURNING message_id, state, attempt, expires_at, accepted_at
)";

pub(super) const GIVE_UP_SQLITE: &str = "
UPDATE delivery
SET state = iif(state = 'pending', 'failed', 'unknown'),
    code = NULL,
    ended_at = clock.now,
    detail = 'the database refused its next call'
FROM (SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now) AS clock
WHERE group_id = $1 AND message_id IN (SELECT value FROM json_each($2))
  AND (state = 'pending' OR (state = 'calling' AND (due_at <= clock.now OR epoch = $3)))
RETURNING message_id AS id, state, attempt, expires_at, 0 AS good_for,
    CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - accepted_at AS age";

// Not fenced by the lease: the outcome of a call counts also when the partition has gone to
// another consumer, as long as no later call was begun. A retry that would come too late ends
// the entry. Of very many attempts the first and the latest are kept.
//
// PostgreSQL gets the outcomes as an object, by id and attempt, and not as a list to join: a plan
// made for an empty table would compare each with each.
pub(super) const FINISH: Sql = Sql {
    postgres: "
UPDATE delivery
SET (state, code, due_at, ended_at, reference, detail, attempts) = (
    SELECT outcome.state,
        CASE WHEN outcome.state = 'pending' THEN delivery.code END,
        outcome.due_at,
        CASE WHEN outcome.state = 'pending' THEN NULL ELSE now() END,
        nullif(said.reference, ''),
        concat_ws(': ', said.class, nullif(said.detail, '')),
        CASE WHEN jsonb_array_length(delivery.attempts) < 100 THEN delivery.attempts
             ELSE delivery.attempts - 1 END
            || jsonb_build_object('attempt', delivery.attempt, 'outcome', said.class,
                'detail', said.detail, 'called_at', delivery.called_at, 'ended_at', now())
    FROM jsonb_to_record($3 -> (delivery.message_id || ' ' || delivery.attempt))
            AS said (verdict text, wait bigint, reference text, detail text, class text)
        CROSS JOIN LATERAL (
            SELECT due_at,
                CASE WHEN said.verdict = 'pending' AND due_at >= delivery.expires_at
                     THEN 'expired' ELSE said.verdict END AS state
            FROM (SELECT now() + said.wait * interval '1 millisecond' AS due_at) AS next
        ) AS outcome
)
WHERE group_id = $1 AND message_id = ANY ($2)
  AND state || '' = 'calling' AND $3 ? (message_id || ' ' || attempt)
RETURNING message_id::text AS id, state,
    (extract(epoch FROM now() - accepted_at) * 1000)::bigint AS age",
    sqlite: "
WITH clock AS MATERIALIZED (
    SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now
), said AS MATERIALIZED (
    SELECT value ->> 0 AS id, value ->> 1 AS attempt, value ->> 2 AS verdict,
        clock.now + (value ->> 3) AS due_at, value ->> 4 AS reference, value ->> 5 AS detail,
        value ->> 6 AS class
    FROM clock CROSS JOIN json_each($2)
), outcome AS MATERIALIZED (
    SELECT said.*,
        CASE WHEN said.verdict = 'pending' AND said.due_at >= entry.expires_at
             THEN 'expired' ELSE said.verdict END AS state
    FROM said CROSS JOIN delivery AS entry
    WHERE entry.group_id = $1 AND entry.message_id = said.id
)
UPDATE delivery
SET state = outcome.state,
    code = CASE WHEN outcome.state = 'pending' THEN code END,
    due_at = outcome.due_at,
    ended_at = CASE WHEN outcome.state = 'pending' THEN NULL ELSE (SELECT now FROM clock) END,
    reference = nullif(outcome.reference, ''),
    detail = outcome.class || iif(outcome.detail = '', '', ': ' || outcome.detail),
    attempts = json_insert(
        iif(json_array_length(attempts) < 100, attempts, json_remove(attempts, '$[1]')),
        '$[#]', json_object('attempt', outcome.attempt, 'outcome', outcome.class,
            'detail', outcome.detail, 'called_at', called_at,
            'ended_at', (SELECT now FROM clock)))
FROM outcome
WHERE delivery.group_id = $1 AND delivery.message_id = outcome.id
  AND delivery.state = 'calling' AND delivery.attempt = outcome.attempt
RETURNING message_id AS id, state,
    CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - accepted_at AS age",
};

/// `FINISH` in PostgreSQL, where others are told.
pub(super) fn finish_and_tell_postgres() -> String {
    const ENDED: &str =
        "), ended AS (SELECT id::uuid AS id, state FROM finished WHERE state <> 'pending')";
    ["WITH finished AS (", FINISH.postgres, ENDED, TELL_POSTGRES, "SELECT * FROM finished"].concat()
}

const OPEN_SQL: &str = "
SELECT phone, count(*) AS entries
FROM delivery
WHERE group_id = $1 AND topic = $2 AND partition = $3 AND state IN ('pending', 'calling')
GROUP BY phone";
pub(super) const OPEN: Sql = Sql { postgres: OPEN_SQL, sqlite: OPEN_SQL };

pub(super) const DUE: Sql = Sql {
    postgres: "
WITH lease AS (
    SELECT 1
    FROM partition_lease
    WHERE group_id = $1 AND topic = $2 AND partition = $3 AND owner = $4 AND epoch = $5
), oldest AS (
    SELECT DISTINCT ON (phone COLLATE \"C\")
        message_id::text AS id, phone, code, trace, attempt, place,
        due_at <= now() OR (state = 'calling' AND epoch = $5) AS due,
        state = 'calling' AND epoch IS DISTINCT FROM $5 AS interrupted,
        expires_at <= now() AS expired
    FROM delivery
    WHERE group_id = $1 AND topic = $2 AND partition = $3 AND state IN ('pending', 'calling')
    ORDER BY phone COLLATE \"C\", place
), due AS (
    SELECT *, attempt > 0 AND NOT expired AS again
    FROM oldest
    WHERE due
    ORDER BY again, place
    LIMIT $6
)
SELECT id, phone, code, trace, 'open' AS state, attempt, interrupted, expired, again, place
FROM due, lease
UNION ALL
SELECT NULL, NULL, NULL, NULL, 'held', 0, false, false, false, 0 FROM lease
ORDER BY again, place",
    sqlite: "
WITH lease AS (
    SELECT 1
    FROM partition_lease
    WHERE group_id = $1 AND topic = $2 AND partition = $3 AND owner = $4 AND epoch = $5
), clock AS (
    SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now
), oldest AS (
    SELECT message_id AS id, phone, code, trace, attempt, expires_at, min(place) AS place,
        due_at <= now OR (state = 'calling' AND epoch = $5) AS due,
        state = 'calling' AND epoch IS NOT $5 AS interrupted
    FROM clock CROSS JOIN delivery
    WHERE group_id = $1 AND topic = $2 AND partition = $3 AND state IN ('pending', 'calling')
    GROUP BY phone
), due AS (
    SELECT *, expires_at <= now AS expired, attempt > 0 AND expires_at > now AS again
    FROM clock, oldest
    WHERE due
    ORDER BY again, place
    LIMIT $6
)
SELECT id, phone, code, trace, 'open' AS state, attempt, interrupted, expired, again, place
FROM due, lease
UNION ALL
SELECT NULL, NULL, NULL, NULL, 'held', 0, 0, 0, 0, 0 FROM lease
ORDER BY again, place",
};
