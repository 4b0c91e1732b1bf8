use application::ports::{ApiKey, ApiKeys, NewApiKey, StoreError};
use autometrics::autometrics;
use domain::{ApiKeyHash, ApiKeyId};
use sea_orm::FromQueryResult;

use crate::database::{Database, DatabaseError, Sql, bytes, parsed, time};

/// The keys of callers of the API.
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
        Ok(self.database.readable_rows(&ALL, self.database.parameters(), Row::key).await?)
    }

    #[autometrics(struct_name = "SqlApiKeys")]
    async fn create(&self, key: NewApiKey) -> Result<(), StoreError> {
        let parameters = self
            .database
            .parameters()
            .id("id", key.id.as_uuid())
            .with("name", key.name)
            .with("hash", key.hash.as_bytes().to_vec())
            .with("scopes", key.scopes.to_string());
        self.database.execute(&CREATE, parameters).await?;
        Ok(())
    }

    #[autometrics(struct_name = "SqlApiKeys")]
    async fn revoke(&self, id: ApiKeyId) -> Result<bool, StoreError> {
        let parameters = self.database.parameters().id("id", id.as_uuid());
        Ok(self.database.execute(&REVOKE, parameters).await? > 0)
    }

    #[autometrics(struct_name = "SqlApiKeys")]
    async fn used(&self, ids: &[ApiKeyId]) -> Result<(), StoreError> {
        let parameters = self.database.parameters().list("ids", ids.iter().map(|id| id.as_uuid()));
        self.database.execute(&USED, parameters).await?;
        Ok(())
    }
}

static ALL: Sql = Sql::new(
    "
SELECT {text(id)} AS id, name, hash, scopes, {millis(created_at)} AS created_at,
    {millis(last_used_at)} AS last_used_at, {millis(revoked_at)} AS revoked_at
FROM api_key
ORDER BY api_key.created_at, api_key.id",
);

static CREATE: Sql = Sql::pair(
    "INSERT INTO api_key (id, name, hash, scopes) VALUES (:id, :name, :hash, :scopes)",
    "
INSERT INTO api_key (id, name, hash, scopes, created_at)
VALUES (:id, :name, :hash, :scopes, {now})",
);

static REVOKE: Sql =
    Sql::new("UPDATE api_key SET revoked_at = coalesce(revoked_at, {now}) WHERE id = :id");

static USED: Sql = Sql::pair(
    "
WITH used AS (
    -- in one order: two processes may note the use of the same keys
    SELECT id FROM api_key WHERE id = ANY (:ids::uuid[]) ORDER BY id FOR UPDATE
)
UPDATE api_key SET last_used_at = now() FROM used WHERE api_key.id = used.id",
    "UPDATE api_key SET last_used_at = {now} WHERE id IN (SELECT value FROM json_each(:ids))",
);

#[derive(FromQueryResult)]
struct Row {
    id: String,
    name: String,
    hash: Vec<u8>,
    scopes: String,
    created_at: i64,
    last_used_at: Option<i64>,
    revoked_at: Option<i64>,
}

impl Row {
    fn key(self) -> Result<ApiKey, DatabaseError> {
        Ok(ApiKey {
            id: parsed(&self.id, "the id of an API key")?,
            name: self.name,
            hash: ApiKeyHash::from_bytes(bytes(self.hash, "hash")?),
            scopes: parsed(&self.scopes, "scopes")?,
            created_at: time(self.created_at),
            last_used_at: self.last_used_at.map(time),
            revoked_at: self.revoked_at.map(time),
        })
    }
}
