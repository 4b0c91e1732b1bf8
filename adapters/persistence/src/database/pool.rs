use std::{
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use sea_orm::{
    DatabaseConnection, SqlxPostgresConnector,
    sqlx::{Connection as _, postgres::PgPoolOptions},
};
use tokio::time::Instant;

use super::{ACQUIRE, DatabaseSettings, PostgresSettings, session::Purpose, sqlite, tls::Relay};

/// How long a connection is used. After a failover, sessions with the former primary end within
/// this time.
const LIFETIME: Duration = Duration::from_secs(60);

/// How long a pool waits between the retirement of two connections, if it has so few that all of
/// them retire within [`LIFETIME`].
const APART: Duration = Duration::from_secs(5);

/// How long a connection may be idle and is still used without a ping.
const FRESH: Duration = Duration::from_secs(1);

pub(super) fn open(
    settings: &DatabaseSettings,
    name: &str,
    connections: u32,
    purpose: Purpose,
    relay: Option<&Arc<Relay>>,
    doubted: &Arc<AtomicBool>,
) -> DatabaseConnection {
    match settings {
        DatabaseSettings::Postgres(postgres) => {
            open_postgres(postgres, name, connections, purpose, relay)
        }
        DatabaseSettings::Sqlite(path) => sqlite::pool(path, Arc::clone(doubted)),
    }
}

fn open_postgres(
    settings: &PostgresSettings,
    name: &str,
    connections: u32,
    purpose: Purpose,
    relay: Option<&Arc<Relay>>,
) -> DatabaseConnection {
    let turnover = Turnover::of(connections);
    let sessions = Arc::new(settings.sessions(name, purpose, relay));
    let options = sessions.options().clone();
    // The lock of migrations belongs to the session.
    let stays = purpose == Purpose::Migration;
    SqlxPostgresConnector::from_sqlx_postgres_pool(
        PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(ACQUIRE)
            .max_lifetime(None)
            .idle_timeout((!stays).then_some(LIFETIME))
            .after_connect(move |session, _| {
                let sessions = Arc::clone(&sessions);
                Box::pin(async move { Ok(sessions.admit(session, ACQUIRE).await?) })
            })
            .after_release(move |connection, it| {
                // A connection whose transaction did not end is closed (ADR 32).
                let ends = connection.is_in_transaction() || (!stays && turnover.retires(it.age));
                Box::pin(async move { Ok(!ends) })
            })
            // The pool pinged it when it was released.
            .test_before_acquire(false)
            .before_acquire(|connection, it| {
                Box::pin(async move {
                    if it.idle_for > FRESH {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(options),
    )
}

/// Retires the connections of a pool one after the other. If connections that were opened together
/// also ended together, callers would wait until all of them are opened again.
#[derive(Debug)]
struct Turnover {
    apart: Duration,
    latest: Mutex<Option<Instant>>,
}

impl Turnover {
    fn of(connections: u32) -> Self {
        let apart = APART.min(LIFETIME / connections.max(1));
        Self { apart, latest: Mutex::default() }
    }

    /// Returns whether a connection of this age, which was just released, retires now.
    fn retires(&self, age: Duration) -> bool {
        if age < LIFETIME {
            return false;
        }
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let retires = latest.is_none_or(|latest| latest.elapsed() > self.apart);
        if retires {
            *latest = Some(Instant::now());
        }
        retires
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_of_many_connections_retire_within_one_lifetime() {
        const MANY: u32 = 30;
        let turnover = Turnover::of(MANY);

        for _ in 0..MANY {
            assert!(turnover.retires(LIFETIME));
            advance(LIFETIME / MANY + Duration::from_millis(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_were_opened_together_retire_one_by_one() {
        let turnover = Turnover::of(3);
        let retired = |age| (0..3).filter(|_| turnover.retires(age)).count();

        assert_eq!(retired(APART), 0, "young");
        assert_eq!(retired(LIFETIME), 1);
        advance(APART).await;
        assert_eq!(retired(LIFETIME + APART), 0);
        advance(Duration::from_millis(1)).await;
        assert_eq!(retired(LIFETIME + APART), 1);
    }
}
