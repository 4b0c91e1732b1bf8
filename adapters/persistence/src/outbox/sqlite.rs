//! Stores a batch in SQLite: a transaction, as each statement writes to one table.

use std::collections::HashMap;

use application::ports::NewSend;
use domain::VerificationId;
use sea_orm::DatabaseConnection;

use super::{
    inserted::{Inserted, verification_columns},
    stored::{NewMessage, store},
};
use crate::{
    database::{Database, DatabaseError, Sql, Transaction, begin, clock, millis},
    limits,
    phones::{self, Account, Wanted},
};

pub(super) async fn insert(
    database: &Database,
    connection: &DatabaseConnection,
    sends: &[&NewSend],
    wanted: &[Wanted],
) -> Result<Inserted, DatabaseError> {
    let transaction = begin(connection).await?;
    let now = clock(&transaction).await?;
    let accounts = phones::count_sqlite(database, &transaction, wanted, now).await?;
    let accounts: HashMap<String, i64> =
        accounts.into_iter().map(|account| (account, now)).collect();
    let is_through =
        |send: &&NewSend| accounts.contains_key(Account::of(&send.phone, send.apart).as_str());
    let through: Vec<&NewSend> = sends.iter().copied().filter(is_through).collect();

    let counters = through.iter().flat_map(|send| &send.extra);
    if counters.clone().next().is_some()
        && !limits::count_sqlite(database, &transaction, counters, now).await?
    {
        transaction.rollback().await?;
        return Ok(Inserted { accounts, holds: false });
    }
    let messages = through.iter().map(|send| NewMessage {
        id: send.message.id.as_uuid(),
        phone: send.message.phone.as_str(),
        code: send.message.code.as_text().into_owned(),
        trace: send.trace.as_str(),
        ttl: millis(send.ttl),
    });
    let messages: Vec<NewMessage<'_>> = messages.collect();
    let sequences = store(database, &transaction, &messages, now).await?;
    create(database, &transaction, &through, &sequences, now).await?;
    if database.events().are_recorded() {
        let parameters = database
            .parameters()
            .with("now", now)
            .list("ids", through.iter().map(|send| VerificationId::of(send.message.id).as_uuid()));
        transaction.execute(&RECORD_CREATED, parameters).await?;
    }
    transaction.commit().await?;
    Ok(Inserted { accounts, holds: true })
}

async fn create(
    database: &Database,
    transaction: &Transaction,
    sends: &[&NewSend],
    sequences: &HashMap<String, i64>,
    now: i64,
) -> Result<(), DatabaseError> {
    let placed = sends.iter().map(|send| {
        let sequence = sequences.get(&send.message.id.to_string());
        Ok((*send, *sequence.ok_or_else(|| DatabaseError::missing("a place in the outbox"))?))
    });
    let placed = placed.collect::<Result<Vec<(&NewSend, i64)>, DatabaseError>>()?;
    let parameters = database.parameters().with("now", now).rows("new", placed.iter(), |new| {
        verification_columns(new, |(send, _)| *send).column("sequence", |(_, sequence)| *sequence)
    });
    transaction.execute(&CREATE, parameters).await?;
    Ok(())
}

static CREATE: Sql = Sql::new(
    "
INSERT INTO verification
    (id, phone, origin, region, code_hash, seed, pepper_id, code_length, template, metadata,
     api_key, sequence, created_at, sent_at, expires_at)
SELECT verification, phone, origin, nullif(region, ''), unhex(code_hash), unhex(seed), pepper_id, code_length,
    nullif(template, ''), nullif(metadata, ''),
    nullif(api_key, '00000000-0000-0000-0000-000000000000'), sequence, {now}, {now}, {now} + ttl
FROM :new",
);

static RECORD_CREATED: Sql = Sql::new(
    "
INSERT INTO event (kind, verification, at, due_at)
SELECT 'created', value, {now}, {now}
FROM json_each(:ids)",
);
