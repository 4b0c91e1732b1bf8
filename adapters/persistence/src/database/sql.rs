mod writer;

use std::{fmt, sync::OnceLock};

use sea_orm::{DbBackend, Statement};

use self::writer::Writer;
use super::{
    DatabaseError, Events,
    dialect::{Dialect, Fragment},
    parameters::{Name, Parameters},
};

/// The text of a statement.
///
/// A text names its parameters, and each database gets its own numbers:
///
/// - `:name` is a value.
/// - `:name` of [`Parameters::rows`] is a table, `AS name (column, …)`. It stands behind `FROM`.
///   `:name#place` also numbers its rows from 1, in the column `place`.
///
/// It names what the databases spell differently, too:
///
/// - `{now}` is the time of the statement, or the parameter `now` if there is one: SQLite has no
///   time of a transaction.
/// - `{clock}` is the time at which it is read, even late in a transaction.
/// - `{millis(x)}` is the time or duration `x` in milliseconds, as all times are read.
/// - `{duration(:x)}` is a duration that is given in milliseconds.
/// - `{text(x)}` is an id as a text, as all ids are read.
/// - `{name}` and `{name(x)}` are a [`Fragment`] of the statement.
///
/// Comments are left out. The text that a database gets is made once: both databases keep the plans
/// of texts that they know (ADR 26).
pub(crate) struct Sql {
    postgres: &'static str,
    sqlite: &'static str,
    fragments: &'static [Fragment],
    written: [OnceLock<Written>; 2],
}

/// A statement that also records events, and the same statement without that. They differ in the
/// fragment `events`.
#[derive(Debug)]
pub(crate) struct EventSql {
    recorded: Sql,
    off: Sql,
}

/// A text as a database gets it, and the parameters that it was made for.
#[derive(Debug)]
struct Written {
    names: Vec<Name>,
    text: String,
}

impl Sql {
    /// A text that both databases understand.
    pub(crate) const fn new(text: &'static str) -> Self {
        Self::pair(text, text)
    }

    /// A text of each database for the same step.
    pub(crate) const fn pair(postgres: &'static str, sqlite: &'static str) -> Self {
        Self::with(&[], postgres, sqlite)
    }

    /// A text of each database with fragments.
    pub(crate) const fn with(
        fragments: &'static [Fragment],
        postgres: &'static str,
        sqlite: &'static str,
    ) -> Self {
        Self { postgres, sqlite, fragments, written: [OnceLock::new(), OnceLock::new()] }
    }

    pub(crate) fn statement(&self, parameters: Parameters) -> Result<Statement, DatabaseError> {
        let dialect = parameters.dialect();
        let (names, values) = parameters.into_parts();
        let (backend, written) = match dialect {
            Dialect::Postgres => (DbBackend::Postgres, &self.written[0]),
            Dialect::Sqlite => (DbBackend::Sqlite, &self.written[1]),
        };
        if let Some(written) = written.get()
            && written.names == names
        {
            return Ok(Statement::from_sql_and_values(backend, &written.text, values));
        }
        let text = self.write(dialect, &names)?;
        let statement = Statement::from_sql_and_values(backend, &text, values);
        let _ = written.set(Written { names, text });
        Ok(statement)
    }

    fn write(&self, dialect: Dialect, names: &[Name]) -> Result<String, DatabaseError> {
        let text = match dialect {
            Dialect::Postgres => self.postgres,
            Dialect::Sqlite => self.sqlite,
        };
        let mut writer =
            Writer { dialect, names, fragments: self.fragments, out: String::with_capacity(1024) };
        writer.write(text, "")?;
        Ok(writer.out)
    }
}

impl fmt::Debug for Sql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sql").field("postgres", &self.postgres).finish_non_exhaustive()
    }
}

impl EventSql {
    /// The text of PostgreSQL, which records events in the same statement. `off` must have an empty
    /// fragment `events`.
    pub(crate) const fn postgres(
        text: &'static str,
        recorded: &'static [Fragment],
        off: &'static [Fragment],
    ) -> Self {
        Self { recorded: Sql::with(recorded, text, ""), off: Sql::with(off, text, "") }
    }

    pub(crate) fn of(&self, events: Events) -> &Sql {
        match events {
            Events::Recorded => &self.recorded,
            Events::Off => &self.off,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWICE: Fragment = Fragment::new("twice", "{argument} + {argument}");

    fn text(sql: &Sql, parameters: Parameters) -> String {
        sql.statement(parameters).unwrap().sql
    }

    fn written(text: &'static str, parameters: impl Fn(Parameters) -> Parameters) -> [String; 2] {
        [Dialect::Postgres, Dialect::Sqlite].map(|dialect| {
            let sql = Sql::with(&[TWICE], text, text);
            self::text(&sql, parameters(Parameters::new(dialect)))
        })
    }

    #[test]
    fn values_are_numbered_by_their_places() {
        let sql = "UPDATE a SET b = :b, c = ':b', d = :b::text WHERE id = :id -- it's :b";
        let expected = "UPDATE a SET b = $2, c = ':b', d = $2::text WHERE id = $1 ";
        let [postgres, sqlite] = written(sql, |it| it.with("id", 1).with("b", 2));

        assert_eq!(postgres, expected);
        assert_eq!(sqlite, expected);
    }

    #[test]
    fn rows_are_a_table_of_arrays_or_of_one_json_text() {
        let parameters = |it: Parameters| {
            it.rows("new", [(7_i64, "a")].iter(), |new| {
                new.column("id", |row| row.0).column("name", |row| row.1.to_owned())
            })
            .with("last", 1)
        };
        let [postgres, sqlite] = written("SELECT :last, id FROM :new#place", parameters);

        assert_eq!(
            postgres,
            "SELECT $3, id FROM unnest($1::bigint[], $2::text[]) WITH ORDINALITY AS new (id, name, place)"
        );
        assert_eq!(
            sqlite,
            "SELECT $2, id FROM (SELECT value ->> 0 AS id, value ->> 1 AS name, key + 1 AS place FROM json_each($1)) AS new"
        );
    }

    #[test]
    fn each_database_gets_its_own_spelling() {
        let [postgres, sqlite] = written(
            "SELECT {text(id)}, {millis(at - {now})}, {now} + {duration(:x)}, {twice(at)}",
            |it| it.with("x", 1),
        );

        assert_eq!(
            postgres,
            "SELECT id::text, (extract(epoch FROM at - now()) * 1000)::bigint, \
             now() + $1 * interval '1 millisecond', at + at"
        );
        let now = "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)";
        assert_eq!(sqlite, format!("SELECT id, at - {now}, {now} + $1, at + at"));
    }

    #[test]
    fn parameter_now_replaces_the_clock() {
        let [_, sqlite] = written("SELECT {now}", |it| it.with("now", 1));

        assert_eq!(sqlite, "SELECT $1");
    }

    #[test]
    fn other_parameters_give_another_text() {
        let sql = Sql::new("SELECT :b");
        let one = text(&sql, Parameters::new(Dialect::Sqlite).with("b", 1));
        let two = text(&sql, Parameters::new(Dialect::Sqlite).with("a", 1).with("b", 1));

        assert_eq!([one, two], ["SELECT $1", "SELECT $2"]);
    }

    #[test]
    fn missing_parameter_is_an_error() {
        let sql = Sql::new("SELECT :b, {twice(1)}");

        assert!(sql.statement(Parameters::new(Dialect::Sqlite).with("a", 1)).is_err());
    }
}
