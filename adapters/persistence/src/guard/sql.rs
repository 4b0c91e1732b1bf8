use crate::database::{Fragment, Sql};

/// Moves the buckets of `guard_count AS known` on as `Rolling::later` does, and adds to them.
const TURN_BUCKETS: Fragment = Fragment::new(
    "turn_buckets",
    "
    ON CONFLICT (scope, key) DO UPDATE SET
        began_at = CASE
            WHEN {now} - known.began_at < {duration(:window)} THEN known.began_at
            WHEN {now} - known.began_at < 2 * {duration(:window)}
                THEN known.began_at + {duration(:window)}
            ELSE {now} END,
        sends_before = CASE
            WHEN {now} - known.began_at < {duration(:window)} THEN known.sends_before
            WHEN {now} - known.began_at < 2 * {duration(:window)} THEN known.sends
            ELSE 0 END,
        approvals_before = CASE
            WHEN {now} - known.began_at < {duration(:window)} THEN known.approvals_before
            WHEN {now} - known.began_at < 2 * {duration(:window)} THEN known.approvals
            ELSE 0 END,
        sends = excluded.sends + CASE
            WHEN {now} - known.began_at < {duration(:window)} THEN known.sends
            ELSE 0 END,
        approvals = excluded.approvals + CASE
            WHEN {now} - known.began_at < {duration(:window)} THEN known.approvals
            ELSE 0 END,
        day_began_at = CASE
            WHEN {now} - known.day_began_at < {day} THEN known.day_began_at
            WHEN {now} - known.day_began_at < 2 * {day} THEN known.day_began_at + {day}
            ELSE {now} END,
        day_sends_before = CASE
            WHEN {now} - known.day_began_at < {day} THEN known.day_sends_before
            WHEN {now} - known.day_began_at < 2 * {day} THEN known.day_sends
            ELSE 0 END,
        day_approvals_before = CASE
            WHEN {now} - known.day_began_at < {day} THEN known.day_approvals_before
            WHEN {now} - known.day_began_at < 2 * {day} THEN known.day_approvals
            ELSE 0 END,
        day_sends = excluded.sends + CASE
            WHEN {now} - known.day_began_at < {day} THEN known.day_sends
            ELSE 0 END,
        day_approvals = excluded.approvals + CASE
            WHEN {now} - known.day_began_at < {day} THEN known.day_approvals
            ELSE 0 END
    RETURNING scope, key, sends, approvals, sends_before, approvals_before,
        {millis({now} - began_at)} AS age,
        day_sends, day_approvals, day_sends_before, day_approvals_before,
        {millis({now} - day_began_at)} AS day_age,
        coalesce(allowed_until > {now}, false) AS allowed",
);

const DAY: Fragment = Fragment::pair("day", "interval '1 day'", "86400000");

pub(super) static ADD_POSTGRES: Sql = Sql::with(
    &[TURN_BUCKETS, DAY],
    "
WITH counted AS (
    INSERT INTO guard_count AS known
        (scope, key, began_at, sends, approvals, day_began_at, day_sends, day_approvals)
    SELECT scope, key, now(), sends, approvals, now(), sends, approvals
    FROM :moved
    -- all statements lock rows in this order
    ORDER BY scope, key{turn_buckets}
), decided AS (
    INSERT INTO guard_decision (rule, mode, scope, key, sends, approvals, verification, others)
    SELECT rule, mode, scope, key, sends, approvals,
        nullif(verification, '00000000-0000-0000-0000-000000000000'), nullif(others, '')::json
    FROM :run
), told AS (
    INSERT INTO event (kind, phone) SELECT 'blocked', phone FROM unnest(:blocked::text[]) AS phone
)
SELECT * FROM counted",
    "",
);

pub(super) static ADD_SQLITE: Sql = Sql::with(
    &[TURN_BUCKETS, DAY],
    "",
    "
INSERT INTO guard_count AS known
    (scope, key, began_at, sends, approvals, day_began_at, day_sends, day_approvals)
SELECT scope, key, {now}, sends, approvals, {now}, sends, approvals
FROM :moved
WHERE true{turn_buckets}",
);

pub(super) static DECIDE_SQLITE: Sql = Sql::new(
    "
INSERT INTO guard_decision
    (decided_at, rule, mode, scope, key, sends, approvals, verification, others)
SELECT {now}, rule, mode, scope, key, sends, approvals,
    nullif(verification, '00000000-0000-0000-0000-000000000000'), nullif(others, '')
FROM :run",
);

pub(super) static RECORD_SQLITE: Sql = Sql::new(
    "
INSERT INTO event (kind, phone, at, due_at)
SELECT 'blocked', value, {now}, {now}
FROM json_each(:blocked)",
);

pub(super) static ALLOW: Sql = Sql::pair(
    "
INSERT INTO guard_count (scope, key, began_at, sends, approvals, allowed_until)
SELECT scope, key, now(), 0, 0, now() + {duration(:period)}
FROM :allowed
-- the order in which `ADD_POSTGRES` locks the rows
ORDER BY scope, key
ON CONFLICT (scope, key) DO UPDATE SET allowed_until = excluded.allowed_until",
    "
INSERT INTO guard_count (scope, key, began_at, sends, approvals, allowed_until)
SELECT scope, key, now, 0, 0, now + :period
FROM :allowed, (SELECT {now} AS now)
WHERE true
ON CONFLICT (scope, key) DO UPDATE SET allowed_until = excluded.allowed_until",
);

pub(super) static PAST: Sql = Sql::pair(
    "
SELECT id::text AS id, phone, region, sends::integer AS sends, {millis(created_at)} AS created_at,
    {millis(CASE WHEN status = 'approved' THEN ended_at END)} AS approved_at
FROM verification
WHERE origin = 'v1'
  AND verification.created_at > now() - {duration(:since)}
  -- The start of a page was given in milliseconds, and so is the order: PostgreSQL sorts by the
  -- column that it returns.
  AND verification.created_at >= to_timestamp((:after::bigint - 1) / 1000.0)
  AND ({millis(verification.created_at)}, verification.id) > (:after, :after_id)
ORDER BY created_at, verification.id
LIMIT :limit",
    "
SELECT id, phone, region, sends, created_at,
    CASE WHEN status = 'approved' THEN ended_at END AS approved_at
FROM verification, (SELECT {now} AS now)
WHERE origin = 'v1' AND created_at > now - :since AND created_at >= :after
  AND (created_at, id) > (:after, :after_id)
ORDER BY created_at, id
LIMIT :limit",
);

pub(super) static DECISIONS: Sql = Sql::pair(
    "
SELECT {millis(decided_at)} AS decided_at, rule, key, it.sends, it.approvals,
    it.verification::text AS verification
FROM (
        SELECT *
        FROM guard_decision
        WHERE guard_decision.decided_at > now() - {duration(:since)}
        ORDER BY id DESC
        LIMIT :limit
    ) AS run CROSS JOIN LATERAL (
        SELECT 0 AS place, run.sends, run.approvals, run.verification
        UNION ALL
        SELECT place, (value ->> 0)::bigint, (value ->> 1)::bigint, (value ->> 2)::uuid
        FROM json_array_elements(others) WITH ORDINALITY AS other (value, place)
    ) AS it
ORDER BY id DESC, place DESC
LIMIT :limit",
    "
WITH run AS (
    SELECT *
    FROM guard_decision
    WHERE decided_at > {now} - :since
    ORDER BY id DESC
    LIMIT :limit
)
SELECT id, -1 AS place, decided_at, rule, key, sends, approvals, verification
FROM run
UNION ALL
SELECT run.id, other.key, decided_at, rule, run.key, other.value ->> 0, other.value ->> 1,
    other.value ->> 2
FROM run, json_each(others) AS other
ORDER BY id DESC, place DESC
LIMIT :limit",
);
