//! Finds a field of a gateway in the file, under the names that the user wrote.

use super::{
    document::{Node, Table, Value},
    report::Place,
};

/// The place of a field.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Located {
    /// The line of the innermost key or element on the way to the field.
    pub(super) line: usize,
    /// The header of the table that the field is in, such as `[gateway.main.headers]`.
    pub(super) table: String,
    /// The way from there to the field, such as `x-time`. It is empty for the table itself.
    pub(super) rest: String,
}

impl Located {
    /// Finds `field`, such as `rules[2].outcome`, in the `table` of a gateway that begins at `place`.
    pub(super) fn of(place: Place<'_>, table: &Table, field: &str, text: &str) -> Self {
        let mut located =
            Self { line: place.line, table: place.table.to_owned(), rest: field.to_owned() };
        let mut path = place.table.trim_matches(['[', ']']).to_owned();
        let mut step = key(table, field);
        while let Some(Step { node, name, rest }) = step {
            located.line = node.line;
            if let Name::Key(name) = name {
                path = format!("{path}.{name}");
            }
            if let Some(header) = header(text, node.line, &path) {
                let rest = rest.trim_start_matches('.');
                located.table = header;
                located.rest = match name {
                    Name::Key(_) => rest.to_owned(),
                    Name::Number(number) => format!("{number} {rest}").trim_end().to_owned(),
                };
            }
            step = match &node.value {
                Value::Table(table) => key(table, rest.strip_prefix('.').unwrap_or(rest)),
                Value::List(items) => item(items, rest),
                _ => None,
            };
        }
        located
    }

    /// Returns words about the field.
    pub(super) fn words(&self, problem: &str) -> String {
        if self.rest.is_empty() { problem.to_owned() } else { format!("{} {problem}", self.rest) }
    }
}

/// A step from a value to one in it.
struct Step<'a> {
    node: &'a Node,
    name: Name<'a>,
    /// The way that remains.
    rest: &'a str,
}

#[derive(Clone, Copy)]
enum Name<'a> {
    Key(&'a str),
    /// The place in a list, counted from 1.
    Number(usize),
}

/// Finds the longest key with which `path` begins, because a key may contain dots.
fn key<'a>(table: &'a Table, path: &'a str) -> Option<Step<'a>> {
    let step = |(key, node): &'a (String, Node)| {
        let rest = path.strip_prefix(key.as_str())?;
        let ends = rest.is_empty() || rest.starts_with(['.', '[']);
        ends.then_some(Step { node, name: Name::Key(key), rest })
    };
    table.iter().filter_map(step).min_by_key(|step| step.rest.len())
}

fn item<'a>(items: &'a [Node], path: &'a str) -> Option<Step<'a>> {
    let (number, rest) = path.strip_prefix('[')?.split_once(']')?;
    let number: usize = number.parse().ok()?;
    let node = items.get(number.checked_sub(1)?)?;
    Some(Step { node, name: Name::Number(number), rest })
}

/// Returns the header `[path]` or `[[path]]`, if the line is one. Nothing else of the line is
/// repeated, because it may be a secret.
fn header(text: &str, line: usize, path: &str) -> Option<String> {
    let line = text.lines().nth(line.checked_sub(1)?)?.trim_start();
    [format!("[[{path}]]"), format!("[{path}]")].into_iter().find(|it| line.starts_with(it))
}
