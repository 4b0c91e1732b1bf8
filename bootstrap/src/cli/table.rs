//! How commands print what they list and what they show: in columns on a terminal, with tabs in a
//! pipe, and as JSON.

use std::{
    fmt::{Display, Write},
    io::{IsTerminal, stdout},
};

use serde_json::{Map, Value};

use crate::environment::Environment;

/// How a command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// For a reader at a terminal.
    Columns {
        colours: bool,
    },
    /// For a program: values with tabs between them. The first line names them.
    Tabs,
    Json,
}

/// Rows with the same columns. A value is text, a number, a truth value, or null for none.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    head: [&'static str; N],
    rows: Vec<[Value; N]>,
}

/// One thing, whose properties have names.
#[derive(Debug, Default)]
pub(crate) struct Fields(Vec<(&'static str, Value)>);

/// A colour of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    Bold,
    Green,
    Yellow,
    Red,
}

impl Form {
    /// Returns JSON if it was asked for, and otherwise what fits standard output.
    pub(crate) fn of(json: bool) -> Self {
        if json {
            Self::Json
        } else if stdout().is_terminal() {
            Self::Columns { colours: !Environment::asks_for_no_colours() }
        } else {
            Self::Tabs
        }
    }

    pub(crate) fn has_colours(self) -> bool {
        self == Self::Columns { colours: true }
    }
}

impl Colour {
    /// Returns `text` in the colour, or as it is if the form has no colours.
    pub(crate) fn paint(self, text: &str, form: Form) -> String {
        let code = match self {
            Self::Bold => 1,
            Self::Green => 32,
            Self::Yellow => 33,
            Self::Red => 31,
        };
        if form.has_colours() { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(head: [&'static str; N]) -> Self {
        Self { head, rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: [Value; N]) {
        self.rows.push(cells);
    }

    pub(crate) fn text(&self, form: Form) -> String {
        match form {
            Form::Columns { .. } => self.columns(form),
            Form::Tabs => self.tabs(),
            Form::Json => json_text(&self.json()),
        }
    }

    /// Returns an object for each row. A space in a name becomes an underscore.
    pub(crate) fn json(&self) -> Value {
        let object = |row: &[Value; N]| {
            let named = self.head.iter().zip(row).map(|(name, value)| (key(name), value.clone()));
            Value::Object(named.collect::<Map<_, _>>())
        };
        self.rows.iter().map(object).collect::<Vec<_>>().into()
    }

    /// Returns the names of the columns.
    pub(crate) fn head(&self) -> &[&'static str; N] {
        &self.head
    }

    pub(crate) fn rows(&self) -> &[[Value; N]] {
        &self.rows
    }

    fn cells(&self) -> impl Iterator<Item = [String; N]> {
        let head = self.head.map(str::to_owned);
        [head].into_iter().chain(self.rows.iter().map(|row| row.each_ref().map(shown)))
    }

    fn tabs(&self) -> String {
        self.cells().map(|row| row.join("\t") + "\n").collect()
    }

    fn columns(&self, form: Form) -> String {
        /// A longer value moves only what is to its right.
        const WIDEST: usize = 60;

        let all: Vec<[String; N]> = self.cells().collect();
        let width = |column: usize| {
            all.iter().map(|row| row[column].chars().count().min(WIDEST)).max().unwrap_or(0)
        };
        let widths: [usize; N] = std::array::from_fn(width);
        let line = |row: &[String; N]| {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let mut lines = all.iter().map(line);
        let head = Colour::Bold.paint(&lines.next().unwrap_or_default(), form);
        [head].into_iter().chain(lines).map(|line| line + "\n").collect()
    }
}

impl Fields {
    pub(crate) fn add(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.push((name, value.into()));
    }

    pub(crate) fn text(&self, form: Form) -> String {
        let names = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        match form {
            Form::Json => json_text(&self.json()),
            Form::Tabs => self.lines(|name, value| format!("{name}\t{value}")),
            Form::Columns { .. } => self.lines(|name, value| {
                format!("{}  {value}", Colour::Bold.paint(&format!("{name:names$}"), form))
            }),
        }
    }

    /// Returns an object. A space in a name becomes an underscore.
    pub(crate) fn json(&self) -> Value {
        let named = self.0.iter().map(|(name, value)| (key(name), value.clone()));
        Value::Object(named.collect::<Map<_, _>>())
    }

    fn lines(&self, line: impl Fn(&str, &str) -> String) -> String {
        self.0.iter().map(|(name, value)| line(name, &shown(value)) + "\n").collect()
    }
}

/// Returns the value of what is shown as text.
pub(crate) fn text(shown: impl Display) -> Value {
    shown.to_string().into()
}

/// Returns a JSON text as commands print it.
pub(crate) fn json_text(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Shows a value on one line. None is a hyphen.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => on_one_line(text),
        other => other.to_string(),
    }
}

/// Writes line breaks and other control characters as escapes.
fn on_one_line(value: &str) -> String {
    let mut line = String::with_capacity(value.len());
    for c in value.chars() {
        if c.is_control() {
            // A text takes all that is written to it.
            let _ = write!(line, "{}", c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

fn key(name: &str) -> String {
    name.replace(' ', "_")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PLAIN: Form = Form::Columns { colours: false };

    fn table() -> Table<3> {
        let mut table = Table::new(["id", "last used", "name"]);
        table.row([1.into(), Value::Null, "shop".into()]);
        table.row([20.into(), "now".into(), "a\tb\nc".into()]);
        table
    }

    #[test]
    fn terminal_gets_aligned_columns() {
        assert_eq!(
            table().text(PLAIN),
            "id  last used  name\n1   -          shop\n20  now        a\\tb\\nc\n"
        );
    }

    #[test]
    fn head_is_bold_only_with_colours() {
        let text = table().text(Form::Columns { colours: true });

        assert!(text.starts_with("\u{1b}[1mid  last used  name\u{1b}[0m\n"), "{text}");
        assert!(!table().text(PLAIN).contains('\u{1b}'));
    }

    #[test]
    fn long_value_widens_no_other_row() {
        let mut table = Table::new(["a", "b"]);
        table.row(["x".repeat(100).into(), 1.into()]);
        table.row(["y".into(), 2.into()]);

        let text = table.text(PLAIN);

        assert_eq!(text.lines().last().unwrap().len(), 60 + 2 + 1);
    }

    #[test]
    fn pipe_gets_a_line_for_each_row() {
        assert_eq!(
            table().text(Form::Tabs),
            "id\tlast used\tname\n1\t-\tshop\n20\tnow\ta\\tb\\nc\n"
        );
    }

    #[test]
    fn json_keeps_numbers_and_unescaped_text() {
        let value: Value = serde_json::from_str(&table().text(Form::Json)).unwrap();

        assert_eq!(value[0], json!({ "id": 1, "last_used": null, "name": "shop" }));
        assert_eq!(value[1]["name"], "a\tb\nc");
    }

    #[test]
    fn fields_are_lines_or_an_object() {
        let mut fields = Fields::default();
        fields.add("id", 7);
        fields.add("last used", Value::Null);

        assert_eq!(fields.text(PLAIN), "id         7\nlast used  -\n");
        assert_eq!(fields.text(Form::Tabs), "id\t7\nlast used\t-\n");
        let value: Value = serde_json::from_str(&fields.text(Form::Json)).unwrap();
        assert_eq!(value, json!({ "id": 7, "last_used": null }));
    }
}
