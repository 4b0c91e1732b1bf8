use sea_orm_migration::prelude::*;

/// The tables of verifications: windows of phones, other counters, the guard, answers to repeated
/// requests, API keys, secrets, and events.
#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        crate::run(manager, POSTGRES_UP, SQLITE_UP).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        crate::run(manager, DOWN, DOWN).await
    }
}

// `fillfactor` leaves room to update rows in place (HOT), which an index on a changing column would
// prevent. Attempts and sends of a verification change in place. Its end does not, because the index
// of pending verifications must lose it.
//
// No CHECK on `limit_counter`: PostgreSQL logs the row that violates it, and the key may be
// personal.
const POSTGRES_UP: &str = "
CREATE TABLE phone (
    phone text PRIMARY KEY,
    newest uuid,
    newest_until timestamptz NOT NULL DEFAULT '-infinity',
    exclusive boolean NOT NULL,
    quota_1 integer NOT NULL,
    sends_1 integer NOT NULL,
    ends_1 timestamptz NOT NULL,
    quota_2 integer NOT NULL,
    sends_2 integer NOT NULL,
    ends_2 timestamptz NOT NULL,
    quota_3 integer NOT NULL,
    sends_3 integer NOT NULL,
    ends_3 timestamptz NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON TABLE phone IS 'what was sent to a phone, and which verification is its newest';
COMMENT ON COLUMN phone.quota_1 IS
    'of the latest send, as exclusive is: so that the statement can see it; 0: no such window';

CREATE TABLE verification (
    id uuid PRIMARY KEY,
    phone text NOT NULL,
    origin text NOT NULL CHECK (origin IN ('v1', 'api', 'test')),
    region text,
    status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'approved', 'expired', 'canceled')),
    code_hash bytea,
    seed bytea,
    pepper_id text NOT NULL,
    code_length smallint NOT NULL,
    template text,
    metadata text,
    api_key uuid,
    attempts smallint NOT NULL DEFAULT 0,
    sends smallint NOT NULL DEFAULT 1,
    sequence bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    sent_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    ended_at timestamptz,
    CHECK ((code_hash IS NULL) = (status <> 'pending')),
    CHECK ((seed IS NULL) = (status <> 'pending'))
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX verification_age ON verification (created_at);
CREATE INDEX verification_pending ON verification (expires_at) WHERE status = 'pending';
COMMENT ON COLUMN verification.sequence IS
    'the place in the outbox of its latest message; 0: nothing was sent';
COMMENT ON COLUMN verification.metadata IS 'a JSON object of texts, as the caller wrote it';

CREATE TABLE limit_counter (
    policy text NOT NULL,
    key text NOT NULL,
    quota integer NOT NULL,
    used integer NOT NULL,
    ends_at timestamptz NOT NULL,
    PRIMARY KEY (policy, key)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON TABLE limit_counter IS
    'windows of sends but those of phones, and of guesses at phones';

CREATE TABLE guard_count (
    scope text NOT NULL CHECK (scope IN ('prefix', 'region')),
    key text NOT NULL,
    began_at timestamptz NOT NULL,
    sends bigint NOT NULL,
    approvals bigint NOT NULL,
    sends_before bigint NOT NULL DEFAULT 0,
    approvals_before bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (scope, key)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

CREATE TABLE guard_decision (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    decided_at timestamptz NOT NULL DEFAULT now(),
    rule text NOT NULL,
    mode text NOT NULL CHECK (mode IN ('shadow', 'enforce')),
    scope text NOT NULL,
    key text NOT NULL,
    sends bigint NOT NULL,
    approvals bigint NOT NULL,
    verification uuid
);
COMMENT ON COLUMN guard_decision.verification IS 'the one that went through all the same';

CREATE TABLE idempotency (
    key_hash bytea PRIMARY KEY,
    body_hash bytea NOT NULL,
    holder bytea NOT NULL,
    running_until timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    status smallint,
    headers text,
    body text
);
CREATE INDEX idempotency_age ON idempotency (expires_at);
COMMENT ON TABLE idempotency IS 'answers to requests that may be repeated; no status: it runs';

CREATE TABLE api_key (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    hash bytea NOT NULL,
    scopes text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    revoked_at timestamptz
);

CREATE TABLE secret (
    name text PRIMARY KEY,
    value text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE secret IS 'secrets that were drawn because nobody set them';

CREATE TABLE event (
    sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    kind text NOT NULL,
    verification uuid,
    phone text,
    delivery text,
    at timestamptz NOT NULL DEFAULT now(),
    due_at timestamptz NOT NULL DEFAULT now(),
    attempt integer NOT NULL DEFAULT 0
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX event_due ON event (due_at, sequence);
COMMENT ON TABLE event IS 'what others are still to be told';
COMMENT ON COLUMN event.phone IS 'masked, and only where there is no verification';
";

// `AUTOINCREMENT`: the number of a deleted row is never reused.
const SQLITE_UP: &str = "
CREATE TABLE phone (
    phone TEXT PRIMARY KEY NOT NULL,
    newest TEXT,
    newest_until INTEGER NOT NULL DEFAULT 0,
    exclusive INTEGER NOT NULL,
    quota_1 INTEGER NOT NULL,
    sends_1 INTEGER NOT NULL,
    ends_1 INTEGER NOT NULL,
    quota_2 INTEGER NOT NULL,
    sends_2 INTEGER NOT NULL,
    ends_2 INTEGER NOT NULL,
    quota_3 INTEGER NOT NULL,
    sends_3 INTEGER NOT NULL,
    ends_3 INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE verification (
    id TEXT PRIMARY KEY NOT NULL,
    phone TEXT NOT NULL,
    origin TEXT NOT NULL CHECK (origin IN ('v1', 'api', 'test')),
    region TEXT,
    status TEXT NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'approved', 'expired', 'canceled')),
    code_hash BLOB,
    seed BLOB,
    pepper_id TEXT NOT NULL,
    code_length INTEGER NOT NULL,
    template TEXT,
    metadata TEXT,
    api_key TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    sends INTEGER NOT NULL DEFAULT 1,
    sequence INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    sent_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    ended_at INTEGER,
    CHECK ((code_hash IS NULL) = (status <> 'pending')),
    CHECK ((seed IS NULL) = (status <> 'pending'))
);
CREATE INDEX verification_age ON verification (created_at);
CREATE INDEX verification_pending ON verification (expires_at) WHERE status = 'pending';

CREATE TABLE limit_counter (
    policy TEXT NOT NULL,
    key TEXT NOT NULL,
    quota INTEGER NOT NULL,
    used INTEGER NOT NULL,
    ends_at INTEGER NOT NULL,
    PRIMARY KEY (policy, key)
) WITHOUT ROWID;

CREATE TABLE guard_count (
    scope TEXT NOT NULL CHECK (scope IN ('prefix', 'region')),
    key TEXT NOT NULL,
    began_at INTEGER NOT NULL,
    sends INTEGER NOT NULL,
    approvals INTEGER NOT NULL,
    sends_before INTEGER NOT NULL DEFAULT 0,
    approvals_before INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (scope, key)
) WITHOUT ROWID;

CREATE TABLE guard_decision (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    decided_at INTEGER NOT NULL,
    rule TEXT NOT NULL,
    mode TEXT NOT NULL CHECK (mode IN ('shadow', 'enforce')),
    scope TEXT NOT NULL,
    key TEXT NOT NULL,
    sends INTEGER NOT NULL,
    approvals INTEGER NOT NULL,
    verification TEXT
);

CREATE TABLE idempotency (
    key_hash BLOB PRIMARY KEY NOT NULL,
    body_hash BLOB NOT NULL,
    holder BLOB NOT NULL,
    running_until INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    status INTEGER,
    headers TEXT,
    body TEXT
) WITHOUT ROWID;
CREATE INDEX idempotency_age ON idempotency (expires_at);

CREATE TABLE api_key (
    id TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL,
    hash BLOB NOT NULL,
    scopes TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    last_used_at INTEGER,
    revoked_at INTEGER
) WITHOUT ROWID;

CREATE TABLE secret (
    name TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL,
    created_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE event (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL DEFAULT (lower(hex(randomblob(16)))),
    kind TEXT NOT NULL,
    verification TEXT,
    phone TEXT,
    delivery TEXT,
    at INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX event_due ON event (due_at, sequence);
";

const DOWN: &str = "
DROP TABLE event;
DROP TABLE secret;
DROP TABLE api_key;
DROP TABLE idempotency;
DROP TABLE guard_decision;
DROP TABLE guard_count;
DROP TABLE limit_counter;
DROP TABLE verification;
DROP TABLE phone;
";
