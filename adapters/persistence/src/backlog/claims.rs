//! Claims on rows of the outbox: leases under which a relay publishes them.

use application::ports::{Claim, Claimed};
use domain::{Message, Validity};
use sea_orm::FromQueryResult;

use crate::database::{DatabaseError, Fragment, Parameters, Sql, lasting, parsed, time};

/// Adds the table `claim`.
pub(super) fn claim_rows(parameters: Parameters, claims: &[Claim]) -> Parameters {
    parameters.rows("claim", claims.iter(), |rows| {
        rows.column("sequence", |it| it.sequence).column("attempt", |it| it.attempt)
    })
}

#[derive(FromQueryResult)]
pub(super) struct ClaimedRow {
    sequence: i64,
    attempt: i32,
    id: String,
    phone: String,
    code: String,
    trace: String,
    accepted_at: i64,
    expires_at: i64,
    age: i64,
}

impl ClaimedRow {
    pub(super) fn claimed(self) -> Result<Claimed, DatabaseError> {
        Ok(Claimed {
            claim: Claim { sequence: self.sequence, attempt: self.attempt },
            message: Message {
                id: parsed(&self.id, "an id")?,
                phone: parsed(&self.phone, "a phone")?,
                code: parsed(&self.code, "a code")?,
            },
            validity: Validity {
                accepted_at: time(self.accepted_at),
                expires_at: time(self.expires_at),
            },
            trace: parsed(&self.trace, "a trace")?,
            age: lasting(self.age),
        })
    }
}

// `candidate` takes the oldest messages without a lease. `elsewhere` are older messages that are no
// candidates and are not known to be published: a relay has them, and they must reach the broker
// before any younger message to the same phone. Below the highest candidate there are few rows, as
// published messages leave the table soon.
//
// In PostgreSQL, `(phone IN …) IS NOT TRUE` decides most candidates: it is hashed. `NOT EXISTS` alone
// would compare each candidate with each row of `elsewhere`, because joins of two lists are ruled out
// (`PLANS` in database/session.rs). Only candidates whose phone is elsewhere are compared so.
pub(super) static CLAIM: Sql = Sql::pair(
    "
WITH candidate AS MATERIALIZED (
    SELECT sequence, phone
    FROM outbox
    WHERE sequence >= :oldest AND claimable_at <= now() AND expires_at > now()
    ORDER BY sequence
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
), elsewhere AS MATERIALIZED (
    SELECT sequence, phone
    FROM outbox
    WHERE sequence >= :oldest AND sequence < (SELECT max(sequence) FROM candidate)
      AND publications = 0
      AND expires_at > now()
      AND sequence NOT IN (SELECT sequence FROM candidate)
)
UPDATE outbox
SET claimable_at = now() + {duration(:lease)}, attempt = attempt + 1
WHERE sequence = ANY (ARRAY(
    SELECT sequence
    FROM candidate
    WHERE (phone IN (SELECT phone FROM elsewhere)) IS NOT TRUE OR NOT EXISTS (
        SELECT 1
        FROM elsewhere
        WHERE elsewhere.phone = candidate.phone AND elsewhere.sequence < candidate.sequence
    )
))
RETURNING sequence, attempt, id::text AS id, phone, code, trace,
    {millis(accepted_at)} AS accepted_at, {millis(expires_at)} AS expires_at,
    {millis(now() - accepted_at)} AS age",
    "
WITH clock AS MATERIALIZED (
    SELECT {now} AS now
), candidate AS MATERIALIZED (
    SELECT sequence, phone
    FROM clock CROSS JOIN outbox
    WHERE sequence >= :oldest AND claimable_at <= clock.now AND expires_at > clock.now
    ORDER BY sequence
    LIMIT :limit
), elsewhere AS MATERIALIZED (
    SELECT sequence, phone
    FROM clock CROSS JOIN outbox
    WHERE sequence >= :oldest AND sequence < (SELECT max(sequence) FROM candidate)
      AND publications = 0
      AND expires_at > clock.now
      AND sequence NOT IN (SELECT sequence FROM candidate)
)
UPDATE outbox
SET claimable_at = (SELECT now FROM clock) + :lease, attempt = attempt + 1
FROM candidate
WHERE outbox.sequence = candidate.sequence AND NOT EXISTS (
    SELECT 1
    FROM elsewhere
    WHERE elsewhere.phone = candidate.phone AND elsewhere.sequence < candidate.sequence
)
RETURNING sequence, attempt, id, phone, code, trace, accepted_at, expires_at,
    {now} - accepted_at AS age",
);

/// The rows of the outbox that are still claimed, locked in the order of their sequence: a consumer
/// may be taking the same messages out.
pub(super) const MINE: Fragment = Fragment::pair(
    "mine",
    "
WITH mine AS (
    SELECT own.sequence
    FROM (SELECT * FROM :claim ORDER BY 1) AS claim
        CROSS JOIN LATERAL (
            SELECT sequence
            FROM outbox
            WHERE sequence = claim.sequence AND attempt = claim.attempt
            FOR UPDATE
        ) AS own
)",
    "",
);

pub(super) static EXTEND: Sql = Sql::with(
    &[MINE],
    "{mine}
UPDATE outbox
SET claimable_at = now() + {duration(:lease)}
WHERE sequence = ANY (ARRAY(SELECT sequence FROM mine))",
    "
WITH claim AS MATERIALIZED (
    SELECT sequence, attempt FROM :claim
)
UPDATE outbox
SET claimable_at = {now} + :lease
FROM claim
WHERE outbox.sequence = claim.sequence AND outbox.attempt = claim.attempt",
);
