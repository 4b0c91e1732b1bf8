use std::time::Duration;

use application::ports::{GivingBack, GoCounts, GoRow, GoTable, Ids, StoreError, Stored, Taking};
use domain::{Code, MessageId, PhoneNumber};
use sea_orm::FromQueryResult;

use crate::database::{
    Database, DatabaseError, Fragment, Parameters, Sql, millis, parsed, since_1970, time,
};

/// The table `message` of the Go service, on PostgreSQL.
#[derive(Debug, Clone)]
pub struct SqlGoTable {
    database: Database,
    /// The time zone of the times in the table, which have none.
    zone: String,
    ttl: Duration,
}

/// The reason why the table of the Go service cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NoGoTable {
    #[error("{0}")]
    Unusable(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The columns of the table, and the types that they may have.
const COLUMNS: [(&str, &[&str]); 5] = [
    ("created_at", &["timestamp without time zone"]),
    ("id", &["integer", "bigint"]),
    ("payload", &["jsonb"]),
    ("reserved_to", &["timestamp without time zone"]),
    ("status", &["character varying", "text"]),
];

impl SqlGoTable {
    /// Opens the table, if it is as the Go service made it and this user may change it.
    ///
    /// `zone` is the time zone of its times. Without it, they are in the zone that the database gives
    /// to a session of this user. A message may be sent for `ttl` after its row was created.
    pub async fn open(
        database: Database,
        zone: Option<String>,
        ttl: Duration,
    ) -> Result<Self, NoGoTable> {
        if !database.is_postgres() {
            return Err(unusable("the Go service has its table in PostgreSQL: set POSTGRES_HOST"));
        }
        check_columns(&database).await?;
        check_surroundings(&database).await?;
        let zone = match zone {
            Some(zone) => known_zone(&database, zone).await?,
            None => default_zone(&database).await?,
        };
        Ok(Self { database, zone, ttl })
    }

    /// Returns whether the database has a table `message`. It may not be that of the Go service.
    pub async fn exists(database: &Database) -> Result<bool, StoreError> {
        if !database.is_postgres() {
            return Ok(false);
        }
        Ok(!columns(database).await?.is_empty())
    }

    /// The time zone of the times in the table.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    fn of(&self, ids: Ids) -> Parameters {
        let parameters = self.database.parameters().with("zone", self.zone.clone());
        parameters.with("ttl", millis(self.ttl)).with("after", ids.after).with("last", ids.last)
    }
}

impl GoTable for SqlGoTable {
    async fn ids(&self) -> Result<Option<Ids>, StoreError> {
        #[derive(FromQueryResult)]
        struct Row {
            first: Option<i64>,
            last: Option<i64>,
        }

        let row: Option<Row> = self.database.row(&IDS, self.database.parameters()).await?;
        let ids = row.and_then(|row| row.first.zip(row.last));
        Ok(ids.map(|(first, last)| Ids { after: first - 1, last }))
    }

    async fn count(&self, ids: Ids) -> Result<GoCounts, StoreError> {
        let row: Option<CountsRow> = self.database.row(&COUNT, self.of(ids)).await?;
        Ok(row.map(GoCounts::from).unwrap_or_default())
    }

    async fn waiting(
        &self,
        ids: Ids,
        claimed: bool,
        limit: usize,
    ) -> Result<Vec<GoRow>, StoreError> {
        let parameters = self.of(ids).with("claimed", claimed).with("limit", limited(limit));
        let rows: Vec<WaitingRow> = self.database.rows(&WAITING, parameters).await?;
        Ok(rows.into_iter().map(GoRow::from).collect())
    }

    async fn take(&self, rows: &[Taking]) -> Result<u64, StoreError> {
        let ttl = self.database.parameters().with("ttl", millis(self.ttl));
        let parameters = ttl.rows("new", rows.iter(), |new| {
            new.column("go_id", |it| it.row.id)
                .column("reserved", |it| it.row.reserved_to)
                .column("accepted", |it| since_1970(it.row.accepted_at))
                .column("message", |it| it.message.id.as_uuid())
                .column("phone", |it| it.message.phone.as_str().to_owned())
                .column("code", |it| it.message.code.as_text().into_owned())
                .column("trace", |it| it.trace.as_str().to_owned())
        });
        Ok(self.database.execute(&TAKE, parameters).await?)
    }

    async fn mark_done(&self, rows: &[GoRow]) -> Result<u64, StoreError> {
        let parameters = self.database.parameters().rows("new", rows.iter(), |new| {
            new.column("go_id", |it| it.id).column("reserved", |it| it.reserved_to)
        });
        Ok(self.database.execute(&MARK_DONE, parameters).await?)
    }

    async fn unpublished(
        &self,
        after: i64,
        limit: usize,
    ) -> Result<Option<Vec<Stored>>, StoreError> {
        #[derive(FromQueryResult)]
        struct Row {
            sequence: Option<i64>,
            id: Option<String>,
        }

        let parameters =
            self.database.parameters().with("after", after).with("limit", limited(limit));
        let rows: Vec<Row> = self.database.rows(&UNPUBLISHED, parameters).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        let stored = |(sequence, id): (i64, String)| {
            Ok::<_, DatabaseError>(Stored { sequence, id: parsed(&id, "an id")? })
        };
        let rows = rows.into_iter().filter_map(|row| row.sequence.zip(row.id));
        Ok(Some(rows.map(stored).collect::<Result<_, _>>()?))
    }

    async fn done(&self, ids: Ids) -> Result<Vec<(i64, MessageId)>, StoreError> {
        #[derive(FromQueryResult)]
        struct Row {
            id: i64,
            created: i64,
        }

        let rows: Vec<Row> = self.database.rows(&DONE, self.of(ids)).await?;
        let row = |row: Row| (row.id, MessageId::of_go_row(row.id, row.created));
        Ok(rows.into_iter().map(row).collect())
    }

    async fn give_back(&self, rows: &[GivingBack]) -> Result<Option<u64>, StoreError> {
        #[derive(FromQueryResult)]
        struct Row {
            given: i64,
        }

        let parameters = self.database.parameters().rows("back", rows.iter(), |back| {
            back.column("go_id", |it| it.row).column("sequence", |it| it.sequence)
        });
        let row: Option<Row> = self.database.row(&GIVE_BACK, parameters).await?;
        Ok(row.map(|row| row.given.unsigned_abs()))
    }
}

fn limited(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn unusable(why: impl Into<String>) -> NoGoTable {
    NoGoTable::Unusable(why.into())
}

async fn columns(database: &Database) -> Result<Vec<(String, String)>, StoreError> {
    #[derive(FromQueryResult)]
    struct Row {
        name: String,
        of: String,
    }

    let rows: Vec<Row> = database.rows(&COLUMNS_OF_TABLE, database.parameters()).await?;
    Ok(rows.into_iter().map(|row| (row.name, row.of)).collect())
}

/// A row is deleted and inserted again, which would lose the value of any other column.
async fn check_columns(database: &Database) -> Result<(), NoGoTable> {
    let found = columns(database).await?;
    if found.is_empty() {
        return Err(unusable(
            "there is no table message: POSTGRES_DB and POSTGRES_USER must be those of the Go service",
        ));
    }
    for (name, of) in &found {
        let known = COLUMNS.iter().find(|(known, _)| known == name);
        if !known.is_some_and(|(_, types)| types.contains(&of.as_str())) {
            return Err(unusable(format!(
                "the table message is not that of the Go service: its column {name} is {of}"
            )));
        }
    }
    match COLUMNS.iter().find(|(name, _)| !found.iter().any(|(found, _)| found == name)) {
        None => Ok(()),
        Some((name, _)) => Err(unusable(format!(
            "the table message is not that of the Go service: it has no column {name}"
        ))),
    }
}

async fn check_surroundings(database: &Database) -> Result<(), NoGoTable> {
    #[derive(FromQueryResult)]
    struct Row {
        lacking: Option<String>,
        referenced_by: Option<String>,
        trigger: Option<String>,
    }

    let row: Option<Row> =
        database.row(&SURROUNDINGS, database.parameters()).await.map_err(StoreError::from)?;
    let Some(Row { lacking, referenced_by, trigger }) = row else { return Ok(()) };
    if let Some(lacking) = lacking {
        return Err(unusable(format!(
            "this user lacks privileges on the table of the Go service: its owner runs GRANT {lacking} \
             ON message TO this user"
        )));
    }
    if let Some(table) = referenced_by {
        return Err(unusable(format!(
            "the table {table} references the table message, whose rows would be deleted and inserted \
             again: drop the foreign key"
        )));
    }
    if let Some(trigger) = trigger {
        return Err(unusable(format!(
            "the table message has the trigger {trigger}, which the Go service does not make: drop it, \
             because rows are deleted and inserted again"
        )));
    }
    Ok(())
}

async fn known_zone(database: &Database, zone: String) -> Result<String, NoGoTable> {
    let parameters = database.parameters().with("zone", zone.clone());
    if database.finds(&IS_ZONE, parameters).await.map_err(StoreError::from)? {
        Ok(zone)
    } else {
        Err(unusable(format!("PostgreSQL knows no time zone {zone}")))
    }
}

/// Our own sessions have the zone that our driver sets.
async fn default_zone(database: &Database) -> Result<String, NoGoTable> {
    #[derive(FromQueryResult)]
    struct Row {
        zone: String,
    }

    let row: Option<Row> =
        database.row(&DEFAULT_ZONE, database.parameters()).await.map_err(StoreError::from)?;
    Ok(row.map_or_else(|| "UTC".to_owned(), |row| row.zone))
}

#[derive(FromQueryResult)]
struct CountsRow {
    done: i64,
    waiting: i64,
    claimed: i64,
    expired: i64,
    ahead: i64,
    newest: Option<i64>,
}

impl From<CountsRow> for GoCounts {
    fn from(row: CountsRow) -> Self {
        Self {
            done: row.done.unsigned_abs(),
            waiting: row.waiting.unsigned_abs(),
            claimed: row.claimed.unsigned_abs(),
            expired: row.expired.unsigned_abs(),
            ahead: row.ahead.unsigned_abs(),
            newest: row.newest.map(time),
        }
    }
}

#[derive(FromQueryResult)]
struct WaitingRow {
    id: i64,
    reserved: i64,
    created: Option<i64>,
    accepted_at: Option<i64>,
    phone: Option<String>,
    code: Option<String>,
}

impl WaitingRow {
    fn content(&self) -> Result<(PhoneNumber, Code), &'static str> {
        let phone = self.phone.as_ref().ok_or("the payload has no phone")?;
        let code = self.code.as_ref().ok_or("the payload has no code")?;
        if self.created.is_none() {
            return Err("the row has no created_at");
        }
        let phone = phone.parse().map_err(|_| "the phone is invalid")?;
        let code = code.parse().map_err(|_| "the code is invalid")?;
        Ok((phone, code))
    }
}

impl From<WaitingRow> for GoRow {
    fn from(row: WaitingRow) -> Self {
        Self {
            id: row.id,
            reserved_to: row.reserved,
            created_at: row.created.unwrap_or(0),
            accepted_at: time(row.accepted_at.unwrap_or(0)),
            content: row.content(),
        }
    }
}

static COLUMNS_OF_TABLE: Sql = Sql::new(
    "
SELECT attname::text AS name, format_type(atttypid, NULL) AS of
FROM pg_attribute
WHERE attrelid = to_regclass('message') AND attnum > 0 AND NOT attisdropped
ORDER BY attname",
);

static SURROUNDINGS: Sql = Sql::new(
    "
SELECT
    (SELECT string_agg(privilege, ', ')
     FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
     WHERE NOT has_table_privilege(to_regclass('message'), privilege)) AS lacking,
    (SELECT min(conrelid::regclass::text) FROM pg_constraint
     WHERE confrelid = to_regclass('message')) AS referenced_by,
    (SELECT min(tgname::text) FROM pg_trigger
     WHERE tgrelid = to_regclass('message') AND NOT tgisinternal) AS trigger",
);

static IS_ZONE: Sql = Sql::new("SELECT 1 FROM pg_timezone_names WHERE name = :zone");

// The zone that PostgreSQL itself has is hidden by that of our session. `log_timezone` is the same
// unless somebody changed one of them: initdb sets both.
static DEFAULT_ZONE: Sql = Sql::new(
    "
SELECT coalesce((
    SELECT split_part(setting, '=', 2)
    FROM pg_db_role_setting, unnest(setconfig) AS setting
    WHERE setting ILIKE 'timezone=%'
      AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
      AND setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = current_user))
    ORDER BY setrole = 0, setdatabase = 0
    LIMIT 1
), current_setting('log_timezone')) AS zone",
);

static IDS: Sql = Sql::new("SELECT min(id)::bigint AS first, max(id)::bigint AS last FROM message");

/// A time without a zone, in microseconds since 1970. Rows without `reserved_to` have 0.
const MICROS: Fragment =
    Fragment::new("micros", "(extract(epoch FROM {argument}) * 1000000)::bigint");

/// Whether the Go processor has claimed the row. Both columns have the time of the insertion as their
/// default, and a claim writes a later time to one of them.
const CLAIMED: Fragment = Fragment::new("claimed", "((reserved_to <> created_at) IS TRUE)");

const EXPIRED: Fragment = Fragment::new(
    "expired",
    "((created_at AT TIME ZONE :zone + {duration(:ttl)} <= now()) IS TRUE)",
);

static COUNT: Sql = Sql::with(
    &[CLAIMED, EXPIRED],
    "
SELECT
    count(*) FILTER (WHERE status = 'done') AS done,
    count(*) FILTER (WHERE status = 'new' AND NOT {expired} AND NOT {claimed}) AS waiting,
    count(*) FILTER (WHERE status = 'new' AND NOT {expired} AND {claimed}) AS claimed,
    count(*) FILTER (WHERE status = 'new' AND {expired}) AS expired,
    count(*) FILTER (WHERE created_at AT TIME ZONE :zone > now() + interval '1 minute') AS ahead,
    {millis(max(created_at AT TIME ZONE :zone))} AS newest
FROM message
WHERE id > :after AND id <= :last",
    "",
);

static WAITING: Sql = Sql::with(
    &[MICROS, CLAIMED, EXPIRED],
    "
SELECT id::bigint AS id, coalesce({micros(reserved_to)}, 0) AS reserved,
    {micros(created_at)} AS created, {millis(created_at AT TIME ZONE :zone)} AS accepted_at,
    CASE jsonb_typeof(payload -> 'phone') WHEN 'string' THEN payload ->> 'phone' END AS phone,
    CASE jsonb_typeof(payload -> 'code') WHEN 'string' THEN payload ->> 'code' END AS code
FROM message
WHERE id > :after AND id <= :last AND status = 'new' AND {claimed} = :claimed AND NOT {expired}
-- the column, which has the index, and not the output of that name
ORDER BY message.id
LIMIT :limit",
    "",
);

/// The rows of `new` that did not change since they were read, locked.
const MINE: Fragment = Fragment::new(
    "mine",
    "
mine AS MATERIALIZED (
    SELECT own.*
    FROM wanted CROSS JOIN LATERAL (
        SELECT id, payload, reserved_to, created_at
        FROM message
        WHERE id = wanted.go_id
          AND status = 'new'
          AND coalesce({micros(reserved_to)}, 0) = wanted.reserved
        FOR UPDATE SKIP LOCKED
    ) AS own
)",
);

// A claim of the Go processor looks for rows and then updates them by their id. If it waits for a row
// that another transaction changes, it updates and returns the row as it is then, even if that is
// `done`, and publishes its message. It leaves a row that was deleted. So the row is deleted, and
// inserted again as `done`, which a statement that began before does not see.
static TAKE: Sql = Sql::with(
    &[MICROS, MINE],
    "
WITH wanted AS MATERIALIZED (
    SELECT * FROM :new#place
), {mine}, removed AS (
    DELETE FROM message WHERE id = ANY (ARRAY(SELECT id FROM mine)) RETURNING id
), kept AS (
    INSERT INTO message (id, payload, status, reserved_to, created_at)
    SELECT id, payload, 'done', reserved_to, created_at
    FROM mine
    WHERE (id IN (SELECT id FROM removed)) IS TRUE
    RETURNING id::bigint AS id
)
INSERT INTO outbox (id, phone, code, trace, accepted_at, expires_at)
SELECT message, phone, code, trace, least(to_timestamp(accepted / 1000.0), now()),
    least(to_timestamp(accepted / 1000.0), now()) + {duration(:ttl)}
FROM wanted
WHERE (go_id IN (SELECT id FROM kept)) IS TRUE
ORDER BY place",
    "",
);

static MARK_DONE: Sql = Sql::with(
    &[MICROS, MINE],
    "
WITH wanted AS MATERIALIZED (
    SELECT * FROM :new
), {mine}
UPDATE message SET status = 'done' WHERE id = ANY (ARRAY(SELECT id FROM mine))",
    "",
);

/// A message that may have been published: by a relay, or by a processor of an earlier version, which
/// claimed it.
const MAY_BE_PUBLISHED: Fragment =
    Fragment::new("may_be_published", "(sequence <= free.read_up_to OR attempt > 0)");

// Returns one row without a message if there is none, and no row while a processor has the outbox.
// A processor that was killed still has it, and did not store how far it got.
static UNPUBLISHED: Sql = Sql::with(
    &[MAY_BE_PUBLISHED],
    "
SELECT stored.sequence, stored.id
FROM (SELECT read_up_to FROM relay WHERE owner IS NULL) AS free
    LEFT JOIN LATERAL (
        SELECT sequence, id::text AS id
        FROM outbox
        WHERE sequence > :after AND NOT {may_be_published}
        ORDER BY sequence
        LIMIT :limit
    ) AS stored ON true
ORDER BY stored.sequence",
    "",
);

static DONE: Sql = Sql::with(
    &[MICROS, EXPIRED],
    "
SELECT id::bigint AS id, {micros(created_at)} AS created
FROM message
WHERE id > :after AND id <= :last AND status = 'done' AND created_at IS NOT NULL AND NOT {expired}",
    "",
);

// No relay begins before the commit, because the row of `relay` is locked.
static GIVE_BACK: Sql = Sql::with(
    &[MAY_BE_PUBLISHED],
    "
WITH free AS MATERIALIZED (
    SELECT read_up_to FROM relay WHERE owner IS NULL FOR UPDATE
), wanted AS MATERIALIZED (
    SELECT * FROM :back
), mine AS MATERIALIZED (
    SELECT message.id, stored.sequence
    FROM free CROSS JOIN (SELECT * FROM wanted ORDER BY sequence) AS wanted
        CROSS JOIN LATERAL (
            SELECT sequence
            FROM outbox
            WHERE sequence = wanted.sequence AND NOT {may_be_published}
            FOR UPDATE SKIP LOCKED
        ) AS stored
        CROSS JOIN LATERAL (
            SELECT id
            FROM message
            WHERE id = wanted.go_id AND status = 'done'
            FOR UPDATE SKIP LOCKED
        ) AS message
), removed AS (
    DELETE FROM outbox WHERE sequence = ANY (ARRAY(SELECT sequence FROM mine)) RETURNING sequence
), given AS (
    UPDATE message
    SET status = 'new', reserved_to = created_at
    WHERE id = ANY (ARRAY(
        SELECT id FROM mine WHERE (sequence IN (SELECT sequence FROM removed)) IS TRUE
    ))
    RETURNING 1
)
SELECT (SELECT count(*) FROM given) AS given FROM free",
    "",
);
