use std::time::Duration;

use application::ports::{CallNotes, Noting, StoreError};
use autometrics::autometrics;
use domain::{GatewayName, MessageId};
use sea_orm::FromQueryResult;

use crate::database::{Database, DatabaseError, Parameters, Sql, millis};

/// The notes of gateways on the calls for messages.
#[derive(Debug, Clone)]
pub struct SqlCallNotes {
    database: Database,
}

/// How long a note is kept after its message has expired. A call may end that late.
const SPARE: Duration = Duration::from_secs(3_600);

impl SqlCallNotes {
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    #[autometrics(struct_name = "SqlCallNotes")]
    async fn find(
        &self,
        gateway: &GatewayName,
        message: MessageId,
    ) -> Result<Option<String>, StoreError> {
        let row: Option<Row> = self.database.row(&FIND, self.of(gateway, message)).await?;
        Ok(row.map(|row| row.note))
    }

    #[autometrics(struct_name = "SqlCallNotes")]
    async fn keep(
        &self,
        gateway: &GatewayName,
        message: MessageId,
        note: &str,
        good_for: Duration,
    ) -> Result<String, StoreError> {
        let lasts = good_for.saturating_add(SPARE);
        let parameters = self.of(gateway, message).with("note", note).with("lasts", millis(lasts));
        let row: Option<Row> = self.database.row(&KEEP, parameters).await?;
        let row = row.ok_or_else(|| DatabaseError::missing("the note"))?;
        Ok(row.note)
    }

    fn of(&self, gateway: &GatewayName, message: MessageId) -> Parameters {
        self.database
            .parameters()
            .id("message", message.as_uuid())
            .with("gateway", gateway.as_str())
    }
}

impl CallNotes for SqlCallNotes {
    fn find<'a>(
        &'a self,
        gateway: &'a GatewayName,
        message: MessageId,
    ) -> Noting<'a, Option<String>> {
        Box::pin(self.find(gateway, message))
    }

    fn keep<'a>(
        &'a self,
        gateway: &'a GatewayName,
        message: MessageId,
        note: &'a str,
        good_for: Duration,
    ) -> Noting<'a, String> {
        Box::pin(self.keep(gateway, message, note, good_for))
    }
}

#[derive(FromQueryResult)]
struct Row {
    note: String,
}

static FIND: Sql =
    Sql::new("SELECT note FROM gateway_note WHERE message_id = :message AND gateway = :gateway");

// The update changes nothing. With it, the row that is there is returned.
static KEEP: Sql = Sql::new(
    "
INSERT INTO gateway_note (message_id, gateway, note, expires_at)
VALUES (:message, :gateway, :note, {now} + {duration(:lasts)})
ON CONFLICT (message_id, gateway) DO UPDATE SET note = gateway_note.note
RETURNING note",
);
