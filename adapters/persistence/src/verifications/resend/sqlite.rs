use application::ports::Resend;
use domain::ATTEMPTS;
use sea_orm::{DatabaseConnection, FromQueryResult};

use super::outcome::{Outcome, new_secret};
use crate::{
    database::{Database, DatabaseError, Sql, begin, clock, millis},
    idempotency::{done_under, note_done_sqlite},
    limits,
    outbox::stored::{NewMessage, store},
    phones::{self, Wanted, window_params},
    verification_row::{VERIFICATION_COLUMNS, VerificationRow},
};

#[derive(FromQueryResult)]
struct Target {
    phone: String,
    is_api: bool,
    ttl: i64,
}

pub(super) async fn resend(
    database: &Database,
    connection: &DatabaseConnection,
    again: &Resend,
) -> Result<Outcome, DatabaseError> {
    let transaction = begin(connection).await?;
    let now = clock(&transaction).await?;
    let id = || database.parameters().with("now", now).id("id", again.id.as_uuid());

    let find =
        id().with("sends", again.sends).with("attempts", ATTEMPTS).with("wait", millis(again.wait));
    let find = done_under(find, again.claim.as_ref());
    let Some(target) = transaction.row::<Target>(&RESENDABLE, find).await? else {
        return Outcome::Changed.end(transaction).await;
    };
    let wanted = Wanted {
        account: target.phone.clone(),
        newest: again.id,
        ttl: target.ttl,
        exclusive: false,
        of_api: target.is_api,
        sends: 1,
        windows: window_params(&again.phone_limits),
    };
    if phones::count_sqlite(database, &transaction, &[wanted], now).await?.is_empty() {
        return Outcome::PhoneFull.end(transaction).await;
    }
    if !limits::count_sqlite(database, &transaction, again.extra.iter(), now).await? {
        return Outcome::CounterFull.end(transaction).await;
    }
    let message = NewMessage {
        id: again.message.id.as_uuid(),
        phone: &target.phone,
        code: again.message.code.as_text().into_owned(),
        trace: again.trace.as_str(),
        ttl: target.ttl,
    };
    let stored = store(database, &transaction, &[message], now).await?;
    let sequence = stored.into_values().next();
    let sequence = sequence.ok_or_else(|| DatabaseError::missing("a place in the outbox"))?;
    let update = new_secret(id().with("sequence", sequence), again);
    let row: Option<VerificationRow> = transaction.row(&SEND_AGAIN, update).await?;
    let row = row.ok_or_else(|| DatabaseError::missing("the verification that was sent"))?;
    let sent = Box::new(row.verification()?);
    note_done_sqlite(database, &transaction, again.id, again.claim.as_ref()).await?;
    Outcome::Sent(sent).end(transaction).await
}

static RESENDABLE: Sql = Sql::new(
    "
SELECT phone, origin = 'api' AS is_api, expires_at - {now} AS ttl
FROM verification
WHERE id = :id AND status = 'pending' AND expires_at > {now} AND sends = :sends
  AND attempts < :attempts
  AND sent_at + :wait <= {now}
  AND NOT EXISTS (
    SELECT 1
    FROM idempotency
    WHERE key_hash = :claim_key AND coalesce(first_holder, holder) = :claim_first
      AND done IS NOT NULL
  )",
);

static SEND_AGAIN: Sql = Sql::with(
    &[VERIFICATION_COLUMNS],
    "",
    "
UPDATE verification
SET sends = sends + 1, sent_at = {now}, sequence = :sequence,
    code_hash = coalesce(unhex(nullif(:code_hash, '')), code_hash),
    seed = coalesce(unhex(nullif(:seed, '')), seed),
    pepper_id = coalesce(nullif(:pepper, ''), pepper_id)
WHERE id = :id
RETURNING {verification_columns}",
);
