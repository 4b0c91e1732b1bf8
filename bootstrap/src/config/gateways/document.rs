//! A TOML file as a tree of values that know their lines.

use std::ops::Range;

use serde_json::Number;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// A value, and the line of its key. An element of a list has its own line.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Number(Number),
    Boolean(bool),
    List(Vec<Node>),
    Table(Table),
    /// A date, a number that is infinite or too large: no setting has such a value.
    Other,
}

/// Entries in the order of the file.
pub(super) type Table = Vec<(String, Node)>;

/// Parses a file. Also returns what is wrong with it, each with its line; never a part of the text,
/// which may be a secret.
pub(super) fn parse(text: &str) -> (Table, Vec<(usize, String)>) {
    let lines = Lines::of(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    let problem = |error: &toml::de::Error| {
        (lines.of_span(error.span()), format!("this is no TOML: {}", error.message()))
    };
    (lines.table(document.get_ref()), errors.iter().map(problem).collect())
}

pub(super) fn find<'a>(table: &'a Table, key: &str) -> Option<&'a Node> {
    table.iter().find(|(known, _)| known == key).map(|(_, node)| node)
}

impl Value {
    /// Says what kind of value it is, for the report of a bad one.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Number(_) => "a number",
            Self::Boolean(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other => "a date or a number that is too large",
        }
    }
}

/// The offset at which each line begins.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self([0].into_iter().chain(ends.map(|(at, _)| at + 1)).collect())
    }

    /// Returns the line of a byte, counted from 1.
    fn at(&self, byte: usize) -> usize {
        self.0.partition_point(|begin| *begin <= byte)
    }

    fn of_span(&self, span: Option<Range<usize>>) -> usize {
        self.at(span.map_or(0, |span| span.start))
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        let mut entries: Vec<_> = table.iter().collect();
        // The parser sorts them by name.
        entries.sort_by_key(|(key, _)| key.span().start);
        let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
            let key: &Spanned<toml::de::DeString<'_>> = key;
            let node = Node { line: self.at(key.span().start), value: self.value(value.get_ref()) };
            (key.get_ref().to_string(), node)
        };
        entries.into_iter().map(entry).collect()
    }

    fn value(&self, value: &DeValue<'_>) -> Value {
        let item = |item: &Spanned<DeValue<'_>>| Node {
            line: self.at(item.span().start),
            value: self.value(item.get_ref()),
        };
        match value {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Boolean(is) => Value::Boolean(*is),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Value::Other, |number| Value::Number(number.into())),
            DeValue::Float(number) => {
                let number = number.as_str().parse().ok().and_then(Number::from_f64);
                number.map_or(Value::Other, Value::Number)
            }
            DeValue::Datetime(_) => Value::Other,
            DeValue::Array(items) => Value::List(items.iter().map(item).collect()),
            DeValue::Table(table) => Value::Table(self.table(table)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_keep_their_order_and_have_the_lines_of_their_keys() {
        let (table, problems) = parse(
            "# head\n[b.z]\nkey = \"text\"\nn = 1_000\nf = 0.5\n\n[b.a]\nlist = [\n  1,\n  true,\n]\n\
             [[route]]\nx = { y = 'z' }\n[[route]]\nd = 2026-11-30\nh = 0xff\n",
        );

        assert_eq!(problems, []);
        let Some(Node { value: Value::Table(b), .. }) = find(&table, "b") else { panic!() };
        let shown: Vec<_> = b.iter().map(|(key, node)| (key.as_str(), node.line)).collect();
        assert_eq!(shown, [("z", 2), ("a", 7)]);
        let Value::Table(z) = &b[0].1.value else { panic!() };
        let shown: Vec<_> = z.iter().map(|(key, node)| (key.as_str(), node.line)).collect();
        assert_eq!(shown, [("key", 3), ("n", 4), ("f", 5)]);
        assert!(matches!(&z[1].1.value, Value::Number(number) if number.as_u64() == Some(1_000)));
        assert!(matches!(&z[2].1.value, Value::Number(number) if number.as_f64() == Some(0.5)));
        let Value::Table(a) = &b[1].1.value else { panic!() };
        let Value::List(list) = &a[0].1.value else { panic!() };
        assert_eq!((list[0].line, list[1].line), (9, 10));
        let Some(Node { value: Value::List(routes), .. }) = find(&table, "route") else { panic!() };
        assert_eq!((routes[0].line, routes[1].line), (12, 14));
        let Value::Table(second) = &routes[1].value else { panic!() };
        assert!(matches!(second[0].1.value, Value::Other));
        assert!(
            matches!(&second[1].1.value, Value::Number(number) if number.as_u64() == Some(255))
        );
    }

    #[test]
    fn every_syntax_error_is_reported_with_its_line_and_without_the_text() {
        let (_, problems) = parse("a = \"sesame\nb = 1\nb = 2\n[c\nd = sesame\n");

        let lines: Vec<usize> = problems.iter().map(|it| it.0).collect();
        assert!(lines.contains(&1) && lines.contains(&3) && lines.len() >= 3, "{problems:?}");
        assert!(problems.iter().all(|it| !it.1.contains("sesame")), "{problems:?}");
    }
}
