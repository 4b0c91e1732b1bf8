use sea_orm_migration::prelude::*;

/// Adds the row of the relay, and puts what is in transit back into the outbox, where published
/// messages stay from now on.
///
/// A processor of an earlier version may run beside the relay. What it settles stays in the outbox,
/// too, and it may claim that again after half a minute. It publishes messages that the relay
/// publishes as well, and consumers ignore the duplicates.
///
/// `in_transit` and the columns of claims stay for such processors, and for the way back: claims take
/// all rows of the outbox.
#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        crate::run(manager, POSTGRES_UP, SQLITE_UP).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        crate::run(manager, POSTGRES_DOWN, SQLITE_DOWN).await
    }
}

// The trigger comes first: it waits for the writers of `in_transit`, so that none of their rows is
// missed.
const POSTGRES_UP: &str = "
CREATE TABLE relay (
    id integer PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    owner text,
    epoch bigint NOT NULL DEFAULT 0,
    expires_at timestamptz NOT NULL DEFAULT '-infinity',
    published bigint NOT NULL DEFAULT 0,
    read_up_to bigint NOT NULL DEFAULT 0,
    oldest bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);
COMMENT ON TABLE relay IS 'the one relay of the outbox';
COMMENT ON COLUMN relay.published IS
    'every message of the outbox up to this sequence was published, or will never be visible';
COMMENT ON COLUMN relay.read_up_to IS
    'if there is no owner, no message above this sequence was published';
COMMENT ON COLUMN relay.oldest IS 'reads of the whole outbox begin here';
INSERT INTO relay DEFAULT VALUES;

CREATE FUNCTION stay_in_outbox() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO outbox
        (sequence, id, phone, code, trace, accepted_at, expires_at, claimable_at, attempt,
         publications)
    VALUES (new.sequence, new.id, new.phone, new.code, new.trace, new.accepted_at, new.expires_at,
        now() + interval '30 seconds', new.attempt, new.publications)
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER stay_in_outbox BEFORE INSERT ON in_transit
    FOR EACH ROW EXECUTE FUNCTION stay_in_outbox();

INSERT INTO outbox
    (sequence, id, phone, code, trace, accepted_at, expires_at, attempt, publications)
SELECT sequence, id, phone, code, trace, accepted_at, expires_at, attempt, publications
FROM in_transit
ON CONFLICT DO NOTHING;
DELETE FROM in_transit;
";

const SQLITE_UP: &str = "
CREATE TABLE relay (
    id INTEGER PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    owner TEXT,
    epoch INTEGER NOT NULL DEFAULT 0,
    expires_at INTEGER NOT NULL DEFAULT 0,
    published INTEGER NOT NULL DEFAULT 0,
    read_up_to INTEGER NOT NULL DEFAULT 0,
    oldest INTEGER NOT NULL DEFAULT 0
);
INSERT INTO relay DEFAULT VALUES;

INSERT INTO outbox
    (sequence, id, phone, code, trace, accepted_at, expires_at, attempt, publications)
SELECT sequence, id, phone, code, trace, accepted_at, expires_at, attempt, publications
FROM in_transit
WHERE true
ON CONFLICT DO NOTHING;
DELETE FROM in_transit;
";

const POSTGRES_DOWN: &str = "
DROP TRIGGER stay_in_outbox ON in_transit;
DROP FUNCTION stay_in_outbox();
DROP TABLE relay;
";

const SQLITE_DOWN: &str = "DROP TABLE relay";
