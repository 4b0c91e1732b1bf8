use std::sync::atomic::{AtomicBool, Ordering};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, FromQueryResult,
    SqliteTransactionMode, TransactionOptions, TransactionTrait,
};

use super::{DatabaseError, Parameters, Sql, dialect::Dialect, read_all};

/// A transaction that commits only if each of its statements succeeded.
///
/// Both databases let a client continue after an error, and report no error at the end. PostgreSQL
/// answers the `COMMIT` of a failed transaction with `ROLLBACK`, which the driver reports as
/// success. SQLite rolls back by itself if the disk is full, and then commits each later statement
/// alone.
#[derive(Debug)]
pub(crate) struct Transaction {
    inner: DatabaseTransaction,
    /// A statement failed, or its future was dropped before it ended.
    failed: AtomicBool,
}

/// Begins a transaction. In SQLite it holds the write lock from its start, so that it cannot fail
/// later because another process has the lock.
pub(crate) async fn begin(connection: &DatabaseConnection) -> Result<Transaction, DatabaseError> {
    let connection = connection.clone();
    // A task is not dropped with this future. If a future is dropped between `BEGIN` and its
    // answer, the driver returns the connection to the pool inside the transaction (sqlx #4385).
    // The next statements would succeed and never be committed.
    let begin = tokio::spawn(async move {
        connection
            .begin_with_options(TransactionOptions {
                sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
                ..TransactionOptions::default()
            })
            .await
    });
    let inner = begin.await.map_err(|stopped| DbErr::Custom(stopped.to_string()))??;
    Ok(Transaction { inner, failed: AtomicBool::new(false) })
}

/// Reads SQLite's clock, in milliseconds since 1970: one time for all statements of a transaction.
pub(crate) async fn clock(transaction: &Transaction) -> Result<i64, DatabaseError> {
    static NOW: Sql = Sql::new("SELECT {now} AS now");

    #[derive(FromQueryResult)]
    struct Row {
        now: i64,
    }

    let row: Option<Row> = transaction.row(&NOW, Parameters::new(Dialect::Sqlite)).await?;
    Ok(row.ok_or_else(|| DatabaseError::missing("the clock"))?.now)
}

impl Transaction {
    /// Runs one statement, and returns the number of rows that it changed.
    pub(crate) async fn execute(
        &self,
        sql: &Sql,
        parameters: Parameters,
    ) -> Result<u64, DatabaseError> {
        let statement = sql.statement(parameters)?;
        Ok(self.run(self.inner.execute_raw(statement)).await?.rows_affected())
    }

    /// Runs one statement, and returns its rows.
    pub(crate) async fn rows<R: FromQueryResult>(
        &self,
        sql: &Sql,
        parameters: Parameters,
    ) -> Result<Vec<R>, DatabaseError> {
        let statement = sql.statement(parameters)?;
        read_all(&self.run(self.inner.query_all_raw(statement)).await?)
    }

    /// Runs one statement, and returns its first row.
    pub(crate) async fn row<R: FromQueryResult>(
        &self,
        sql: &Sql,
        parameters: Parameters,
    ) -> Result<Option<R>, DatabaseError> {
        Ok(self.rows(sql, parameters).await?.into_iter().next())
    }

    /// Runs one statement, and returns whether it has a row.
    pub(crate) async fn finds(
        &self,
        sql: &Sql,
        parameters: Parameters,
    ) -> Result<bool, DatabaseError> {
        let statement = sql.statement(parameters)?;
        Ok(!self.run(self.inner.query_all_raw(statement)).await?.is_empty())
    }

    /// Makes all statements durable, or returns an error.
    pub(crate) async fn commit(self) -> Result<(), DatabaseError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(failed().into());
        }
        Ok(self.inner.commit().await?)
    }

    pub(crate) async fn rollback(self) -> Result<(), DatabaseError> {
        Ok(self.inner.rollback().await?)
    }

    async fn run<T>(&self, statement: impl Future<Output = Result<T, DbErr>>) -> Result<T, DbErr> {
        // The flag stays set if this future is dropped while the statement runs.
        if self.failed.swap(true, Ordering::AcqRel) {
            return Err(failed());
        }
        let result = statement.await;
        if result.is_ok() {
            self.failed.store(false, Ordering::Release);
        }
        result
    }
}

fn failed() -> DbErr {
    DbErr::Custom("an earlier statement of the transaction failed".to_owned())
}
