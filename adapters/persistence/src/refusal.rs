//! Rows that the database refuses, and how the other rows of their batch go on.

use std::{borrow::Cow, iter, ops::Range};

use sea_orm::{DbErr, RuntimeErr, sqlx};

use crate::database::DatabaseError;

/// Does `step` for a batch of `rows` rows. If the database refuses a value of a row, the batch is
/// halved until that row stands alone, and `alone` ends it.
///
/// The parts are done in their order, each in a statement or a transaction of its own, and their
/// results are returned. Any other error ends all; parts before it stay done.
pub(crate) async fn in_parts<T, S, A>(
    rows: usize,
    step: impl Fn(Range<usize>) -> S,
    alone: impl Fn(usize, DatabaseError) -> A,
) -> Result<Vec<T>, DatabaseError>
where
    S: Future<Output = Result<T, DatabaseError>>,
    A: Future<Output = Result<T, DatabaseError>>,
{
    let mut done = Vec::with_capacity(1);
    let mut parts: Vec<Range<usize>> = iter::once(0..rows).collect();
    while let Some(part) = parts.pop() {
        match step(part.clone()).await {
            Ok(part) => done.push(part),
            Err(error) if is_about_a_row(&error) && !part.is_empty() => {
                if part.len() == 1 {
                    done.push(alone(part.start, error).await?);
                } else {
                    let middle = part.start + part.len() / 2;
                    parts.extend([middle..part.end, part.start..middle]);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Returns the result of the first of `ways` that the database does not refuse; `None` if it refuses
/// all of them.
pub(crate) async fn first_taken<W, T, S>(
    ways: impl IntoIterator<Item = W>,
    step: impl Fn(W) -> S,
) -> Result<Option<T>, DatabaseError>
where
    S: Future<Output = Result<T, DatabaseError>>,
{
    for way in ways {
        match step(way).await {
            Ok(done) => return Ok(Some(done)),
            Err(error) if is_about_a_row(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether the database refuses a value of a row: a character that its encoding does not have, a NUL,
/// a value that is too long or out of range, a constraint, a trigger.
///
/// In PostgreSQL these are the SQLSTATE classes below, in SQLite `SQLITE_TOOBIG`, `_CONSTRAINT` and
/// `_MISMATCH`, in the low byte.
pub(crate) fn is_about_a_row(error: &DatabaseError) -> bool {
    const CLASSES: [&str; 6] = ["21", "22", "23", "44", "54", "P0"];
    code(error).is_some_and(|code| match code.len() {
        5 => CLASSES.iter().any(|class| code.starts_with(class)),
        _ => code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 18..=20)),
    })
}

/// Whether PostgreSQL refuses a statement for a lock: classes 40 (deadlock) and 55 (lock not
/// available).
pub(crate) fn is_about_a_lock(error: &DatabaseError) -> bool {
    code(error).is_some_and(|code| {
        code.len() == 5 && ["40", "55"].iter().any(|class| code.starts_with(class))
    })
}

/// Returns the database's code for an error. It repeats no value of a row.
pub(crate) fn code(error: &DatabaseError) -> Option<String> {
    let (DbErr::Exec(RuntimeErr::SqlxError(cause)) | DbErr::Query(RuntimeErr::SqlxError(cause))) =
        error.cause()
    else {
        return None;
    };
    let sqlx::Error::Database(refusal) = &**cause else { return None };
    refusal.code().map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::HashSet, future::ready, sync::Arc};

    use super::*;

    #[derive(Debug)]
    struct Refusal(&'static str);

    impl std::fmt::Display for Refusal {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl std::error::Error for Refusal {}

    impl sqlx::error::DatabaseError for Refusal {
        fn message(&self) -> &str {
            self.0
        }

        fn code(&self) -> Option<std::borrow::Cow<'_, str>> {
            Some(self.0.into())
        }

        fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> sqlx::error::ErrorKind {
            sqlx::error::ErrorKind::Other
        }
    }

    fn refused(code: &'static str) -> DatabaseError {
        let error = sqlx::Error::Database(Box::new(Refusal(code)));
        DbErr::Query(RuntimeErr::SqlxError(Arc::new(error))).into()
    }

    #[test]
    fn errors_about_rows_are_told_from_errors_of_the_database() {
        // 22P05: untranslatable, 22021: a NUL, 23514: CHECK, 54000: too long; SQLite: 18, 19, 275.
        for code in ["22P05", "22021", "22001", "22008", "23514", "54000", "P0001", "18", "275"] {
            assert!(is_about_a_row(&refused(code)), "{code}");
        }
        // 57P01: shut down, 40P01: deadlock, 53100: disk full; SQLite: busy, full, I/O error.
        for code in ["57P01", "40P01", "55P03", "53100", "42501", "08006", "5", "13", "10", "522"] {
            assert!(!is_about_a_row(&refused(code)), "{code}");
        }
        assert!(!is_about_a_row(&DbErr::Custom("no answer in time".to_owned()).into()));
    }

    /// Steps of a batch in which the rows of `bad` are refused.
    async fn run(rows: usize, bad: &[usize]) -> (Vec<usize>, Vec<usize>, usize) {
        let bad: HashSet<_> = bad.iter().copied().collect();
        let (alone, steps) = (RefCell::new(Vec::new()), RefCell::new(0));
        let step = |mut part: Range<usize>| {
            *steps.borrow_mut() += 1;
            let rows: Vec<usize> = part.clone().collect();
            let is_refused = part.any(|row| bad.contains(&row));
            ready(if is_refused { Err(refused("22P05")) } else { Ok(rows) })
        };
        let note = |row, _| {
            alone.borrow_mut().push(row);
            ready(Ok(Vec::new()))
        };
        let done = in_parts(rows, step, note).await.unwrap().concat();
        (done, alone.into_inner(), steps.into_inner())
    }

    #[tokio::test]
    async fn only_refused_rows_of_a_batch_are_left_out() {
        assert_eq!(run(3, &[]).await, (vec![0, 1, 2], vec![], 1));
        assert_eq!(run(0, &[]).await, (vec![], vec![], 1), "a batch may only move an offset on");
        let (done, alone, _) = run(9, &[0, 5, 8]).await;
        assert_eq!((done, alone), (vec![1, 2, 3, 4, 6, 7], vec![0, 5, 8]), "in their order");
    }

    #[tokio::test]
    async fn one_refused_row_among_a_thousand_costs_few_statements() {
        let (done, _, steps) = run(1_000, &[617]).await;

        assert_eq!(done.len(), 999);
        assert!(steps <= 21, "{steps}");
    }

    #[tokio::test]
    async fn other_errors_do_not_split_the_batch() {
        let steps = RefCell::new(0);
        let step = |_| {
            *steps.borrow_mut() += 1;
            ready(Err::<(), _>(refused("57P01")))
        };

        assert!(in_parts(4, step, |_, error| ready(Err(error))).await.is_err());
        assert_eq!(steps.into_inner(), 1);
    }
}
