mod outcome;
mod postgres;
mod sqlite;
mod statement;

use application::ports::{Attempt, CheckOutcome, StoreError};
use domain::Policy;

use self::postgres::Checks as PostgresChecks;
use crate::{
    coalesce::{Coalescer, Limits},
    database::{Database, LIMIT},
};

/// Attempts at codes. In PostgreSQL, attempts that wait together are decided by one statement and
/// committed together (ADR 31).
#[derive(Debug, Clone)]
pub(super) struct Checks {
    database: Database,
    queue: Coalescer<PostgresChecks>,
}

/// More attempts may wait than an API serves connections. While one statement waits for the disk, or
/// for a lock on a phone, others go on. A batch is so small that the plan of its statement may
/// compare each attempt with each.
const LIMITS: Limits =
    Limits { queue: 1_024, batches: 4, batch: 32, beside: 0, patience: Some(LIMIT) };

impl Checks {
    pub(super) fn new(database: Database) -> Self {
        let queue = Coalescer::new(PostgresChecks::new(database.clone()), LIMITS);
        Self { database, queue }
    }

    pub(super) async fn check(
        &self,
        attempt: Attempt,
        guesses: &[Policy],
    ) -> Result<CheckOutcome, StoreError> {
        if self.database.is_postgres() {
            return self.queue.ask((attempt, guesses.to_vec())).await;
        }
        let step = async |it| sqlite::check(&self.database, &it, &attempt, guesses).await;
        Ok(self.database.step(step).await?)
    }
}

#[cfg(test)]
mod tests {
    use application::ports::Target;
    use domain::VerificationId;
    use tokio::{task::JoinSet, time::Instant};

    use super::*;
    use crate::{DatabaseSettings, PostgresSettings, SslMode, database::ACQUIRE};

    #[tokio::test(start_paused = true)]
    async fn without_a_connection_all_waiting_attempts_fail_at_once() {
        let settings = PostgresSettings {
            host: "127.0.0.1".to_owned(),
            port: 1,
            database: "messager".to_owned(),
            user: "messager".to_owned(),
            password: None,
            ssl_mode: SslMode::Disable,
            ssl_root_cert: None,
            ssl_client_cert: None,
            more_hosts: Vec::new(),
        };
        let settings = DatabaseSettings::Postgres(settings);
        let checks = Checks::new(Database::connect_lazily(&settings, "test", 8));
        let begun = Instant::now();
        let mut callers = JoinSet::new();
        for _ in 0..3 * LIMITS.batches * LIMITS.batch {
            let checks = checks.clone();
            callers.spawn(async move {
                let target = Target::Id(VerificationId::NIL);
                let attempt =
                    Attempt { target, hashes: Vec::new(), api_hashes: Vec::new(), claim: None };
                checks.check(attempt, &[]).await
            });
        }

        let answers = callers.join_all().await;
        assert!(answers.iter().all(|it| matches!(it, Err(StoreError::Unavailable(_)))));
        assert!(begun.elapsed() < 2 * ACQUIRE, "{:?}", begun.elapsed());
    }
}
