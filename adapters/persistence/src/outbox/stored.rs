//! Stores messages in the outbox of SQLite, for a start and for a resend.

use std::collections::HashMap;

use sea_orm::FromQueryResult;
use uuid::Uuid;

use crate::database::{Database, DatabaseError, Sql, Transaction};

/// A message for the outbox.
#[derive(Debug)]
pub(crate) struct NewMessage<'a> {
    pub(crate) id: Uuid,
    pub(crate) phone: &'a str,
    pub(crate) code: String,
    pub(crate) trace: &'a str,
    /// How long it may be sent, in milliseconds.
    pub(crate) ttl: i64,
}

/// Stores messages, and returns their places by their ids.
pub(crate) async fn store(
    database: &Database,
    transaction: &Transaction,
    messages: &[NewMessage<'_>],
    now: i64,
) -> Result<HashMap<String, i64>, DatabaseError> {
    static STORE: Sql = Sql::new(
        "
INSERT INTO outbox (id, phone, code, trace, accepted_at, expires_at)
SELECT id, phone, code, trace, {now}, {now} + ttl
FROM :new#place
ORDER BY place
RETURNING id, sequence",
    );

    #[derive(FromQueryResult)]
    struct Row {
        id: String,
        sequence: i64,
    }

    let parameters = database.parameters().with("now", now).rows("new", messages.iter(), |new| {
        new.column("id", |it| it.id)
            .column("phone", |it| it.phone.to_owned())
            .column("code", |it| it.code.clone())
            .column("trace", |it| it.trace.to_owned())
            .column("ttl", |it| it.ttl)
    });
    let rows: Vec<Row> = transaction.rows(&STORE, parameters).await?;
    Ok(rows.into_iter().map(|row| (row.id, row.sequence)).collect())
}
