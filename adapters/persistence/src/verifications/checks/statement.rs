use crate::{
    database::Sql,
    verifications::newest::{NEWEST_OF_API, NEWEST_OF_V1},
};

// An attempt by id has one row, and an attempt by phone has two: the newest verification of `/v1`
// and that of `/api`. `attempt_number` counts the attempts, and `row_place` the rows. All rows of the
// answer are in the order of the rows that were given.
//
// Attempts at one phone are decided one at a time: the first of them that may be tried is, and the
// others wait.
//
// Rows are looked up by key in subqueries that PostgreSQL cannot flatten, so the plan is the same at
// any table size. Phones, verifications and counters are locked in this order, and each kind in the
// order of its keys, so that two statements never wait for each other.
pub(super) static CHECK: Sql = Sql::with(
    &[NEWEST_OF_V1, NEWEST_OF_API],
    "
WITH known AS MATERIALIZED (
    SELECT row_place, attempt_number, asked.phone <> '' AS by_phone, of_api, claim, first, it.id,
        origin, region, code_hash, status, attempts >= :attempts AS exhausted, good_for, ttl,
        CASE WHEN asked.phone <> '' THEN asked.phone ELSE it.phone END AS phone,
        -- Each row has windows of its own: guesses at the code of one origin use up nothing of the
        -- other's, and guesses at nothing use up nothing of a later verification.
        CASE
            WHEN asked.phone = '' THEN CASE WHEN origin = 'api' THEN 'api:' ELSE '' END || it.phone
            ELSE CASE WHEN of_api THEN 'api' ELSE '' END
                || CASE WHEN it.id IS NULL THEN '?' WHEN of_api THEN ':' ELSE '' END
                || asked.phone
        END AS counter,
        (status = 'pending' AND attempts < :attempts) IS TRUE AS is_open,
        -- An early difference ends the comparison sooner, which reveals nothing: the hashes are
        -- under a pepper, so a caller cannot choose their first bytes (ADR 24).
        ((row_place, pepper_id, code_hash) IN (SELECT * FROM :hashed)) IS TRUE AS is_right,
        asked.phone <> '' AND CASE WHEN of_api
            THEN (SELECT id{newest_of_api(asked.phone)})
            ELSE (SELECT id{newest_of_v1(asked.phone)})
        END IS DISTINCT FROM nullif(asked.id, '00000000-0000-0000-0000-000000000000') AS moved
    FROM :asked#row_place
        LEFT JOIN LATERAL (
            SELECT id, phone, origin, region, code_hash, pepper_id, attempts,
                CASE WHEN status = 'pending' AND expires_at <= now() THEN 'expired' ELSE status END
                    AS status,
                {millis(expires_at - now())} AS good_for,
                {millis(expires_at - created_at)} AS ttl
            FROM verification
            WHERE id = asked.id
            OFFSET 0
        ) AS it ON true
), counters AS MATERIALIZED (
    -- The statement reads the counters before it writes, so an attacker who guesses causes no writes.
    SELECT *,
        ARRAY(
            SELECT coalesce((
                SELECT {millis(ends_at - now())}
                FROM limit_counter
                WHERE policy = wanted.policy AND key = known.counter AND ends_at > now()
                  AND used >= wanted.quota
            ), -1)
            FROM :wanted#place
            WHERE by_phone OR is_open
            ORDER BY place
        ) AS remains,
        bool_or(moved) OVER attempt AS changed,
        -- The attempt may be made if one of the rows that count has room: a row with a verification,
        -- or the first if no row has one.
        CASE
            WHEN NOT by_phone THEN is_open
            WHEN bool_or(id IS NOT NULL) OVER attempt THEN id IS NOT NULL
            ELSE NOT of_api
        END AS counts
    FROM known
    WINDOW attempt AS (PARTITION BY attempt_number)
), judged AS MATERIALIZED (
    SELECT *, min(CASE WHEN may_try THEN attempt_number END) OVER (PARTITION BY phone) AS turn
    FROM (
        SELECT *, NOT 0 <= ANY (remains) AS has_room,
            NOT changed AND bool_or(counts AND NOT 0 <= ANY (remains))
                OVER (PARTITION BY attempt_number) AS may_try
        FROM counters
    ) AS it
), trying AS MATERIALIZED (
    -- By phone both rows are counted, so that the work is the same whatever there is; only rows that
    -- are changed in place differ.
    SELECT * FROM judged WHERE may_try AND attempt_number = turn AND has_room
), held AS (
    SELECT it.phone
    FROM (SELECT DISTINCT phone FROM trying WHERE is_open AND is_right ORDER BY phone) AS it
        CROSS JOIN LATERAL (
            SELECT phone FROM phone WHERE phone = it.phone FOR UPDATE
        ) AS held
), locked AS MATERIALIZED (
    -- The row as it is when it is locked, so that each of many concurrent attempts is the only one.
    -- An attempt that lost its row in between decides nothing.
    SELECT row_place, attempt_number, counter, origin, claim, first, latest.id, latest.attempts,
        is_open AND latest.id IS NULL AS is_lost,
        (is_right AND latest.code_hash = it.code_hash) IS TRUE AS is_right
    FROM (
        SELECT * FROM trying WHERE (SELECT count(*) FROM held) >= 0 ORDER BY id
    ) AS it
        LEFT JOIN LATERAL (
            SELECT id, attempts, code_hash
            FROM verification
            WHERE id = it.id AND is_open
              AND status || '' = 'pending' AND expires_at > now() AND attempts < :attempts
            FOR UPDATE
        ) AS latest ON true
), latest AS MATERIALIZED (
    -- A code that is right for one row is not counted as a wrong one for the other.
    SELECT *
    FROM (
        SELECT *, bool_or(is_lost) OVER attempt AS is_changed,
            min(CASE WHEN is_right THEN row_place END) OVER attempt AS right_row
        FROM locked
        WINDOW attempt AS (PARTITION BY attempt_number)
    ) AS it
    WHERE NOT is_changed AND coalesce(right_row, row_place) = row_place
), guess AS (
    -- A correct code removes the attempts of its verification from the counters. If another guess has
    -- just used up one of two windows, the window before it is changed all the same.
    INSERT INTO limit_counter AS known (policy, key, quota, used, ends_at)
    SELECT policy, counter, quota, CASE WHEN is_right THEN 0 ELSE 1 END, now() + {duration(period)}
    FROM latest, :wanted
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
    WHERE :windows = 0 OR (counter IN (
        SELECT key FROM guess GROUP BY key HAVING count(*) = :windows
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
    -- Compared with the row as it is when it is locked: a resend may have made it the newest.
    UPDATE phone
    SET newest = CASE WHEN newest <> ALL (ARRAY(SELECT id FROM counted WHERE is_right))
            THEN newest END,
        newest_until = CASE WHEN newest <> ALL (ARRAY(SELECT id FROM counted WHERE is_right))
            THEN newest_until ELSE '-infinity' END
    WHERE phone = ANY (ARRAY(SELECT phone FROM counted WHERE is_right))
), told AS (
    INSERT INTO event (kind, verification)
    SELECT 'approved', id FROM counted WHERE is_right AND :events
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
SELECT changed, counts, may_try, status, exhausted, good_for, ttl, remains, origin,
    judged.id::text AS id, judged.phone, region, counted.attempts::integer AS attempts, pepper_id,
    counted.is_right, (row_place IN (SELECT row_place FROM guessed)) IS TRUE AS guessed,
    may_try AND attempt_number <> turn AS waits
FROM judged LEFT JOIN counted ON counted.id = judged.id
ORDER BY row_place",
    "",
);
