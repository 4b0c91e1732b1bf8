//! The meaning of answers, as the settings give it.

use std::time::Duration;

use application::ports::{Accepted, SendError};
use http::StatusCode;
use serde_json::{Map, Value};

use super::{
    path::Path,
    settings::{Table, plain},
};
use crate::{answer::Answer, fields::Fields, wire};

/// The form of the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Form,
    Text,
}

/// An answer whose body was read in its form.
#[derive(Debug)]
pub(super) struct Content<'a> {
    status: StatusCode,
    /// `None` if the body is not in the form that the settings name. Of a text it is null.
    value: Option<Value>,
    text: Option<&'a str>,
}

/// A rule: if all conditions hold, the answer has this outcome.
#[derive(Debug)]
pub(super) struct Rule {
    /// Empty if the status does not matter.
    statuses: Vec<(u16, u16)>,
    conditions: Vec<Condition>,
    outcome: Outcome,
    /// The place of the seconds to wait.
    retry_after: Option<Path>,
}

#[derive(Debug)]
enum Condition {
    Equals(Path, Vec<String>),
    Contains(Path, String),
    Exists(Path, bool),
    BodyContains(String),
}

/// The outcome that a rule gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Accepted,
    Rejected,
    Unroutable,
    Throttled,
    Misconfigured,
    Unavailable,
    Ambiguous,
}

/// Whether a rule fits an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    Yes,
    No,
    /// The status fits, and the body that would decide cannot be read.
    Unknown,
}

const KEYS: &[&str] =
    &["status", "path", "equals", "contains", "exists", "body_contains", "outcome", "retry_after"];

const OUTCOMES: &[(&str, Outcome)] = &[
    ("accepted", Outcome::Accepted),
    ("rejected", Outcome::Rejected),
    ("unroutable", Outcome::Unroutable),
    ("throttled", Outcome::Throttled),
    ("misconfigured", Outcome::Misconfigured),
    ("unavailable", Outcome::Unavailable),
    ("ambiguous", Outcome::Ambiguous),
];

const NO_CONDITION: &str = "has no condition, so it fits every answer; a condition is status, path with equals, \
                            contains or exists, or body_contains";

const NO_STATUS: &str =
    "must be a status such as 400, a class such as 4xx, a range such as 400-429, or a list of them";

impl<'a> Content<'a> {
    pub(super) fn of(answer: &'a Answer<'a>, format: Format) -> Self {
        let text = answer.text();
        let value = match format {
            Format::Json => answer.json(),
            Format::Form => text.map(pairs_as_json),
            Format::Text => text.map(|_| Value::Null),
        };
        Self { status: answer.status, value, text }
    }

    pub(super) fn at(&self, path: &Path) -> Option<String> {
        path.text(self.value.as_ref()?)
    }

    /// Returns the word that follows `mark` in the body.
    pub(super) fn after(&self, mark: &str) -> Option<String> {
        let (_, rest) = self.text?.split_once(mark)?;
        let is_end = |char: char| char.is_whitespace() || ",;\"'<&".contains(char);
        let word = rest.trim_start().split(is_end).next()?;
        (!word.is_empty()).then(|| word.to_owned())
    }
}

impl Rule {
    /// Reads the rules for answers in this form, and notes what is wrong with them. They are counted
    /// from 1, as routes are.
    pub(super) fn all(fields: &mut Fields<'_>, value: &Value, format: Format) -> Vec<Self> {
        let Some(list) = value.as_array() else {
            fields.problem("rules", "must be a list of tables");
            return Vec::new();
        };
        let read = |(at, value): (usize, &Value)| {
            let place = format!("rules[{}]", at + 1);
            Self::read(&mut Table::of(fields, &place, value, KEYS)?, format)
        };
        list.iter().enumerate().filter_map(read).collect()
    }

    fn read(table: &mut Table<'_, '_, '_>, format: Format) -> Option<Self> {
        let statuses = match table.value("status") {
            None => Vec::new(),
            Some(value) => statuses(value).unwrap_or_else(|| {
                table.problem("status", NO_STATUS);
                Vec::new()
            }),
        };
        let conditions = conditions(table);
        if table.value("status").is_none() && conditions.is_empty() {
            table.wrong(NO_CONDITION);
        }
        for key in ["path", "retry_after"] {
            if table.value(key).is_some() && format == Format::Text {
                table.problem(key, "needs an answer in JSON or as a form");
            }
        }
        let retry_after = table.path("retry_after");
        let outcome = table.required("outcome")?;
        let outcome = OUTCOMES.iter().find(|(word, _)| *word == outcome);
        if outcome.is_none() {
            let words: Vec<&str> = OUTCOMES.iter().map(|(word, _)| *word).collect();
            table.problem("outcome", &format!("must be one of: {}", words.join(", ")));
        }
        let outcome = outcome?.1;
        if retry_after.is_some() && !matches!(outcome, Outcome::Throttled | Outcome::Unavailable) {
            table.problem("retry_after", "needs the outcome throttled or unavailable");
        }
        Some(Self { statuses, conditions, outcome, retry_after })
    }

    /// Returns the outcome of an answer that the rule fits. `code` goes into the text, if it is a symbol.
    pub(super) fn judge(
        &self,
        answer: &Answer<'_>,
        content: &Content<'_>,
        code: &str,
        accepted: Accepted,
    ) -> Result<Accepted, SendError> {
        let named = || wire::pause(&content.at(self.retry_after.as_ref()?)?);
        self.outcome.of(answer, code, named().or_else(|| answer.retry_after()), accepted)
    }

    pub(super) fn fits(&self, content: &Content<'_>) -> Fit {
        let status = content.status.as_u16();
        let has_status = self.statuses.is_empty()
            || self.statuses.iter().any(|(from, to)| (*from..=*to).contains(&status));
        if !has_status {
            return Fit::No;
        }
        let fits: Vec<Fit> = self.conditions.iter().map(|it| it.fits(content)).collect();
        if fits.contains(&Fit::No) {
            Fit::No
        } else if fits.contains(&Fit::Unknown) {
            Fit::Unknown
        } else {
            Fit::Yes
        }
    }
}

impl Condition {
    fn fits(&self, content: &Content<'_>) -> Fit {
        if let Self::BodyContains(part) = self {
            return content.text.map_or(Fit::Unknown, |text| Fit::of(text.contains(part)));
        }
        let Some(value) = &content.value else { return Fit::Unknown };
        Fit::of(match self {
            Self::Equals(path, texts) => {
                let found = path.find(value).and_then(plain);
                found.is_some_and(|found| texts.contains(&found))
            }
            Self::Contains(path, part) => {
                path.find(value).and_then(plain).is_some_and(|found| found.contains(part))
            }
            Self::Exists(path, expected) => {
                path.find(value).is_some_and(|found| !found.is_null()) == *expected
            }
            Self::BodyContains(_) => false,
        })
    }
}

impl Fit {
    const fn of(fits: bool) -> Self {
        if fits { Self::Yes } else { Self::No }
    }
}

impl Outcome {
    fn of(
        self,
        answer: &Answer<'_>,
        code: &str,
        retry_after: Option<Duration>,
        accepted: Accepted,
    ) -> Result<Accepted, SendError> {
        Err(match self {
            Self::Accepted => return Ok(accepted),
            Self::Rejected => answer.rejected(code),
            Self::Unroutable => answer.unroutable(code),
            Self::Throttled => SendError::Throttled { detail: answer.detail(code), retry_after },
            Self::Misconfigured => answer.misconfigured(code),
            Self::Unavailable => {
                SendError::Unavailable { detail: answer.detail(code), retry_after }
            }
            Self::Ambiguous => answer.ambiguous(code),
        })
    }
}

/// Returns the pairs of a form as a table of texts. Of two pairs with one name, the last counts.
pub(super) fn pairs_as_json(form: &str) -> Value {
    let pairs = form_urlencoded::parse(form.trim().as_bytes());
    let table: Map<String, Value> =
        pairs.map(|(name, value)| (name.into_owned(), value.into_owned().into())).collect();
    Value::Object(table)
}

fn conditions(table: &mut Table<'_, '_, '_>) -> Vec<Condition> {
    let mut conditions = Vec::new();
    let path = table.path("path");
    for key in ["equals", "contains", "exists"] {
        if table.value(key).is_some() && table.value("path").is_none() {
            table.problem("path", &format!("is missing: {key} needs it"));
        }
    }
    let tests = ["equals", "contains", "exists"].iter().any(|key| table.value(key).is_some());
    if table.value("path").is_some() && !tests {
        table.problem("path", "needs one of: equals, contains, exists");
    }
    let equals = table.texts("equals");
    let contains = table.text("contains");
    let exists = table.value("exists").map(Value::as_bool);
    if exists == Some(None) {
        table.problem("exists", "must be true or false");
    }
    if let Some(path) = path {
        conditions.extend(equals.map(|texts| Condition::Equals(path.clone(), texts)));
        conditions.extend(contains.map(|part| Condition::Contains(path.clone(), part)));
        conditions.extend(exists.flatten().map(|it| Condition::Exists(path, it)));
    }
    conditions.extend(table.text("body_contains").map(Condition::BodyContains));
    conditions
}

fn statuses(value: &Value) -> Option<Vec<(u16, u16)>> {
    match value {
        Value::Array(list) if !list.is_empty() => {
            list.iter().map(|value| status_range(&plain(value)?)).collect()
        }
        value => Some(vec![status_range(&plain(value)?)?]),
    }
}

/// Parses `404`, `4xx` or `400-429`.
fn status_range(text: &str) -> Option<(u16, u16)> {
    let status = |text: &str| text.trim().parse().ok().filter(|it| (100..=999).contains(it));
    if let Some(class) = text.strip_suffix("xx") {
        let class: u16 = class.parse().ok().filter(|class| (1..=9).contains(class))?;
        return Some((100 * class, 100 * class + 99));
    }
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let (from, to) = (status(from)?, status(to)?);
    (from <= to).then_some((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_a_number_a_class_or_a_range() {
        for (text, expected) in [
            ("404", Some((404, 404))),
            ("4xx", Some((400, 499))),
            ("400-429", Some((400, 429))),
            ("400 - 429", Some((400, 429))),
            ("99", None),
            ("1000", None),
            ("0xx", None),
            ("10xx", None),
            ("429-400", None),
            ("4x", None),
            ("ok", None),
            ("", None),
        ] {
            assert_eq!(status_range(text), expected, "{text:?}");
        }
    }

    #[test]
    fn form_is_a_table_of_texts() {
        let table = pairs_as_json("status=OK&id=a%20b&id=c\n");

        assert_eq!(table, serde_json::json!({"status": "OK", "id": "c"}));
    }
}
