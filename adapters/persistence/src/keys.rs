use application::ports::{ApiKey, ApiKeys, NewApiKey, StoreError};
use autometrics::autometrics;
use domain::{ApiKeyHash, ApiKeyId};
use sea_orm::{DbErr, QueryResult, Value};
use serde_json::json;
use uuid::Uuid;

use crate::database::{Database, Sql, Told, bytes, parsed, time};

/// Keys that callers of the API show.
#[derive(Debug, Clone)]
pub struct SqlApiKeys {
    database: Database,
}

impl SqlApiKeys {
    pub fn new(database: Database) -> Self {
        Self { database }
    }
}

impl ApiKeys for SqlApiKeys {
    #[autometrics(struct_name = "SqlApiKeys")]
    async fn all(&self) -> Result<Vec<ApiKey>, StoreError> {
        let rows = self.database.rows(ALL, vec![]).await.map_err(Told)?;
        // A row that makes no sense was written by somebody else; it must not lock all others out.
        let readable = |row: &QueryResult| {
            read(row).inspect_err(|error| tracing::error!(%error, "unreadable API key")).ok()
        };
        Ok(rows.iter().filter_map(readable).collect())
    }

    #[autometrics(struct_name = "SqlApiKeys")]
    async fn create(&self, key: NewApiKey) -> Result<(), StoreError> {
        let values = vec![
            self.database.id(key.id.as_uuid()),
            key.name.into(),
            key.hash.as_bytes().to_vec().into(),
            key.scopes.to_string().into(),
        ];
        self.database.execute(CREATE, values).await.map_err(Told)?;
        Ok(())
    }

    #[autometrics(struct_name = "SqlApiKeys")]
    async fn revoke(&self, id: ApiKeyId) -> Result<bool, StoreError> {
        let values = vec![self.database.id(id.as_uuid())];
        Ok(self.database.execute(REVOKE, values).await.map_err(Told)? > 0)
    }

    #[autometrics(struct_name = "SqlApiKeys")]
    async fn used(&self, ids: &[ApiKeyId]) -> Result<(), StoreError> {
        let ids = ids.iter().map(|id| id.as_uuid());
        let values = if self.database.is_postgres() {
            vec![Value::from(ids.collect::<Vec<Uuid>>())]
        } else {
            vec![json!(ids.map(|id| id.to_string()).collect::<Vec<_>>()).to_string().into()]
        };
        self.database.execute(USED, values).await.map_err(Told)?;
        Ok(())
    }
}

const ALL: Sql = Sql {
    postgres: "
SELECT id::text AS id, name, hash, scopes,
    (extract(epoch FROM created_at) * 1000)::bigint AS created_at,
    (extract(epoch FROM last_used_at) * 1000)::bigint AS last_used_at,
    (extract(epoch FROM revoked_at) * 1000)::bigint AS revoked_at
FROM api_key
ORDER BY api_key.created_at, api_key.id",
    sqlite: "
SELECT id, name, hash, scopes, created_at, last_used_at, revoked_at
FROM api_key
ORDER BY created_at, id",
};

const CREATE: Sql = Sql {
    postgres: "INSERT INTO api_key (id, name, hash, scopes) VALUES ($1, $2, $3, $4)",
    sqlite: "
INSERT INTO api_key (id, name, hash, scopes, created_at)
VALUES ($1, $2, $3, $4, CAST(round(unixepoch('subsec') * 1000) AS INTEGER))",
};

const REVOKE: Sql = Sql {
    postgres: "UPDATE api_key SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1",
    sqlite: "
UPDATE api_key
SET revoked_at = coalesce(revoked_at, CAST(round(unixepoch('subsec') * 1000) AS INTEGER))
WHERE id = $1",
};

// Processes that note the use of the same keys lock them in one order.
const USED: Sql = Sql {
    postgres: "
WITH used AS (
    SELECT id FROM api_key WHERE id = ANY ($1::uuid[]) ORDER BY id FOR UPDATE
)
UPDATE api_key SET last_used_at = now() FROM used WHERE api_key.id = used.id",
    sqlite: "
UPDATE api_key
SET last_used_at = CAST(round(unixepoch('subsec') * 1000) AS INTEGER)
WHERE id IN (SELECT value FROM json_each($1))",
};

fn read(row: &QueryResult) -> Result<ApiKey, DbErr> {
    let text = |column| row.try_get::<String>("", column);
    let at = |column| row.try_get::<Option<i64>>("", column);
    Ok(ApiKey {
        id: parsed(&text("id")?, "the id of an API key")?,
        name: text("name")?,
        hash: ApiKeyHash::from_bytes(bytes(row, "hash")?),
        scopes: parsed(&text("scopes")?, "scopes")?,
        created_at: time(row.try_get("", "created_at")?),
        last_used_at: at("last_used_at")?.map(time),
        revoked_at: at("revoked_at")?.map(time),
    })
}
