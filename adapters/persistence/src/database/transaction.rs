use std::sync::atomic::{AtomicBool, Ordering};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult,
    QueryResult, SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait,
};

/// A transaction that commits only if each of its statements succeeded.
///
/// Both databases let a client go on after an error and say nothing at the end. PostgreSQL answers
/// the `COMMIT` of a failed transaction with `ROLLBACK`, which the driver takes for success. SQLite
/// rolls back by itself when the disk is full, and commits each later statement on its own.
#[derive(Debug)]
pub(crate) struct Transaction {
    inner: DatabaseTransaction,
    /// A statement failed, or its future was dropped before it ended.
    failed: AtomicBool,
}

/// Begins a transaction. In SQLite it holds the write lock from its start, so that it cannot fail
/// half-way because another process has the lock.
pub(crate) async fn begin(connection: &DatabaseConnection) -> Result<Transaction, DbErr> {
    let connection = connection.clone();
    // In a task of its own: if this future were dropped between `BEGIN` and its answer, the driver
    // would return the connection to the pool inside of the transaction (sqlx #4385), and the
    // statements that came next would be answered and never committed.
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

/// SQLite's now, in milliseconds since 1970: one for all statements of a transaction.
pub(crate) async fn clock(transaction: &Transaction) -> Result<i64, DbErr> {
    const NOW: &str = "SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) AS now";
    let row = transaction.query_one_raw(Statement::from_string(DbBackend::Sqlite, NOW)).await?;
    row.ok_or_else(|| DbErr::RecordNotFound("the clock".to_owned()))?.try_get("", "now")
}

impl Transaction {
    pub(crate) async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.run(self.inner.execute_raw(statement)).await
    }

    pub(crate) async fn query_one_raw(
        &self,
        statement: Statement,
    ) -> Result<Option<QueryResult>, DbErr> {
        self.run(self.inner.query_one_raw(statement)).await
    }

    pub(crate) async fn query_all_raw(
        &self,
        statement: Statement,
    ) -> Result<Vec<QueryResult>, DbErr> {
        self.run(self.inner.query_all_raw(statement)).await
    }

    /// Makes all of it durable, or returns an error.
    pub(crate) async fn commit(self) -> Result<(), DbErr> {
        if self.failed.load(Ordering::Acquire) {
            return Err(failed());
        }
        self.inner.commit().await
    }

    pub(crate) async fn rollback(self) -> Result<(), DbErr> {
        self.inner.rollback().await
    }

    async fn run<T>(&self, statement: impl Future<Output = Result<T, DbErr>>) -> Result<T, DbErr> {
        // Set while the statement runs: it stays set if this future is dropped.
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
