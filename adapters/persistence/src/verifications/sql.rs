//! The statements about verifications.
//!
//! `status || ''` is the status for which no index speaks (ADR 26): a plan might go through all
//! pending ones to find one by its id.

use crate::{database::Sql, idempotency::tell_holders, limits::count_on_phone};

/// What a verification is read from. One whose time is up is shown as expired.
macro_rules! verification_columns {
    (postgres) => {
        "
        id::text AS id, origin, phone, region, attempts::integer AS attempts,
        sends::integer AS sends, code_length::integer AS code_length, template, metadata,
        pepper_id, sequence, api_key::text AS api_key,
        CASE WHEN status = 'pending' AND expires_at <= now() THEN 'expired' ELSE status END
            AS status,
        CASE WHEN expires_at > now() THEN encode(seed, 'hex') END AS seed,
        (extract(epoch FROM created_at) * 1000)::bigint AS created_at,
        (extract(epoch FROM sent_at) * 1000)::bigint AS sent_at,
        (extract(epoch FROM expires_at) * 1000)::bigint AS expires_at,
        (extract(epoch FROM CASE WHEN status = 'pending' AND expires_at <= now() THEN expires_at
            ELSE ended_at END) * 1000)::bigint AS ended_at,
        (extract(epoch FROM now()) * 1000)::bigint AS read_at"
    };
    (sqlite) => {
        "
        id, origin, phone, region, attempts, sends, code_length, template, metadata, pepper_id,
        sequence, api_key,
        CASE WHEN status = 'pending'
              AND expires_at <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
             THEN 'expired' ELSE status END AS status,
        CASE WHEN expires_at > CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
             THEN nullif(lower(hex(seed)), '') END AS seed,
        created_at, sent_at, expires_at,
        CASE WHEN status = 'pending'
              AND expires_at <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
             THEN expires_at ELSE ended_at END AS ended_at,
        CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS read_at"
    };
}
pub(crate) use verification_columns;

pub(super) const FIND: Sql = Sql {
    postgres: concat!(
        "SELECT ",
        verification_columns!(postgres),
        " FROM verification WHERE id = $1"
    ),
    sqlite: concat!("SELECT ", verification_columns!(sqlite), " FROM verification WHERE id = $1"),
};

// A message that a ledger has is in transit no more. What expired before any group had it stands in
// the ledger of none (`''`).
pub(super) const MESSAGES: Sql = Sql {
    postgres: "
SELECT id::text AS id, 'in transit' AS state,
    (extract(epoch FROM published_at) * 1000)::bigint AS published_at,
    NULL::bigint AS ended_at, NULL::bigint AS delivered_at, NULL::bigint AS undelivered_at
FROM in_transit
WHERE sequence = $1 AND id = ANY ($2::uuid[])
UNION ALL
SELECT message_id::text, state,
    (extract(epoch FROM CASE WHEN group_id <> '' THEN admitted_at END) * 1000)::bigint,
    (extract(epoch FROM ended_at) * 1000)::bigint,
    (extract(epoch FROM delivered_at) * 1000)::bigint,
    (extract(epoch FROM undelivered_at) * 1000)::bigint
FROM delivery
WHERE message_id = ANY ($2::uuid[])",
    sqlite: "
SELECT id, 'in transit' AS state, published_at, NULL AS ended_at, NULL AS delivered_at,
    NULL AS undelivered_at
FROM in_transit
WHERE sequence = $1 AND id IN (SELECT value FROM json_each($2))
UNION ALL
SELECT message_id, state, CASE WHEN group_id <> '' THEN admitted_at END, ended_at, delivered_at,
    undelivered_at
FROM delivery
WHERE message_id IN (SELECT value FROM json_each($2))",
};

// Each step only if the one before was taken; whoever finds that one was not rolls it all back.
//
// Of two holders of one claim the one that comes second finds what the first has done: in
// `idempotency`, or if that was not committed yet when it looked, in `sends`.
pub(super) const RESEND_POSTGRES: &str = concat!(
    "
WITH target AS (
    SELECT id, phone, origin = 'api' AS is_api, expires_at
    FROM verification
    WHERE id = $1 AND status || '' = 'pending' AND expires_at > now() AND sends = $2
      AND attempts < $3
      AND sent_at + $4 * interval '1 millisecond' <= now()
      AND NOT EXISTS (
        SELECT 1
        FROM idempotency
        WHERE key_hash = $21 AND coalesce(first_holder, holder) = $22 AND done IS NOT NULL
      )
), allowed AS (
    INSERT INTO phone AS known
        (phone, newest, newest_until, api_newest, api_newest_until, exclusive, quota_1, sends_1,
         ends_1, quota_2, sends_2, ends_2, quota_3, sends_3, ends_3)
    SELECT phone,
        CASE WHEN NOT is_api THEN id END,
        CASE WHEN NOT is_api THEN expires_at ELSE '-infinity' END,
        CASE WHEN is_api THEN id END,
        CASE WHEN is_api THEN expires_at ELSE '-infinity' END,
        false,
        $11::integer, 1, now() + $12 * interval '1 millisecond',
        $13::integer, 1, now() + $14 * interval '1 millisecond',
        $15::integer, 1, now() + $16 * interval '1 millisecond'
    FROM target",
    count_on_phone!("now()"),
    "
    RETURNING 1
), counted AS (
    INSERT INTO limit_counter AS known (policy, key, quota, used, ends_at)
    SELECT policy, key, max(quota), count(*), now() + max(period) * interval '1 millisecond'
    FROM allowed,
        unnest($17::text[], $18::text[], $19::integer[], $20::bigint[])
            AS counter (policy, key, quota, period)
    GROUP BY policy, key
    ORDER BY policy, key
    ON CONFLICT (policy, key) DO UPDATE SET
        quota = excluded.quota,
        used = CASE WHEN known.ends_at > now() THEN known.used ELSE 0 END + excluded.used,
        ends_at = CASE WHEN known.ends_at > now() THEN known.ends_at ELSE excluded.ends_at END
    RETURNING used <= quota AS holds
), stored AS (
    INSERT INTO outbox (id, phone, code, trace, expires_at)
    SELECT $5, phone, $6, $7, expires_at
    FROM target, allowed
    WHERE (SELECT count(*) FROM counted) >= 0
    RETURNING sequence
), sent AS (
    UPDATE verification
    SET sends = sends + 1, sent_at = now(), sequence = stored.sequence,
        code_hash = coalesce(decode(nullif($8, ''), 'hex'), code_hash),
        seed = coalesce(decode(nullif($9, ''), 'hex'), seed),
        pepper_id = coalesce(nullif($10, ''), pepper_id)
    FROM stored
    WHERE id = $1 AND status || '' = 'pending' AND expires_at > now() AND sends = $2
      AND attempts < $3
    RETURNING verification.*
), noted AS (",
    tell_holders!("(SELECT id FROM sent)", "(SELECT $21::bytea FROM sent)", "$22"),
    "
)
SELECT EXISTS (SELECT 1 FROM target) AS found, EXISTS (SELECT 1 FROM allowed) AS allowed,
    (SELECT bool_and(holds) FROM counted) IS NOT FALSE AS holds, sent.*
FROM (SELECT) AS one
    LEFT JOIN (SELECT ",
    verification_columns!(postgres),
    " FROM sent) AS sent ON true"
);

// The same in SQLite, where a statement writes to one table.
pub(super) const RESENDABLE: &str = "
SELECT phone, origin = 'api' AS is_api, expires_at - $5 AS ttl
FROM verification
WHERE id = $1 AND status = 'pending' AND expires_at > $5 AND sends = $2 AND attempts < $3
  AND sent_at + $4 <= $5
  AND NOT EXISTS (
    SELECT 1
    FROM idempotency
    WHERE key_hash = $6 AND coalesce(first_holder, holder) = $7 AND done IS NOT NULL
  )";

pub(super) const SEND_AGAIN: &str = concat!(
    "
UPDATE verification
SET sends = sends + 1, sent_at = $2, sequence = $3,
    code_hash = coalesce(unhex(nullif($4, '')), code_hash),
    seed = coalesce(unhex(nullif($5, '')), seed),
    pepper_id = coalesce(nullif($6, ''), pepper_id)
WHERE id = $1
RETURNING ",
    verification_columns!(sqlite)
);

/// The newest verification of a phone that a door has begun, if it is pending.
///
/// What `/api` began is with what it counts there, which is apart while it is open (`Account`).
macro_rules! newest {
    (v1, $phone:literal, $now:literal) => {
        concat!(
            "
    FROM verification
    WHERE id = (SELECT newest FROM phone WHERE phone = ",
            $phone,
            " AND newest_until > ",
            $now,
            ") AND status || '' = 'pending' AND expires_at > ",
            $now
        )
    };
    (api, $phone:literal, $now:literal) => {
        concat!(
            "
    FROM verification
    WHERE id = (
            SELECT api_newest
            FROM phone
            WHERE phone IN (",
            $phone,
            ", 'api:' || ",
            $phone,
            ") AND api_newest_until > ",
            $now,
            "
            ORDER BY api_newest_until DESC
            LIMIT 1
        ) AND status || '' = 'pending' AND expires_at > ",
            $now
        )
    };
}

pub(super) const NEWEST: Sql = Sql {
    postgres: concat!(
        "SELECT (SELECT id::text",
        newest!(v1, "$1", "now()"),
        ") AS v1, (SELECT id::text",
        newest!(api, "$1", "now()"),
        ") AS api"
    ),
    sqlite: concat!(
        "SELECT (SELECT id",
        newest!(v1, "$1", "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)"),
        ") AS v1, (SELECT id",
        newest!(api, "$1", "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)"),
        ") AS api"
    ),
};

/// Tries codes: of each, in the order given, what becomes of it. Those at one phone are decided one
/// at a time: of them the first that may be tried is, and the others wait.
///
/// An attempt by id has one row, and one by phone has two: the newest verification of `/v1` and that
/// of `/api`. Each row has windows of its own (`counter`), so that guesses at one door's code use up
/// nothing of the other's; and guesses where there is nothing to guess use up nothing of what begins
/// later. An attempt may be tried if one of the rows with a verification has room, or, where none
/// has one, the first.
///
/// A guess is counted in all windows `wanted` of a row that has room in all of them; which is looked
/// at before anything is written, as brute force meets nothing else. By phone both rows are counted,
/// so that the work is the same whatever there is, but for rows that are changed in place.
///
/// A code is right if its hash by the pepper of the row is that of the row. An early difference ends
/// the comparison sooner, which tells nothing: the hashes are under a pepper, so nobody can choose
/// how they begin (ADR 24). A code that is right for one row counts as a wrong one for no other.
///
/// Rows are named by their keys in subqueries that nothing is pulled out of, which leaves a plan
/// nothing else, whatever it was made for. Phones, verifications and counters are locked in this
/// order, and of each kind in the order of their keys, so that statements wait for each other in no
/// circle.
///
/// `latest` is the row as it is when it is locked, so that of many attempts at once each is the
/// only one; an attempt that has lost a row in between decides nothing. What is right is taken off
/// the counters again with all attempts before it; where another guess has just used up one of two
/// windows, the one before it is changed all the same. Whether the phone's newest is this one is
/// asked of the row as it is when it is locked, too: a resend may have made it so in between.
pub(super) const CHECK_POSTGRES: &str = concat!(
    "
WITH known AS MATERIALIZED (
    SELECT r, n, asked.phone <> '' AS by_phone, of_api, claim, first, it.id, origin, region,
        code_hash, status, attempts >= $1 AS exhausted, good_for, ttl,
        CASE WHEN asked.phone <> '' THEN asked.phone ELSE it.phone END AS phone,
        CASE
            WHEN asked.phone = '' THEN CASE WHEN origin = 'api' THEN 'api:' ELSE '' END || it.phone
            ELSE CASE WHEN of_api THEN 'api' ELSE '' END
                || CASE WHEN it.id IS NULL THEN '?' WHEN of_api THEN ':' ELSE '' END
                || asked.phone
        END AS counter,
        (status = 'pending' AND attempts < $1) IS TRUE AS is_open,
        ((r, pepper_id, code_hash) IN (
            SELECT * FROM unnest($6::bigint[], $7::text[], $8::bytea[])
        )) IS TRUE AS is_right,
        asked.phone <> '' AND CASE WHEN of_api
            THEN (SELECT id",
    newest!(api, "asked.phone", "now()"),
    ")
            ELSE (SELECT id",
    newest!(v1, "asked.phone", "now()"),
    ")
        END IS DISTINCT FROM nullif(asked.id, '00000000-0000-0000-0000-000000000000') AS moved
    FROM unnest($2::uuid[], $3::text[], $4::bytea[], $5::bytea[], $13::bigint[], $14::boolean[])
            WITH ORDINALITY AS asked (id, phone, claim, first, n, of_api, r)
        LEFT JOIN LATERAL (
            SELECT id, phone, origin, region, code_hash, pepper_id, attempts,
                CASE WHEN status = 'pending' AND expires_at <= now() THEN 'expired' ELSE status END
                    AS status,
                (extract(epoch FROM expires_at - now()) * 1000)::bigint AS good_for,
                (extract(epoch FROM expires_at - created_at) * 1000)::bigint AS ttl
            FROM verification
            WHERE id = asked.id
            OFFSET 0
        ) AS it ON true
), counters AS MATERIALIZED (
    SELECT *,
        ARRAY(
            SELECT coalesce((
                SELECT (extract(epoch FROM ends_at - now()) * 1000)::bigint
                FROM limit_counter
                WHERE policy = wanted.policy AND key = known.counter AND ends_at > now()
                  AND used >= wanted.quota
            ), -1)
            FROM unnest($9::text[], $10::integer[]) WITH ORDINALITY AS wanted (policy, quota, place)
            WHERE by_phone OR is_open
            ORDER BY place
        ) AS remains,
        bool_or(moved) OVER attempt AS changed,
        CASE
            WHEN NOT by_phone THEN is_open
            WHEN bool_or(id IS NOT NULL) OVER attempt THEN id IS NOT NULL
            ELSE NOT of_api
        END AS counts
    FROM known
    WINDOW attempt AS (PARTITION BY n)
), asked AS MATERIALIZED (
    SELECT *, min(CASE WHEN may_try THEN n END) OVER (PARTITION BY phone) AS turn
    FROM (
        SELECT *, NOT 0 <= ANY (remains) AS has_room,
            NOT changed AND bool_or(counts AND NOT 0 <= ANY (remains)) OVER (PARTITION BY n)
                AS may_try
        FROM counters
    ) AS it
), trying AS MATERIALIZED (
    SELECT * FROM asked WHERE may_try AND n = turn AND has_room
), held AS (
    SELECT it.phone
    FROM (SELECT DISTINCT phone FROM trying WHERE is_open AND is_right ORDER BY phone) AS it
        CROSS JOIN LATERAL (
            SELECT phone FROM phone WHERE phone = it.phone FOR UPDATE
        ) AS held
), locked AS MATERIALIZED (
    SELECT r, n, counter, origin, claim, first, latest.id, latest.attempts,
        is_open AND latest.id IS NULL AS is_lost,
        (is_right AND latest.code_hash = it.code_hash) IS TRUE AS is_right
    FROM (
        SELECT * FROM trying WHERE (SELECT count(*) FROM held) >= 0 ORDER BY id
    ) AS it
        LEFT JOIN LATERAL (
            SELECT id, attempts, code_hash
            FROM verification
            WHERE id = it.id AND is_open
              AND status || '' = 'pending' AND expires_at > now() AND attempts < $1
            FOR UPDATE
        ) AS latest ON true
), latest AS MATERIALIZED (
    SELECT *
    FROM (
        SELECT *, bool_or(is_lost) OVER attempt AS is_changed,
            min(CASE WHEN is_right THEN r END) OVER attempt AS right_row
        FROM locked
        WINDOW attempt AS (PARTITION BY n)
    ) AS it
    WHERE NOT is_changed AND coalesce(right_row, r) = r
), guess AS (
    INSERT INTO limit_counter AS known (policy, key, quota, used, ends_at)
    SELECT policy, counter, quota, CASE WHEN is_right THEN 0 ELSE 1 END,
        now() + period * interval '1 millisecond'
    FROM latest, unnest($9::text[], $10::integer[], $11::bigint[]) AS wanted (policy, quota, period)
    ORDER BY policy, counter
    ON CONFLICT (policy, key) DO UPDATE SET
        quota = excluded.quota,
        used = CASE
            WHEN known.ends_at <= now() THEN excluded.used
            WHEN excluded.used = 0 THEN
                greatest(known.used - (SELECT attempts FROM latest WHERE counter = excluded.key), 0)
            ELSE known.used + 1 END,
        ends_at = CASE WHEN known.ends_at > now() THEN known.ends_at ELSE excluded.ends_at END
    WHERE known.ends_at <= now() OR known.used < excluded.quota
    RETURNING key
), guessed AS MATERIALIZED (
    SELECT *
    FROM latest
    WHERE cardinality($9::text[]) = 0 OR (counter IN (
        SELECT key FROM guess GROUP BY key HAVING count(*) = cardinality($9::text[])
    )) IS TRUE
), counted AS (
    UPDATE verification
    SET attempts = attempts + 1,
        status = CASE WHEN id = ANY (ARRAY(SELECT id FROM guessed WHERE is_right))
            THEN 'approved' ELSE status END,
        ended_at = CASE WHEN id = ANY (ARRAY(SELECT id FROM guessed WHERE is_right)) THEN now() END,
        code_hash = CASE WHEN id <> ALL (ARRAY(SELECT id FROM guessed WHERE is_right))
            THEN code_hash END,
        seed = CASE WHEN id <> ALL (ARRAY(SELECT id FROM guessed WHERE is_right)) THEN seed END
    WHERE id = ANY (ARRAY(SELECT id FROM guessed WHERE id IS NOT NULL))
    RETURNING id, phone, attempts, pepper_id, status = 'approved' AS is_right
), cleared AS (
    UPDATE phone
    SET newest = CASE WHEN newest <> ALL (ARRAY(SELECT id FROM counted WHERE is_right))
            THEN newest END,
        newest_until = CASE WHEN newest <> ALL (ARRAY(SELECT id FROM counted WHERE is_right))
            THEN newest_until ELSE '-infinity' END
    WHERE phone = ANY (ARRAY(SELECT phone FROM counted WHERE is_right))
), told AS (
    INSERT INTO event (kind, verification) SELECT 'approved', id FROM counted WHERE is_right AND $12
), noted AS (
    UPDATE idempotency
    SET done = (
            SELECT id
            FROM guessed
            WHERE claim = key_hash AND first = coalesce(first_holder, holder) AND is_right
            LIMIT 1
        )
    WHERE key_hash = ANY (ARRAY(SELECT claim FROM guessed WHERE is_right))
      AND ((key_hash, coalesce(first_holder, holder)) IN (
            SELECT claim, first FROM guessed WHERE is_right
        )) IS TRUE
)
SELECT by_phone, changed, counts, may_try, status, exhausted, good_for, ttl, remains, origin,
    asked.id::text AS id, asked.phone, region, counted.attempts::integer AS attempts, pepper_id, counted.is_right,
    (r IN (SELECT r FROM guessed)) IS TRUE AS guessed,
    may_try AND n <> turn AS waits
FROM asked LEFT JOIN counted ON counted.id = asked.id
ORDER BY r"
);

// The same in SQLite, in its steps.
pub(super) const TARGET_BY_ID: &str = "
SELECT id, phone, origin, pepper_id, attempts >= $3 AS exhausted,
    (pepper_id, code_hash) IN (SELECT value ->> 0, unhex(value ->> 1) FROM json_each($4))
        AS is_right,
    CASE WHEN status = 'pending' AND expires_at <= $2 THEN 'expired' ELSE status END AS status,
    expires_at - $2 AS good_for, expires_at - created_at AS ttl
FROM verification
WHERE id = $1";

pub(super) const TARGET_OF_V1: &str = concat!(
    "
SELECT id, verification.phone, origin, pepper_id, attempts >= $3 AS exhausted,
    (pepper_id, code_hash) IN (SELECT value ->> 0, unhex(value ->> 1) FROM json_each($4))
        AS is_right",
    newest!(v1, "$1", "$2")
);

pub(super) const TARGET_OF_API: &str = concat!(
    "
SELECT id, verification.phone, origin, pepper_id, attempts >= $3 AS exhausted,
    (pepper_id, code_hash) IN (SELECT value ->> 0, unhex(value ->> 1) FROM json_each($4))
        AS is_right",
    newest!(api, "$1", "$2")
);

pub(super) const GUESSES: &str = "
SELECT policy, used, ends_at - $3 AS remains
FROM limit_counter
WHERE policy IN (SELECT value FROM json_each($2)) AND ends_at > $3 AND key = $1";

pub(super) const COUNT_ATTEMPT: &str =
    "UPDATE verification SET attempts = attempts + 1 WHERE id = $1 RETURNING attempts, pepper_id";

pub(super) const APPROVE: &str = "
UPDATE verification
SET status = 'approved', ended_at = $2, code_hash = NULL, seed = NULL
WHERE id = $1
RETURNING id, phone, region, origin";

pub(super) const NOTE: &str = tell_holders!("$1", "$2", "$3");

pub(super) const CLEAR: &str =
    "UPDATE phone SET newest = NULL, newest_until = 0 WHERE phone = $1 AND newest = $2";

// Only the guesses at this verification: a stranger's stay counted however often the owner of the
// phone is approved.
pub(super) const FORGIVE: &str = "
UPDATE limit_counter
SET used = max(used - (SELECT attempts FROM verification WHERE id = $3), 0)
WHERE key = $1 AND policy IN (SELECT value FROM json_each($2))";

pub(super) const TELL: &str =
    "INSERT INTO event (kind, verification, at, due_at) VALUES ($1, $2, $3, $3)";

// Its messages expire now: the latest, if no relay ever had it, and what a ledger has, which is due
// then, as the phone's next message waits for its end. What a relay
// had may be in the topic as it was, and must not be told of as ended.
pub(super) const CANCEL_POSTGRES: &str = "
WITH target AS (
    SELECT id, phone
    FROM verification
    WHERE id = $1 AND status || '' = 'pending' AND expires_at > now()
), cleared AS (
    UPDATE phone
    SET newest = CASE WHEN newest <> $1 THEN newest END,
        newest_until = CASE WHEN newest <> $1 THEN newest_until ELSE '-infinity' END
    WHERE phone = (SELECT phone FROM target)
    RETURNING 1
), canceled AS (
    UPDATE verification
    SET status = 'canceled', ended_at = now(), code_hash = NULL, seed = NULL
    WHERE id = (SELECT id FROM target) AND status || '' = 'pending' AND expires_at > now()
      AND (SELECT count(*) FROM cleared) >= 0
    RETURNING id, sequence, sends
), unclaimed AS (
    UPDATE outbox
    SET expires_at = now()
    WHERE sequence = (SELECT sequence FROM canceled) AND attempt = 0
    RETURNING 1
), uncalled AS (
    UPDATE delivery
    SET expires_at = least(expires_at, now()),
        due_at = CASE state WHEN 'pending' THEN least(due_at, now()) ELSE due_at END
    WHERE message_id = ANY (ARRAY(
            SELECT (left(id::text, 34) || lpad(to_hex(send), 2, '0'))::uuid
            FROM canceled, generate_series(1, sends) AS send
        ))
      AND state || '' IN ('pending', 'calling')
      AND (SELECT count(*) FROM unclaimed) >= 0
    RETURNING 1
)
INSERT INTO event (kind, verification)
SELECT 'canceled', id FROM canceled WHERE $2 AND (SELECT count(*) FROM uncalled) >= 0";

// The same in SQLite.
pub(super) const CANCEL: &str = "
UPDATE verification
SET status = 'canceled', ended_at = $2, code_hash = NULL, seed = NULL
WHERE id = $1 AND status = 'pending' AND expires_at > $2
RETURNING phone, sequence, sends";

pub(super) const CANCEL_UNCLAIMED: &str = "
UPDATE outbox
SET expires_at = $2
WHERE sequence = $1 AND attempt = 0";

pub(super) const CANCEL_UNCALLED: &str = "
UPDATE delivery
SET expires_at = min(expires_at, $2),
    due_at = CASE state WHEN 'pending' THEN min(due_at, $2) ELSE due_at END
WHERE message_id IN (SELECT value FROM json_each($1)) AND state IN ('pending', 'calling')";

pub(super) const START_TEST_POSTGRES: &str = "
WITH known AS (
    INSERT INTO phone
        (phone, newest, newest_until, exclusive, quota_1, sends_1, ends_1, quota_2, sends_2,
         ends_2, quota_3, sends_3, ends_3)
    VALUES ($2, $1, now() + $3 * interval '1 millisecond', false, 0, 0, now(), 0, 0, now(), 0, 0,
        now())
    ON CONFLICT (phone) DO UPDATE SET
        newest = excluded.newest, newest_until = excluded.newest_until
    RETURNING 1
), created AS (
    INSERT INTO verification
        (id, phone, origin, region, code_hash, seed, pepper_id, code_length, template, metadata,
         api_key, sequence, expires_at)
    SELECT $1, $2, $4, $5, decode($6, 'hex'), decode($7, 'hex'), $8, $9, $10, $11, $12, 0,
        now() + $3 * interval '1 millisecond'
    FROM known
    RETURNING id
), told AS (
    INSERT INTO event (kind, verification) SELECT 'created', id FROM created WHERE $13
)
SELECT (extract(epoch FROM now()) * 1000)::bigint AS created_at FROM created";

// The same in SQLite.
pub(super) const POINT_TO: &str = "
INSERT INTO phone
    (phone, newest, newest_until, exclusive, quota_1, sends_1, ends_1, quota_2, sends_2, ends_2,
     quota_3, sends_3, ends_3)
VALUES ($1, $2, $4 + $3, 0, 0, 0, $4, 0, 0, $4, 0, 0, $4)
ON CONFLICT (phone) DO UPDATE SET newest = excluded.newest, newest_until = excluded.newest_until";

pub(super) const CREATE_TEST: &str = "
INSERT INTO verification
    (id, phone, origin, region, code_hash, seed, pepper_id, code_length, template, metadata,
     api_key, sequence, created_at, sent_at, expires_at)
VALUES ($1, $2, $4, $5, unhex($6), unhex($7), $8, $9, $10, $11, $12, 0, $13, $13, $13 + $3)";

// Each statement touches 10,000 rows at most: none of ours may take long.
pub(super) const EXPIRE_POSTGRES: &str = "
WITH late AS (
    SELECT id
    FROM verification
    WHERE status = 'pending' AND expires_at <= now()
    ORDER BY expires_at
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
), expired AS (
    UPDATE verification
    SET status = 'expired', ended_at = expires_at, code_hash = NULL, seed = NULL
    FROM late
    WHERE verification.id = late.id
    RETURNING verification.id
), told AS (
    INSERT INTO event (kind, verification) SELECT 'expired', id FROM expired WHERE $1
)
SELECT count(*) AS expired FROM expired";

// The same in SQLite: first what is told, then what is.
pub(super) const TELL_EXPIRED: &str = "
INSERT INTO event (kind, verification, at, due_at)
SELECT 'expired', id, $1, $1
FROM verification
WHERE status = 'pending' AND expires_at <= $1
ORDER BY expires_at, id
LIMIT 10000";

pub(super) const EXPIRE: &str = "
UPDATE verification
SET status = 'expired', ended_at = expires_at, code_hash = NULL, seed = NULL
WHERE id IN (
    SELECT id
    FROM verification
    WHERE status = 'pending' AND expires_at <= $1
    ORDER BY expires_at, id
    LIMIT 10000
)";

/// Notes a receipt; `$2`: of a message that was delivered. `$3`: and tells of it, by the name `$4`,
/// as of the verification `$5`.
///
/// A message is delivered once and fails once: see `events::TELL_POSTGRES`.
pub(super) const NOTE_RECEIPT_POSTGRES: &str = "
WITH noted AS (
    UPDATE delivery
    SET delivered_at = CASE WHEN $2 THEN now() END,
        undelivered_at = CASE WHEN $2 THEN undelivered_at ELSE now() END
    WHERE message_id = $1 AND called_at IS NOT NULL
      AND delivered_at IS NULL AND ($2 OR undelivered_at IS NULL)
    RETURNING 1
), told AS (
    INSERT INTO event (id, kind, verification, delivery)
    SELECT CASE WHEN $2 THEN gen_random_uuid() ELSE $1 END,
        CASE WHEN $2 THEN 'delivered' ELSE 'failed' END, id, $4
    FROM verification
    WHERE $3 AND id = $5 AND EXISTS (SELECT 1 FROM noted) AND NOT EXISTS (
        SELECT 1
        FROM delivery
        WHERE message_id = $1 AND (delivered_at IS NOT NULL OR NOT $2 AND (
            undelivered_at IS NOT NULL OR state IN ('failed', 'expired', 'unknown')
        ))
    )
)
SELECT EXISTS (SELECT 1 FROM delivery WHERE message_id = $1 AND called_at IS NOT NULL) AS known";

// The same in SQLite: first what is told, then what is.
pub(super) const TELL_RECEIPT: &str = "
INSERT INTO event (id, kind, verification, delivery, at, due_at)
SELECT iif($2, lower(hex(randomblob(16))), replace($1, '-', '')), iif($2, 'delivered', 'failed'),
    id, $3, $5, $5
FROM verification
WHERE id = $4
  AND EXISTS (SELECT 1 FROM delivery WHERE message_id = $1 AND called_at IS NOT NULL)
  AND NOT EXISTS (
    SELECT 1
    FROM delivery
    WHERE message_id = $1 AND (delivered_at IS NOT NULL OR NOT $2 AND (
        undelivered_at IS NOT NULL OR state IN ('failed', 'expired', 'unknown')
    ))
)";

pub(super) const NOTE_RECEIPT: &str = "
UPDATE delivery
SET delivered_at = iif(delivered_at IS NULL AND $2, $3, delivered_at),
    undelivered_at = iif(coalesce(delivered_at, undelivered_at) IS NULL AND NOT $2, $3,
        undelivered_at)
WHERE message_id = $1 AND called_at IS NOT NULL";

/// What is deleted by its age, which is given.
pub(super) const PRUNE_OLD: [Sql; 3] = [
    Sql {
        postgres: "
DELETE FROM verification
WHERE id IN (
    SELECT id
    FROM verification
    WHERE created_at < now() - $1 * interval '1 millisecond' AND expires_at <= now()
    ORDER BY created_at
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
        sqlite: "
DELETE FROM verification
WHERE id IN (
    SELECT id
    FROM verification, (SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now)
    WHERE created_at < now - $1 AND expires_at <= now
    LIMIT 10000
)",
    },
    // A row holds up to a thousand decisions.
    Sql {
        postgres: "
DELETE FROM guard_decision
WHERE id IN (
    SELECT id
    FROM guard_decision
    WHERE decided_at < now() - $1 * interval '1 millisecond'
    ORDER BY id
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
)",
        sqlite: "
DELETE FROM guard_decision
WHERE id IN (
    SELECT id
    FROM guard_decision
    WHERE decided_at < CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - $1
    LIMIT 1000
)",
    },
    Sql {
        postgres: "
DELETE FROM guard_count
WHERE (scope, key) IN (
    SELECT scope, key
    FROM guard_count
    -- two of the longest windows that a guard may have, and no less
    WHERE began_at < now() - greatest($1 * interval '1 millisecond', interval '14 days')
      AND (allowed_until IS NULL OR allowed_until < now())
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
        sqlite: "
DELETE FROM guard_count
WHERE (scope, key) IN (
    SELECT scope, key
    FROM guard_count
    WHERE began_at < CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - max($1, 1209600000)
      AND (allowed_until IS NULL
          OR allowed_until < CAST(round(unixepoch('subsec') * 1000) AS INTEGER))
    LIMIT 10000
)",
    },
];

/// What is deleted when its time is over.
pub(super) const PRUNE_OVER: [Sql; 3] = [
    Sql {
        postgres: "
DELETE FROM phone
WHERE phone IN (
    SELECT phone
    FROM phone
    WHERE greatest(newest_until, api_newest_until, ends_1, ends_2, ends_3) <= now()
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
        sqlite: "
DELETE FROM phone
WHERE phone IN (
    SELECT phone
    FROM phone
    WHERE max(newest_until, api_newest_until, ends_1, ends_2, ends_3)
        <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
    LIMIT 10000
)",
    },
    Sql {
        postgres: "
DELETE FROM limit_counter
WHERE (policy, key) IN (
    SELECT policy, key
    FROM limit_counter
    WHERE ends_at <= now()
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
        sqlite: "
DELETE FROM limit_counter
WHERE (policy, key) IN (
    SELECT policy, key
    FROM limit_counter
    WHERE ends_at <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
    LIMIT 10000
)",
    },
    Sql {
        postgres: "
DELETE FROM idempotency
WHERE key_hash IN (
    SELECT key_hash
    FROM idempotency
    WHERE expires_at <= now()
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
        sqlite: "
DELETE FROM idempotency
WHERE key_hash IN (
    SELECT key_hash
    FROM idempotency
    WHERE expires_at <= CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
    LIMIT 10000
)",
    },
];
