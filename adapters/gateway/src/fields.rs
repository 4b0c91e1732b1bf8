//! Reads the settings of one gateway, and gathers all that is wrong with them.

use std::{collections::BTreeMap, fmt, time::Duration};

use http::Uri;
use serde_json::{Map, Value};

use crate::{
    client::Target,
    request::BaseUrl,
    spec::{Field, FieldKind},
};

/// The settings of one gateway.
///
/// Each method reads a field by the name and the kind under which it is declared. A field that is
/// missing has its declared default. A method that returns `None` for a required field, or for a bad
/// value, has noted a problem.
#[derive(Debug)]
pub struct Fields<'a> {
    declared: &'static [Field],
    table: &'a Map<String, Value>,
    problems: Vec<FieldProblem>,
}

/// A problem with one field. It does not repeat the value, which may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct FieldProblem {
    pub field: String,
    pub problem: String,
}

/// A secret text, such as a password. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    #[cfg(test)]
    pub(crate) fn of(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl<'a> Fields<'a> {
    pub(crate) fn new(declared: &'static [Field], table: &'a Map<String, Value>) -> Self {
        Self { declared, table, problems: Vec::new() }
    }

    /// Returns all problems that were noted.
    pub(crate) fn into_problems(self) -> Vec<FieldProblem> {
        self.problems
    }

    /// Whether the table has the field.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.set(name).is_some()
    }

    /// Reads a text without control characters.
    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        self.read(name, FieldKind::Text, plain_text)
    }

    pub(crate) fn secret(&mut self, name: &str) -> Option<Secret> {
        self.read(name, FieldKind::Secret, |value| plain_text(value).map(Secret))
    }

    pub(crate) fn url(&mut self, name: &str) -> Option<BaseUrl> {
        self.read(name, FieldKind::Url, |value| BaseUrl::parse(value.as_str()?))
    }

    /// Reads a whole URL. A user and a password in it become `Authorization: Basic`.
    pub(crate) fn address(&mut self, name: &str) -> Option<Target> {
        self.read(name, FieldKind::Address, |value| {
            let url: Uri = value.as_str()?.trim().parse().ok()?;
            Target::of(url)
        })
    }

    /// Reads a whole number within the declared bounds.
    pub(crate) fn number(&mut self, name: &str) -> Option<u64> {
        let FieldKind::Number(min, max) = self.field(name).kind else {
            panic!("{name} is declared as a number");
        };
        self.read(name, FieldKind::Number(min, max), |value| whole_number(value, min, max))
    }

    /// Reads a number of whole seconds within the declared bounds.
    pub(crate) fn seconds(&mut self, name: &str) -> Option<Duration> {
        let FieldKind::Seconds(min, max) = self.field(name).kind else {
            panic!("{name} is declared as seconds");
        };
        let seconds =
            self.read(name, FieldKind::Seconds(min, max), |value| whole_number(value, min, max));
        seconds.map(Duration::from_secs)
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Option<bool> {
        self.read(name, FieldKind::Boolean, |value| match value {
            Value::Bool(boolean) => Some(*boolean),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        })
    }

    /// Reads one of the declared words.
    pub(crate) fn one_of(&mut self, name: &str) -> Option<&'static str> {
        let FieldKind::OneOf(words) = self.field(name).kind else {
            panic!("{name} is declared as one of some words");
        };
        self.read(name, FieldKind::OneOf(words), |value| {
            words.iter().copied().find(|word| Some(*word) == value.as_str())
        })
    }

    /// Reads a table of texts. It is empty if the field is missing.
    pub(crate) fn table(&mut self, name: &str) -> BTreeMap<String, String> {
        let table = self.read(name, FieldKind::Table, |value| {
            let entries = structured(value)?;
            let entries = entries.as_object()?.iter();
            entries.map(|(key, value)| Some((key.clone(), plain_text(value)?))).collect()
        });
        table.unwrap_or_default()
    }

    /// Reads a value of any structure, which the caller checks. A text that holds JSON is parsed.
    pub(crate) fn value(&mut self, name: &str) -> Option<Value> {
        self.read(name, FieldKind::Any, structured)
    }

    /// Notes a problem of a field, such as one that follows from another field.
    pub(crate) fn problem(&mut self, name: &str, problem: impl Into<String>) {
        self.problems.push(FieldProblem { field: name.to_owned(), problem: problem.into() });
    }

    /// Notes a problem for each key that none of `declared` names.
    pub(crate) fn refuse_unknown(&mut self, declared: &[&[Field]]) {
        let known = || declared.iter().flat_map(|fields| fields.iter()).map(|field| field.name);
        for key in self.table.keys().filter(|key| known().all(|name| name != key.as_str())) {
            let names: Vec<&str> = known().collect();
            let problem = format!("is not a field; the fields are {}", names.join(", "));
            self.problems.push(FieldProblem { field: key.clone(), problem });
        }
    }

    fn field(&self, name: &str) -> &'static Field {
        let found = self.declared.iter().find(|field| field.name == name);
        found.unwrap_or_else(|| panic!("{name} is declared"))
    }

    /// Returns a value that is set. An empty text counts as not set, as in the environment.
    fn set(&self, name: &str) -> Option<&'a Value> {
        self.table.get(name).filter(|it| it.as_str().is_none_or(|text| !text.trim().is_empty()))
    }

    fn read<T>(
        &mut self,
        name: &str,
        kind: FieldKind,
        parse: impl Fn(&Value) -> Option<T>,
    ) -> Option<T> {
        let field = self.field(name);
        assert!(field.kind == kind, "{name} is declared as another kind");
        let default = Value::from(field.default);
        let value = match self.set(name) {
            Some(value) => value,
            None if !field.default.is_empty() => &default,
            None => {
                if field.required {
                    self.problem(name, "is missing");
                }
                return None;
            }
        };
        let parsed = parse(value);
        if parsed.is_none() {
            self.problem(name, format!("must be {}", kind.rule()));
        }
        parsed
    }
}

/// Control characters would end a header or a line, and no key contains one.
fn plain_text(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.trim().to_owned(),
        // A sender or a key of digits may be written without quotes.
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    (!text.chars().any(char::is_control)).then_some(text)
}

fn whole_number(value: &Value, min: u64, max: u64) -> Option<u64> {
    let number = match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.filter(|number| (min..=max).contains(number))
}

/// Returns a table or a list, which a text may hold as JSON.
fn structured(value: &Value) -> Option<Value> {
    match value {
        Value::String(text) => serde_json::from_str(text).ok(),
        other => Some(other.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DECLARED: &[Field] = &[
        Field::required("account", FieldKind::Text, "The account."),
        Field::required("token", FieldKind::Secret, "The token."),
        Field::with_default("url", FieldKind::Url, "https://api.example", "The base URL."),
        Field::optional("from", FieldKind::Text, "The sender."),
        Field::with_default("retries", FieldKind::Number(1, 9), "3", "How often."),
        Field::with_default("wait", FieldKind::Seconds(0, 60), "5", "How long."),
        Field::with_default("unicode", FieldKind::Boolean, "false", "Whether."),
        Field::with_default("kind", FieldKind::OneOf(&["sms", "voice"]), "sms", "The kind."),
        Field::optional("headers", FieldKind::Table, "More headers."),
        Field::optional("rules", FieldKind::Any, "The rules."),
    ];

    fn problems(table: &Value, read: impl Fn(&mut Fields<'_>)) -> Vec<String> {
        let mut fields = Fields::new(DECLARED, table.as_object().unwrap());
        read(&mut fields);
        fields.into_problems().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn missing_fields_have_their_defaults() {
        let table = json!({"account": " AC1 ", "token": "s", "from": ""});
        let mut fields = Fields::new(DECLARED, table.as_object().unwrap());

        assert_eq!(fields.text("account").as_deref(), Some("AC1"));
        assert_eq!(fields.secret("token").unwrap().expose(), "s");
        assert_eq!(fields.url("url").unwrap().authority(), "api.example");
        assert_eq!(fields.text("from"), None);
        assert!(!fields.is_set("from") && fields.is_set("token"));
        assert_eq!(fields.number("retries"), Some(3));
        assert_eq!(fields.seconds("wait"), Some(Duration::from_secs(5)));
        assert_eq!(fields.boolean("unicode"), Some(false));
        assert_eq!(fields.one_of("kind"), Some("sms"));
        assert_eq!(fields.table("headers"), BTreeMap::new());
        assert_eq!(fields.value("rules"), None);
        assert_eq!(fields.into_problems(), []);
    }

    #[test]
    fn texts_may_hold_numbers_and_tables() {
        let table = json!({
            "from": 1234, "retries": "9", "wait": 60, "unicode": "true", "kind": "voice",
            "headers": r#"{"x-a":"1"}"#, "rules": "[1]",
        });
        let mut fields = Fields::new(DECLARED, table.as_object().unwrap());

        assert_eq!(fields.text("from").as_deref(), Some("1234"));
        assert_eq!(fields.number("retries"), Some(9));
        assert_eq!(fields.seconds("wait"), Some(Duration::from_secs(60)));
        assert_eq!(fields.boolean("unicode"), Some(true));
        assert_eq!(fields.one_of("kind"), Some("voice"));
        assert_eq!(fields.table("headers"), [("x-a".to_owned(), "1".to_owned())].into());
        assert_eq!(fields.value("rules"), Some(json!([1])));
        assert_eq!(fields.into_problems(), []);
    }

    #[test]
    fn all_problems_are_noted_without_the_values() {
        let table = json!({
            "token": "se\ncret", "url": "sms.example", "from": ["a"], "retries": 10, "wait": -1,
            "unicode": "yes", "kind": "fax", "headers": {"x": {}}, "rules": "[", "form": "x",
        });

        let problems = problems(&table, |fields| {
            fields.text("account");
            fields.secret("token");
            fields.url("url");
            fields.text("from");
            fields.number("retries");
            fields.seconds("wait");
            fields.boolean("unicode");
            fields.one_of("kind");
            fields.table("headers");
            fields.value("rules");
            fields.problem("from", "is too long");
            fields.refuse_unknown(&[DECLARED]);
        });

        assert_eq!(
            problems,
            [
                "account is missing",
                "token must be a text without control characters",
                "url must be a URL that begins with http:// or https:// and a host, without \
                 credentials and query",
                "from must be a text without control characters",
                "retries must be a whole number from 1 to 9",
                "wait must be whole seconds from 0 to 60",
                "unicode must be true or false",
                "kind must be one of: sms, voice",
                "headers must be a table of texts",
                "rules must be a table or a list, or a text with one as JSON",
                "from is too long",
                "form is not a field; the fields are account, token, url, from, retries, wait, \
                 unicode, kind, headers, rules",
            ]
        );
    }

    #[test]
    fn secret_is_not_shown() {
        assert_eq!(format!("{:?}", Secret("s".to_owned())), "Secret(…)");
    }
}
