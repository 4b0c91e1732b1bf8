use std::fmt::{self, Write as _};

use sea_orm::DbErr;

use crate::database::{
    DatabaseError,
    dialect::{Dialect, Fragment},
    parameters::Name,
};

/// Writes a text as one of the databases gets it.
pub(super) struct Writer<'a> {
    pub(super) dialect: Dialect,
    pub(super) names: &'a [Name],
    pub(super) fragments: &'a [Fragment],
    pub(super) out: String,
}

impl Writer<'_> {
    /// Appends `text`. `argument` stands for `{argument}`.
    pub(super) fn write(&mut self, text: &str, argument: &str) -> Result<(), DatabaseError> {
        let mut rest = text;
        while let Some(at) = rest.find(['\'', '-', ':', '{']) {
            self.out.push_str(&rest[..at]);
            rest = &rest[at..];
            let taken = if rest.starts_with("--") {
                rest.find('\n').unwrap_or(rest.len())
            } else if let Some(literal) = rest.strip_prefix('\'') {
                let end = literal.find('\'').map_or(rest.len(), |end| end + 2);
                self.out.push_str(&rest[..end]);
                end
            } else if rest.starts_with('{') {
                let inner = braced(rest).ok_or_else(|| wrong(rest))?;
                self.expand(inner, argument)?;
                inner.len() + 2
            } else if rest.starts_with("::") {
                self.out.push_str("::");
                2
            } else if let Some(name) = rest.strip_prefix(':').map(word).filter(|it| !it.is_empty())
            {
                let place = rest[1 + name.len()..].strip_prefix('#').map(word);
                self.parameter(name, place)?;
                1 + name.len() + place.map_or(0, |place| 1 + place.len())
            } else {
                self.out.push_str(&rest[..1]);
                1
            };
            rest = &rest[taken..];
        }
        self.out.push_str(rest);
        Ok(())
    }

    fn expand(&mut self, inner: &str, outer: &str) -> Result<(), DatabaseError> {
        let (name, argument) = match inner.split_once('(') {
            Some((name, rest)) => (name, rest.strip_suffix(')').ok_or_else(|| wrong(inner))?),
            None => (inner, ""),
        };
        let is_postgres = self.dialect == Dialect::Postgres;
        match name {
            "argument" => self.write(outer, ""),
            "now" => {
                if self.names.contains(&Name::Value("now")) {
                    return self.parameter("now", None);
                }
                self.out.push_str(if is_postgres { POSTGRES_NOW } else { SQLITE_NOW });
                Ok(())
            }
            "clock" => {
                self.out.push_str(if is_postgres { "clock_timestamp()" } else { SQLITE_NOW });
                Ok(())
            }
            "millis" if is_postgres => {
                self.out.push_str("(extract(epoch FROM ");
                self.write(argument, outer)?;
                self.out.push_str(") * 1000)::bigint");
                Ok(())
            }
            "duration" if is_postgres => {
                self.write(argument, outer)?;
                self.out.push_str(" * interval '1 millisecond'");
                Ok(())
            }
            "text" if is_postgres => {
                self.write(argument, outer)?;
                self.out.push_str("::text");
                Ok(())
            }
            "millis" | "duration" | "text" => self.write(argument, outer),
            _ => {
                let known = self.fragments.iter().find(|fragment| fragment.name == name);
                let known = known.ok_or_else(|| wrong(inner))?;
                let text = if is_postgres { known.postgres } else { known.sqlite };
                self.write(text, argument)
            }
        }
    }

    fn parameter(&mut self, name: &str, place: Option<&str>) -> Result<(), DatabaseError> {
        let mut columns = Vec::new();
        let (mut number, mut first, mut rows_before) = (0, 0, "");
        for known in self.names {
            match known {
                Name::Value(value) => {
                    number += 1;
                    rows_before = "";
                    if *value == name {
                        write(&mut self.out, format_args!("${number}"));
                        return Ok(());
                    }
                }
                Name::Column { rows, column, of } => {
                    // SQLite gets all columns of a table as one value.
                    if self.dialect == Dialect::Postgres || rows_before != *rows {
                        number += 1;
                    }
                    rows_before = *rows;
                    if *rows == name {
                        first = if columns.is_empty() { number } else { first };
                        columns.push((*column, *of));
                    }
                }
            }
        }
        if columns.is_empty() {
            return Err(wrong(name));
        }
        self.table(name, first, &columns, place);
        Ok(())
    }

    fn table(&mut self, name: &str, first: usize, columns: &[(&str, &str)], place: Option<&str>) {
        let list = |parts: Vec<String>| parts.join(", ");
        let names = columns.iter().map(|(column, _)| *column).chain(place);
        let text = match self.dialect {
            Dialect::Postgres => {
                let arrays = (first..).zip(columns).map(|(n, (_, of))| format!("${n}::{of}[]"));
                let names = list(names.map(str::to_owned).collect());
                let numbered = if place.is_some() { " WITH ORDINALITY" } else { "" };
                format!("unnest({}){numbered} AS {name} ({names})", list(arrays.collect()))
            }
            Dialect::Sqlite => {
                let values = (0..).zip(columns).map(|(n, (column, _))| match columns {
                    [_] => format!("value AS {column}"),
                    _ => format!("value ->> {n} AS {column}"),
                });
                let place = place.map(|place| format!("key + 1 AS {place}"));
                let values = list(values.chain(place).collect());
                format!("(SELECT {values} FROM json_each(${first})) AS {name}")
            }
        };
        self.out.push_str(&text);
    }
}

const POSTGRES_NOW: &str = "now()";

/// Milliseconds since 1970, as SQLite stores all times.
const SQLITE_NOW: &str = "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)";

fn write(out: &mut String, shown: fmt::Arguments<'_>) {
    // A text takes all that is written to it.
    let _ = out.write_fmt(shown);
}

/// The name at the start of a text.
fn word(text: &str) -> &str {
    let end = text.find(|it: char| !(it.is_ascii_lowercase() || it.is_ascii_digit() || it == '_'));
    &text[..end.unwrap_or(text.len())]
}

/// What stands between the brace at the start of a text and the one that closes it.
fn braced(text: &str) -> Option<&str> {
    let mut depth = 0;
    for (at, it) in text.char_indices() {
        match it {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&text[1..at]);
        }
    }
    None
}

fn wrong(part: &str) -> DatabaseError {
    let part: String = part.chars().take(40).collect();
    DbErr::Custom(format!("a statement names something that it does not have: {part}")).into()
}
