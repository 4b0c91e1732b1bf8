use std::fmt::Write;

use sea_orm::Value;
use uuid::Uuid;

use super::{dialect::Dialect, values::hex};

/// The parameters of a statement: each with its name and value, and a column of a table also with
/// its type.
#[derive(Debug, Clone)]
#[must_use]
pub(crate) struct Parameters {
    dialect: Dialect,
    names: Vec<Name>,
    values: Vec<Value>,
}

/// What a parameter is called in the text of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    Value(&'static str),
    /// A column of the table `rows`, of this type of PostgreSQL.
    Column {
        rows: &'static str,
        column: &'static str,
        of: &'static str,
    },
}

/// A table of parameters: PostgreSQL gets an array for each column, and SQLite one JSON text with
/// an array for each row.
#[derive(Debug)]
#[must_use]
pub(crate) struct Rows<I> {
    name: &'static str,
    items: I,
    parameters: Parameters,
    /// For SQLite.
    json: Vec<String>,
}

/// A value in a column. It is never null, which sea-orm's arrays cannot hold: an empty text, the nil
/// UUID or -1 stands for what is absent.
pub(crate) trait Cell: Sized {
    const TYPE: &'static str;

    fn array(cells: Vec<Self>) -> Value;

    fn write_json(&self, out: &mut String);
}

impl Parameters {
    pub(super) fn new(dialect: Dialect) -> Self {
        Self { dialect, names: Vec::new(), values: Vec::new() }
    }

    pub(super) fn dialect(&self) -> Dialect {
        self.dialect
    }

    pub(super) fn into_parts(self) -> (Vec<Name>, Vec<Value>) {
        (self.names, self.values)
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.names.push(Name::Value(name));
        self.values.push(value.into());
        self
    }

    /// An id: a UUID in PostgreSQL and a text in SQLite.
    pub(crate) fn id(self, name: &'static str, id: Uuid) -> Self {
        match self.dialect {
            Dialect::Postgres => self.with(name, id),
            Dialect::Sqlite => self.with(name, id.to_string()),
        }
    }

    /// An id, or null.
    pub(crate) fn id_if_any(self, name: &'static str, id: Option<Uuid>) -> Self {
        match self.dialect {
            Dialect::Postgres => self.with(name, id),
            Dialect::Sqlite => self.with(name, id.map(|id| id.to_string())),
        }
    }

    /// A list: an array in PostgreSQL and a JSON text in SQLite.
    pub(crate) fn list<C: Cell>(
        self,
        name: &'static str,
        cells: impl IntoIterator<Item = C>,
    ) -> Self {
        match self.dialect {
            Dialect::Postgres => self.with(name, C::array(cells.into_iter().collect())),
            Dialect::Sqlite => {
                let cells = cells.into_iter().map(|cell| {
                    let mut json = String::new();
                    cell.write_json(&mut json);
                    json
                });
                self.with(name, json_array(cells))
            }
        }
    }

    /// A table with a row for each item. `columns` names its columns.
    pub(crate) fn rows<I: Iterator + Clone>(
        self,
        name: &'static str,
        items: I,
        columns: impl FnOnce(Rows<I>) -> Rows<I>,
    ) -> Self {
        let Rows { mut parameters, json, .. } =
            columns(Rows { name, items, parameters: self, json: Vec::new() });
        if parameters.dialect == Dialect::Sqlite {
            let is_single = {
                let is_ours = |it: &&Name| matches!(it, Name::Column { rows, .. } if *rows == name);
                parameters.names.iter().filter(is_ours).count() == 1
            };
            let rows = json.into_iter();
            let text = if is_single {
                json_array(rows)
            } else {
                json_array(rows.map(|row| format!("[{row}]")))
            };
            parameters.values.push(text.into());
        }
        parameters
    }
}

impl<I: Iterator + Clone> Rows<I> {
    pub(crate) fn column<C: Cell>(
        mut self,
        name: &'static str,
        read: impl Fn(I::Item) -> C,
    ) -> Self {
        self.parameters.names.push(Name::Column { rows: self.name, column: name, of: C::TYPE });
        let cells = self.items.clone().map(read);
        match self.parameters.dialect {
            Dialect::Postgres => self.parameters.values.push(C::array(cells.collect())),
            Dialect::Sqlite if self.json.is_empty() => self.json.extend(cells.map(|cell| {
                let mut row = String::with_capacity(64);
                cell.write_json(&mut row);
                row
            })),
            Dialect::Sqlite => {
                for (row, cell) in self.json.iter_mut().zip(cells) {
                    row.push(',');
                    cell.write_json(row);
                }
            }
        }
        self
    }
}

fn json_array(items: impl Iterator<Item = String>) -> String {
    let mut json = String::from("[");
    for item in items {
        if json.len() > 1 {
            json.push(',');
        }
        json.push_str(&item);
    }
    json.push(']');
    json
}

fn write(out: &mut String, shown: impl std::fmt::Display) {
    // A text takes all that is written to it.
    let _ = write!(out, "{shown}");
}

impl Cell for String {
    const TYPE: &'static str = "text";

    fn array(cells: Vec<Self>) -> Value {
        cells.into()
    }

    fn write_json(&self, out: &mut String) {
        write(out, serde_json::Value::from(self.as_str()));
    }
}

impl Cell for Uuid {
    const TYPE: &'static str = "uuid";

    fn array(cells: Vec<Self>) -> Value {
        cells.into()
    }

    fn write_json(&self, out: &mut String) {
        write(out, format_args!("\"{self}\""));
    }
}

/// Hexadecimal digits in SQLite, for `unhex`.
impl Cell for Vec<u8> {
    const TYPE: &'static str = "bytea";

    fn array(cells: Vec<Self>) -> Value {
        cells.into()
    }

    fn write_json(&self, out: &mut String) {
        write(out, format_args!("\"{}\"", hex(self)));
    }
}

macro_rules! cells {
    ($($of:ty: $name:literal,)*) => {$(
        impl Cell for $of {
            const TYPE: &'static str = $name;

            fn array(cells: Vec<Self>) -> Value {
                cells.into()
            }

            fn write_json(&self, out: &mut String) {
                write(out, self);
            }
        }
    )*};
}

cells! {
    i16: "smallint",
    i32: "integer",
    i64: "bigint",
    bool: "boolean",
}
