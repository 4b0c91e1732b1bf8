mod checks;
mod newest;
mod postgres;
mod prune;
mod resend;
mod sqlite;
mod test_numbers;
mod timeline;

use std::time::Duration;

use application::ports::{
    Attempt, CheckOutcome, History, Housekeeping, NewTest, Newest, Noted, Receipt, Resend, Resent,
    StoreError, Verification, Verifications,
};
use autometrics::autometrics;
use domain::{MessageId, PhoneNumber, Policy, VerificationId};

use self::checks::Checks;
use crate::{
    database::{Database, DatabaseError, Sql, time},
    receipts,
    verification_row::{VERIFICATION_COLUMNS, VerificationRow},
};

/// Verifications after their first message.
#[derive(Debug, Clone)]
pub struct SqlVerifications {
    database: Database,
    checks: Checks,
}

impl SqlVerifications {
    pub fn new(database: Database) -> Self {
        Self { checks: Checks::new(database.clone()), database }
    }

    async fn row(&self, id: VerificationId) -> Result<Option<VerificationRow>, DatabaseError> {
        static FIND: Sql = Sql::with(
            &[VERIFICATION_COLUMNS],
            "SELECT {verification_columns} FROM verification WHERE id = :id",
            "SELECT {verification_columns} FROM verification WHERE id = :id",
        );
        self.database.row(&FIND, self.database.parameters().id("id", id.as_uuid())).await
    }

    async fn find_history(&self, id: VerificationId) -> Result<Option<History>, DatabaseError> {
        let Some(row) = self.row(id).await? else { return Ok(None) };
        let verification = row.verification()?;
        let events = timeline::events(&self.database, &verification).await?;
        Ok(Some(History { verification, events }))
    }
}

impl Verifications for SqlVerifications {
    #[autometrics(struct_name = "SqlVerifications")]
    async fn find(&self, id: VerificationId) -> Result<Option<Verification>, StoreError> {
        let row = self.row(id).await?;
        Ok(row.map(VerificationRow::verification).transpose()?)
    }

    #[autometrics(struct_name = "SqlVerifications")]
    async fn history(&self, id: VerificationId) -> Result<Option<History>, StoreError> {
        Ok(self.find_history(id).await?)
    }

    #[autometrics(struct_name = "SqlVerifications")]
    async fn resend(&self, again: Resend) -> Result<Resent, StoreError> {
        resend::resend(&self.database, &again).await
    }

    #[autometrics(struct_name = "SqlVerifications")]
    async fn newest(&self, phone: PhoneNumber) -> Result<Newest, StoreError> {
        Ok(newest::find(&self.database, &phone).await?)
    }

    #[autometrics(struct_name = "SqlVerifications")]
    async fn check(
        &self,
        attempt: Attempt,
        guesses: &[Policy],
    ) -> Result<CheckOutcome, StoreError> {
        self.checks.check(attempt, guesses).await
    }

    #[autometrics(struct_name = "SqlVerifications")]
    async fn cancel(&self, id: VerificationId) -> Result<Option<History>, StoreError> {
        if self.database.is_postgres() {
            postgres::cancel(&self.database, id).await?;
        } else {
            let step = async |it| sqlite::cancel(&self.database, &it, id).await;
            self.database.step(step).await?;
        }
        Ok(self.find_history(id).await?)
    }

    #[autometrics(struct_name = "SqlVerifications")]
    async fn start_test(&self, test: NewTest) -> Result<Verification, StoreError> {
        let at = if self.database.is_postgres() {
            postgres::start_test(&self.database, &test).await?
        } else {
            let step = async |it| sqlite::start_test(&self.database, &it, &test).await;
            self.database.step(step).await?
        };
        let NewTest { id, phone, ttl, verification } = test;
        Ok(Verification::begun(id, phone, ttl, &verification, time(at)))
    }

    #[autometrics(struct_name = "SqlVerifications")]
    async fn note_receipt(
        &self,
        message: MessageId,
        receipt: Receipt,
    ) -> Result<Noted, StoreError> {
        Ok(receipts::note(&self.database, None, message, receipt).await?)
    }
}

impl Housekeeping for SqlVerifications {
    #[autometrics(struct_name = "SqlVerifications")]
    async fn expire(&self) -> Result<u64, StoreError> {
        Ok(prune::expire(&self.database).await?)
    }

    #[autometrics(struct_name = "SqlVerifications")]
    async fn prune(&self, retention: Duration) -> Result<u64, StoreError> {
        Ok(prune::prune(&self.database, retention).await?)
    }
}
