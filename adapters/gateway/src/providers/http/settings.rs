//! Tables within the settings of one gateway.

use serde_json::{Map, Value};

use super::path::Path;
use crate::fields::Fields;

/// A table within the settings, at its place.
pub(super) struct Table<'f, 'a, 't> {
    fields: &'f mut Fields<'a>,
    place: String,
    entries: &'t Map<String, Value>,
}

impl<'f, 'a, 't> Table<'f, 'a, 't> {
    /// Takes a value for a table with these keys. Notes a problem if it is none, and for each other
    /// key.
    pub(super) fn of(
        fields: &'f mut Fields<'a>,
        place: &str,
        value: &'t Value,
        keys: &[&str],
    ) -> Option<Self> {
        let Some(entries) = value.as_object() else {
            fields.problem(place, "must be a table");
            return None;
        };
        for key in entries.keys().filter(|key| !keys.contains(&key.as_str())) {
            let problem = format!("is not a field; the fields are {}", keys.join(", "));
            fields.problem(&format!("{place}.{key}"), problem);
        }
        Some(Self { fields, place: place.to_owned(), entries })
    }

    pub(super) fn problem(&mut self, key: &str, problem: &str) {
        self.fields.problem(&format!("{}.{key}", self.place), problem);
    }

    /// Notes a problem of the whole table.
    pub(super) fn wrong(&mut self, problem: &str) {
        self.fields.problem(&self.place, problem);
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) fn value(&self, key: &str) -> Option<&'t Value> {
        self.entries.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        let text = self.value(key)?.as_str();
        if text.is_none() {
            self.problem(key, "must be a text");
        }
        text.map(str::to_owned)
    }

    pub(super) fn required(&mut self, key: &str) -> Option<String> {
        if self.value(key).is_none() {
            self.problem(key, "is missing");
        }
        self.text(key)
    }

    pub(super) fn path(&mut self, key: &str) -> Option<Path> {
        let path = Path::parse(&self.text(key)?);
        if path.is_none() {
            self.problem(key, NO_PATH);
        }
        path
    }

    /// Reads one of some words, the first of which is the default.
    pub(super) fn word<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> T {
        let Some(text) = self.text(key) else { return words[0].1 };
        let found = words.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.problem(key, &format!("must be one of: {}", words.join(", ")));
        }
        found.unwrap_or(&words[0]).1
    }

    /// Reads a text, a number or a boolean, or a list of them, as texts.
    pub(super) fn texts(&mut self, key: &str) -> Option<Vec<String>> {
        let texts = match self.value(key)? {
            Value::Array(list) if !list.is_empty() => list.iter().map(plain).collect(),
            value => plain(value).map(|text| vec![text]),
        };
        if texts.is_none() {
            self.problem(key, "must be a text, a number or a boolean, or a list of them");
        }
        texts
    }
}

pub(super) const NO_PATH: &str =
    "must be a path such as data.0.id, or a JSON pointer such as /data/0/id";

/// Returns a scalar as text.
pub(super) fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(boolean) => Some(boolean.to_string()),
        _ => None,
    }
}
