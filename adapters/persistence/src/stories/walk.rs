//! The verifications and messages of a phone, for which no index exists.
//!
//! The tables are walked through by their primary keys, page by page and the newest first: ids that
//! this service draws begin with the time. Those of other producers come before them. A page takes
//! some milliseconds and locks nothing.

use domain::{MessageId, PhoneNumber};
use sea_orm::FromQueryResult;
use uuid::Uuid;

use super::Looked;
use crate::database::{Database, DatabaseError, Sql, parsed};

/// The rows of one page.
const PAGE: u64 = 10_000;

/// A table, and the statement that reads its page before a key.
pub(crate) struct Walk {
    sql: &'static Sql,
}

/// By verification.
pub(crate) static VERIFICATIONS: Walk = Walk { sql: &PAGE_OF_VERIFICATIONS };

/// By message and group.
pub(crate) static LEDGER: Walk = Walk { sql: &PAGE_OF_LEDGER };

// The last row of the page is returned even if it is of another phone: the next page begins there.
static PAGE_OF_VERIFICATIONS: Sql = Sql::new(
    "
WITH page AS (
    SELECT id, phone
    FROM verification
    WHERE id < :before AND :before_group = ''
    ORDER BY id DESC
    LIMIT 10000
), last AS (
    SELECT id FROM page ORDER BY id LIMIT 1
)
SELECT {text(id)} AS id, '' AS group_id, phone = :phone AS is_of_phone,
    (SELECT count(*) FROM page) AS rows
FROM page
WHERE phone = :phone OR id = (SELECT id FROM last)
ORDER BY page.id DESC",
);

static PAGE_OF_LEDGER: Sql = Sql::new(
    "
WITH page AS (
    SELECT message_id AS id, group_id, phone
    FROM delivery
    WHERE (message_id, group_id) < (:before, :before_group)
    ORDER BY message_id DESC, group_id DESC
    LIMIT 10000
), last AS (
    SELECT id, group_id FROM page ORDER BY id, group_id LIMIT 1
)
SELECT {text(id)} AS id, group_id, phone = :phone AS is_of_phone,
    (SELECT count(*) FROM page) AS rows
FROM page
WHERE phone = :phone OR (id, group_id) = (SELECT id, group_id FROM last)
ORDER BY page.id DESC, group_id DESC",
);

#[derive(FromQueryResult)]
struct Row {
    id: String,
    group_id: String,
    is_of_phone: bool,
    rows: i64,
}

impl Walk {
    /// Returns the ids of the rows of a phone, the newest first, and adds what was looked at to
    /// `looked`. Looks at up to `most` rows.
    pub(crate) async fn of_phone(
        &self,
        database: &Database,
        phone: &PhoneNumber,
        most: u64,
        looked: &mut Looked,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Vec<MessageId>, DatabaseError> {
        let mut found: Vec<MessageId> = Vec::new();
        let (mut before, mut before_group) = (Uuid::max(), String::new());
        let mut rows = 0;
        while rows < most {
            let parameters = database
                .parameters()
                .with("phone", phone.as_str())
                .id("before", before)
                .with("before_group", before_group.as_str());
            let page: Vec<Row> = database.rows(self.sql, parameters).await?;
            for row in page.iter().filter(|row| row.is_of_phone) {
                found.push(parsed(&row.id, "an id")?);
            }
            let Some(last) = page.last() else { break };
            let id: MessageId = parsed(&last.id, "an id")?;
            (before, before_group) = (id.as_uuid(), last.group_id.clone());
            let in_page = last.rows.unsigned_abs();
            rows += in_page;
            progress(looked.rows + rows);
            if in_page < PAGE {
                found.dedup();
                looked.rows += rows;
                return Ok(found);
            }
        }
        found.dedup();
        looked.rows += rows;
        looked.everywhere &= rows < most;
        Ok(found)
    }
}

/// Returns the verifications of a phone, and the messages of it in the ledger.
pub(super) async fn of_phone(
    database: &Database,
    phone: &PhoneNumber,
    most: u64,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(Vec<MessageId>, Looked), DatabaseError> {
    let mut looked = Looked { rows: 0, everywhere: true };
    let mut found = newest(database, phone).await?;
    for walk in [&VERIFICATIONS, &LEDGER] {
        found.extend(walk.of_phone(database, phone, most, &mut looked, progress).await?);
    }
    Ok((found, looked))
}

/// Returns the verifications that the account of the phone names, which is found by its key.
async fn newest(database: &Database, phone: &PhoneNumber) -> Result<Vec<MessageId>, DatabaseError> {
    static NEWEST: Sql = Sql::new(
        "
SELECT {text(newest)} AS id FROM phone
WHERE phone IN (:phone, 'api:' || :phone) AND newest IS NOT NULL
UNION ALL
SELECT {text(api_newest)} FROM phone
WHERE phone IN (:phone, 'api:' || :phone) AND api_newest IS NOT NULL",
    );

    #[derive(FromQueryResult)]
    struct Named {
        id: String,
    }

    let parameters = database.parameters().with("phone", phone.as_str());
    let rows: Vec<Named> = database.rows(&NEWEST, parameters).await?;
    rows.iter().map(|row| parsed(&row.id, "an id")).collect()
}
