use crate::{database::Sql, limits::count_on_phone, verifications::verification_columns};

/// What stores a batch in PostgreSQL: one statement, whose parameters of counters come last.
///
/// Locks in the order that all statements keep to: ARCHITECTURE.md has it.
pub(super) fn start(counters: bool, events: bool) -> String {
    [
        START,
        if counters { COUNTED } else { "" },
        STORED,
        if events { TOLD } else { "" },
        if counters { COUNTERS_HOLD } else { NO_COUNTERS },
    ]
    .concat()
}

// A phone is known by its one form; `written` is how it is sent to.
//
// What is counted of a phone is its account: its digits, or apart from them what came through an
// open `/api`. An account has one row in `wanted`, whatever is sent to it. What `allowed` leaves out was refused,
// and nothing else happens for it.
//
// Places in the outbox are drawn when the phones are locked already: `new` is read after that.
const START: &str = concat!(
    "
WITH new AS MATERIALIZED (
    SELECT *, nextval('outbox_sequence_seq') AS sequence
    FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::bigint[],
            $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::smallint[],
            $13::text[], $14::text[], $15::uuid[], $16::text[], $17::text[])
        AS new (id, verification, written, code, trace, ttl, origin, region, code_hash, seed,
            pepper_id, code_length, template, metadata, api_key, phone, account)
), wanted AS (
    SELECT *
    FROM unnest($18::text[], $19::uuid[], $20::bigint[], $21::integer[], $22::integer[],
            $23::integer[], $24::bigint[], $25::integer[], $26::bigint[], $27::integer[],
            $28::bigint[])
        AS wanted (account, newest, ttl, exclusive, sends, quota_1, period_1, quota_2, period_2,
            quota_3, period_3)
), allowed AS (
    INSERT INTO phone AS known
        (phone, newest, newest_until, api_newest, api_newest_until, exclusive, quota_1, sends_1,
         ends_1, quota_2, sends_2, ends_2, quota_3, sends_3, ends_3)
    SELECT account,
        CASE WHEN exclusive = 1 THEN newest END,
        CASE WHEN exclusive = 1 THEN now() + ttl * interval '1 millisecond' ELSE '-infinity' END,
        CASE WHEN exclusive = 0 THEN newest END,
        CASE WHEN exclusive = 0 THEN now() + ttl * interval '1 millisecond' ELSE '-infinity' END,
        exclusive = 1,
        quota_1, sends, now() + period_1 * interval '1 millisecond',
        quota_2, sends, now() + period_2 * interval '1 millisecond',
        quota_3, sends, now() + period_3 * interval '1 millisecond'
    FROM wanted
    ORDER BY account",
    count_on_phone!("now()"),
    "
    RETURNING known.phone AS account
)"
);

// A fresh counter may be over its quota too: only `holds` tells.
const COUNTED: &str = ", counted AS (
    INSERT INTO limit_counter AS known (policy, key, quota, used, ends_at)
    SELECT policy, key, max(quota), count(*), now() + max(period) * interval '1 millisecond'
    FROM unnest($29::text[], $30::text[], $31::text[], $32::integer[], $33::bigint[])
        AS counter (account, policy, key, quota, period)
    WHERE (account IN (SELECT account FROM allowed)) IS TRUE
    GROUP BY policy, key
    ORDER BY policy, key
    ON CONFLICT (policy, key) DO UPDATE SET
        quota = excluded.quota,
        used = CASE WHEN known.ends_at > now() THEN known.used ELSE 0 END + excluded.used,
        ends_at = CASE WHEN known.ends_at > now() THEN known.ends_at ELSE excluded.ends_at END
    RETURNING used <= quota AS holds
)";

const STORED: &str = ", stored AS (
    INSERT INTO outbox (sequence, id, phone, code, trace, expires_at)
    SELECT sequence, id, written, code, trace, now() + ttl * interval '1 millisecond'
    FROM new
    WHERE (account IN (SELECT account FROM allowed)) IS TRUE
), created AS (
    INSERT INTO verification
        (id, phone, origin, region, code_hash, seed, pepper_id, code_length, template, metadata,
         api_key, sequence, expires_at)
    SELECT verification, phone, origin, nullif(region, ''), decode(code_hash, 'hex'),
        decode(seed, 'hex'), pepper_id, code_length, nullif(template, ''), nullif(metadata, ''),
        nullif(api_key, '00000000-0000-0000-0000-000000000000'), sequence,
        now() + ttl * interval '1 millisecond'
    FROM new
    WHERE (account IN (SELECT account FROM allowed)) IS TRUE
    RETURNING id
)";

const TOLD: &str = ", told AS (
    INSERT INTO event (kind, verification) SELECT 'created', id FROM created
)";

const NO_COUNTERS: &str = "
SELECT account, (extract(epoch FROM now()) * 1000)::bigint AS accepted_at, true AS holds
FROM allowed";

const COUNTERS_HOLD: &str = "
SELECT account, (extract(epoch FROM now()) * 1000)::bigint AS accepted_at,
    (SELECT bool_and(holds) FROM counted) IS NOT FALSE AS holds
FROM allowed";

// The same in SQLite, where a statement writes to one table.
pub(crate) const COUNT_ON_PHONES: &str = concat!(
    "
INSERT INTO phone AS known
    (phone, newest, newest_until, api_newest, api_newest_until, exclusive, quota_1, sends_1, ends_1,
     quota_2, sends_2, ends_2, quota_3, sends_3, ends_3)
SELECT value ->> 0,
    iif(value ->> 11, NULL, value ->> 1), iif(value ->> 11, 0, $2 + (value ->> 2)),
    iif(value ->> 11, value ->> 1, NULL), iif(value ->> 11, $2 + (value ->> 2), 0),
    value ->> 3,
    value ->> 5, value ->> 4, $2 + (value ->> 6),
    value ->> 7, value ->> 4, $2 + (value ->> 8),
    value ->> 9, value ->> 4, $2 + (value ->> 10)
FROM json_each($1)
WHERE true",
    count_on_phone!("$2"),
    "
RETURNING phone AS account"
);

pub(crate) const STORE: &str = "
INSERT INTO outbox (id, phone, code, trace, accepted_at, expires_at)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, $2, $2 + (value ->> 4)
FROM json_each($1)
ORDER BY key
RETURNING id, sequence";

pub(super) const CREATE: &str = "
INSERT INTO verification
    (id, phone, origin, region, code_hash, seed, pepper_id, code_length, template, metadata,
     api_key, sequence, created_at, sent_at, expires_at)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, unhex(value ->> 4), unhex(value ->> 5),
    value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, $2, $2,
    $2 + (value ->> 12)
FROM json_each($1)";

pub(super) const TELL: &str = "
INSERT INTO event (kind, verification, at, due_at)
SELECT 'created', value ->> 0, $2, $2
FROM json_each($1)";

/// What is sent to phones, and what is pending for them.
pub(crate) const PHONES: Sql = Sql {
    postgres: concat!(
        "
SELECT known.phone AS account,
    sends_1, (extract(epoch FROM ends_1 - now()) * 1000)::bigint AS left_1,
    sends_2, (extract(epoch FROM ends_2 - now()) * 1000)::bigint AS left_2,
    sends_3, (extract(epoch FROM ends_3 - now()) * 1000)::bigint AS left_3,
    pending.*
FROM phone AS known
    LEFT JOIN (
        SELECT id AS pending, ",
        verification_columns!(postgres),
        "
        FROM verification
        WHERE status = 'pending' AND expires_at > now()
    ) AS pending ON pending.pending = known.newest
WHERE known.phone = ANY ($1::text[])"
    ),
    sqlite: concat!(
        "
SELECT known.phone AS account,
    sends_1, ends_1 - clock.now AS left_1,
    sends_2, ends_2 - clock.now AS left_2,
    sends_3, ends_3 - clock.now AS left_3,
    pending.*
FROM (SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now) AS clock
    CROSS JOIN phone AS known
    LEFT JOIN (
        SELECT ",
        verification_columns!(sqlite),
        "
        FROM verification
        WHERE status = 'pending'
          AND expires_at > CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
    ) AS pending ON pending.id = known.newest
WHERE known.phone IN (SELECT value FROM json_each($1))"
    ),
};
