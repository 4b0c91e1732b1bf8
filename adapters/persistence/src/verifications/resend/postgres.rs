use application::ports::Resend;
use domain::ATTEMPTS;
use sea_orm::{DatabaseConnection, FromQueryResult};

use super::outcome::{Outcome, new_secret};
use crate::{
    database::{Database, DatabaseError, Sql, begin, millis},
    idempotency::done_under,
    limits::counter_rows,
    phones::{COUNT_ON_PHONE, window_params},
    verification_row::{VERIFICATION_COLUMNS, VerificationRow},
};

#[derive(FromQueryResult)]
struct Row {
    found: bool,
    allowed: bool,
    holds: bool,
    #[sea_orm(nested)]
    sent: Option<VerificationRow>,
}

pub(super) async fn resend(
    database: &Database,
    connection: &DatabaseConnection,
    again: &Resend,
) -> Result<Outcome, DatabaseError> {
    let [(quota_1, period_1), (quota_2, period_2), (quota_3, period_3)] =
        window_params(&again.phone_limits);
    let parameters = database
        .parameters()
        .id("id", again.id.as_uuid())
        .with("sends", i16::from(again.sends))
        .with("attempts", i16::from(ATTEMPTS))
        .with("wait", millis(again.wait))
        .id("message", again.message.id.as_uuid())
        .with("code", again.message.code.as_text().into_owned())
        .with("trace", again.trace.as_str())
        .with("quota_1", quota_1)
        .with("period_1", period_1)
        .with("quota_2", quota_2)
        .with("period_2", period_2)
        .with("quota_3", quota_3)
        .with("period_3", period_3);
    let parameters = counter_rows(new_secret(parameters, again), again.extra.iter());
    let parameters = done_under(parameters, again.claim.as_ref());

    let transaction = begin(connection).await?;
    let row: Option<Row> = transaction.row(&RESEND, parameters).await?;
    let row = row.ok_or_else(|| DatabaseError::missing("the outcome of a resend"))?;
    let outcome = if !row.found {
        Outcome::Changed
    } else if !row.allowed {
        Outcome::PhoneFull
    } else if !row.holds {
        Outcome::CounterFull
    } else if let Some(sent) = row.sent {
        Outcome::Sent(Box::new(sent.verification()?))
    } else {
        Outcome::Changed
    };
    outcome.end(transaction).await
}

// Each step is done only if the one before was; the caller rolls back all of them otherwise.
//
// If two requests hold one claim, the second finds the work of the first in `idempotency`, or in
// `sends` if that was not committed when it read.
static RESEND: Sql = Sql::with(
    &[COUNT_ON_PHONE, VERIFICATION_COLUMNS],
    "
WITH target AS (
    SELECT id, phone, origin = 'api' AS is_api, expires_at
    FROM verification
    WHERE id = :id AND status || '' = 'pending' AND expires_at > now() AND sends = :sends
      AND attempts < :attempts
      AND sent_at + {duration(:wait)} <= now()
      AND NOT EXISTS (
        SELECT 1
        FROM idempotency
        WHERE key_hash = :claim_key AND coalesce(first_holder, holder) = :claim_first
          AND done IS NOT NULL
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
        :quota_1::integer, 1, now() + {duration(:period_1)},
        :quota_2::integer, 1, now() + {duration(:period_2)},
        :quota_3::integer, 1, now() + {duration(:period_3)}
    FROM target{count_on_phone}
    RETURNING 1
), counted AS (
    INSERT INTO limit_counter AS known (policy, key, quota, used, ends_at)
    SELECT policy, key, max(quota), count(*), now() + {duration(max(period))}
    FROM allowed, :counter
    GROUP BY policy, key
    ORDER BY policy, key
    ON CONFLICT (policy, key) DO UPDATE SET
        quota = excluded.quota,
        used = CASE WHEN known.ends_at > now() THEN known.used ELSE 0 END + excluded.used,
        ends_at = CASE WHEN known.ends_at > now() THEN known.ends_at ELSE excluded.ends_at END
    RETURNING used <= quota AS holds
), stored AS (
    -- Before `verification`, which is harmless: no other transaction sees the new row.
    INSERT INTO outbox (id, phone, code, trace, expires_at)
    SELECT :message, phone, :code, :trace, expires_at
    FROM target, allowed
    WHERE (SELECT count(*) FROM counted) >= 0
    RETURNING sequence
), sent AS (
    UPDATE verification
    SET sends = sends + 1, sent_at = now(), sequence = stored.sequence,
        code_hash = coalesce(decode(nullif(:code_hash, ''), 'hex'), code_hash),
        seed = coalesce(decode(nullif(:seed, ''), 'hex'), seed),
        pepper_id = coalesce(nullif(:pepper, ''), pepper_id)
    FROM stored
    WHERE id = :id AND status || '' = 'pending' AND expires_at > now() AND sends = :sends
      AND attempts < :attempts
    RETURNING verification.*
), noted AS (
    UPDATE idempotency
    SET done = (SELECT id FROM sent)
    WHERE key_hash = (SELECT :claim_key::bytea FROM sent)
      AND coalesce(first_holder, holder) = :claim_first
)
SELECT EXISTS (SELECT 1 FROM target) AS found, EXISTS (SELECT 1 FROM allowed) AS allowed,
    (SELECT bool_and(holds) FROM counted) IS NOT FALSE AS holds, sent.*
FROM (SELECT) AS one LEFT JOIN (SELECT {verification_columns} FROM sent) AS sent ON true",
    "",
);
