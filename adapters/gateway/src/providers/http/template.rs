//! Templates of the settings, compiled once.

use minijinja::{
    Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value, syntax::SyntaxConfig,
    value::ValueKind,
};

use crate::request::encoded;

/// The templates of one gateway.
#[derive(Debug)]
pub(super) struct Templates {
    compiled: Environment<'static>,
}

/// A template that was compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(String);

/// How values are written. The text around them is written as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// As they are.
    Text,
    /// Percent-encoded, for the path and the query of a URL.
    Url,
    /// As JSON, so that a number stays a number. What is undefined or none is written as `null`.
    Json,
}

/// A template failed for one SMS. The error contains no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the template {place} cannot be rendered")]
pub(super) struct Broken {
    place: String,
}

impl Broken {
    pub(super) fn place(&self) -> &str {
        &self.place
    }
}

impl Templates {
    pub(super) fn new() -> Self {
        let mut compiled = Environment::new();
        // A line feed at the end may be part of what is signed.
        let mut syntax = SyntaxConfig::builder();
        compiled.set_syntax(
            syntax.keep_trailing_newline(true).build().expect("the delimiters are the usual ones"),
        );
        compiled.set_undefined_behavior(UndefinedBehavior::Lenient);
        compiled.set_formatter(write_value);
        Self { compiled }
    }

    /// Compiles a template, which may use the variables `names`. Returns what is wrong with it.
    pub(super) fn add(
        &mut self,
        mode: Mode,
        place: &str,
        source: &str,
        names: &[&str],
    ) -> Result<Template, String> {
        let name = format!("{}{place}", mode.prefix());
        self.compiled
            .add_template_owned(name.clone(), source.to_owned())
            .map_err(|error| format!("is not a template: {}", described(&error)))?;
        let used = self.variables(&name);
        let unknown = used.iter().find(|variable| !names.contains(&variable.as_str()));
        match unknown {
            None => Ok(Template(name)),
            Some(variable) => {
                let names = names.join(", ");
                Err(format!("uses {variable}, which does not exist; the variables are {names}"))
            }
        }
    }

    /// Whether the template uses the variable.
    pub(super) fn uses(&self, template: &Template, variable: &str) -> bool {
        self.variables(&template.0).iter().any(|used| used == variable)
    }

    pub(super) fn render(&self, template: &Template, variables: &Value) -> Result<String, Broken> {
        let rendered =
            self.compiled.get_template(&template.0).and_then(|it| it.render(variables.clone()));
        rendered.map_err(|_| template.broken())
    }

    /// Renders a template for values that are no secret, and says what is wrong with it.
    pub(super) fn try_render(
        &self,
        template: &Template,
        variables: &Value,
    ) -> Result<String, String> {
        let rendered =
            self.compiled.get_template(&template.0).and_then(|it| it.render(variables.clone()));
        rendered.map_err(|error| format!("cannot be rendered: {}", described(&error)))
    }

    fn variables(&self, name: &str) -> Vec<String> {
        let Ok(template) = self.compiled.get_template(name) else { return Vec::new() };
        let is_function = |used: &str| self.compiled.globals().any(|(name, _)| name == used);
        let used = template.undeclared_variables(false);
        let mut used: Vec<String> = used.into_iter().filter(|it| !is_function(it)).collect();
        used.sort_unstable();
        used
    }
}

impl Template {
    pub(super) fn place(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, place)| place)
    }

    pub(super) fn broken(&self) -> Broken {
        Broken { place: self.place().to_owned() }
    }
}

impl Mode {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Text => "text:",
            Self::Url => "url:",
            Self::Json => "json:",
        }
    }

    /// The mode is part of the name, because a template can change its escaping with `autoescape`.
    fn of(name: &str) -> Self {
        if name.starts_with(Self::Url.prefix()) {
            Self::Url
        } else if name.starts_with(Self::Json.prefix()) {
            Self::Json
        } else {
            Self::Text
        }
    }
}

fn write_value(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let written = match Mode::of(state.name()) {
        Mode::Json => out.write_str(&json_of(value).to_string()),
        _ if value.is_undefined() || value.is_none() => Ok(()),
        Mode::Text => out.write_str(&text_of(value)),
        Mode::Url => out.write_str(&encoded(&text_of(value))),
    };
    written.map_err(|_| ErrorKind::WriteFailure.into())
}

/// Returns a value of a template as JSON. What is neither a number nor a boolean is a text.
fn json_of(value: &Value) -> serde_json::Value {
    let text = text_of(value);
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => serde_json::Value::Null,
        ValueKind::Bool => value.is_true().into(),
        ValueKind::Number => serde_json::from_str(&text).unwrap_or_else(|_| text.into()),
        _ => text.into(),
    }
}

/// Returns a value as text. Booleans are written as in JSON and not as in Python, as Jinja does.
fn text_of(value: &Value) -> String {
    match value.kind() {
        ValueKind::Bool => value.is_true().to_string(),
        _ => value.to_string(),
    }
}

fn described(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), ToOwned::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const NAMES: &[&str] = &["text", "count", "missing", "params"];

    fn rendered(mode: Mode, source: &str, text: &str) -> String {
        let mut templates = Templates::new();
        let template = templates.add(mode, "body.to", source, NAMES).unwrap();
        let params = Value::from(BTreeMap::from([("entity", Value::from("7"))]));
        let variables = Value::from(BTreeMap::from([
            ("text", Value::from(text)),
            ("count", Value::from(3)),
            ("params", params),
        ]));
        templates.render(&template, &variables).unwrap()
    }

    #[test]
    fn values_are_written_for_where_they_stand() {
        assert_eq!(rendered(Mode::Text, "<{{ text }}>{{ missing }}\n", "a\"b"), "<a\"b>\n");
        assert_eq!(rendered(Mode::Url, "/a/{{ text }}?b={{ count }}", "x/y&z"), "/a/x%2Fy%26z?b=3");
        assert_eq!(rendered(Mode::Json, "{{ text }}", "a\"b\n"), r#""a\"b\n""#);
        assert_eq!(rendered(Mode::Json, "{{ text }}", "12"), r#""12""#);
        assert_eq!(rendered(Mode::Json, "{{ text }}", "true"), r#""true""#);
        assert_eq!(rendered(Mode::Json, "{{ count }}", ""), "3");
        assert_eq!(rendered(Mode::Json, "{{ count > 2 }}", ""), "true");
        assert_eq!(rendered(Mode::Text, "{{ count > 2 }}", ""), "true");
        assert_eq!(rendered(Mode::Url, "{{ count > 3 }}", ""), "false");
        assert_eq!(rendered(Mode::Json, "{{ missing }}", ""), "null");
        assert_eq!(rendered(Mode::Json, "{{ params.nothing }}", ""), "null");
        assert_eq!(rendered(Mode::Json, "{{ params.entity }}", ""), r#""7""#);
    }

    #[test]
    fn template_cannot_turn_the_escaping_off() {
        for source in [
            "{% autoescape false %}{{ text }}{% endautoescape %}",
            "{{ text | safe }}",
            "{% set other %}{{ text }}{% endset %}{{ text }}",
        ] {
            assert_eq!(rendered(Mode::Url, source, "a/b"), "a%2Fb", "{source}");
        }
    }

    #[test]
    fn wrong_template_is_described() {
        let mut templates = Templates::new();
        let mut problem = |source| templates.add(Mode::Text, "url", source, NAMES).unwrap_err();

        let syntax = problem("a\n{{ text");
        let variable = problem("{{ phnoe }}{{ text }}");

        assert!(
            syntax.starts_with("is not a template: ")
                && syntax.ends_with("(line 2 of the template)"),
            "{syntax}"
        );
        assert_eq!(
            variable,
            "uses phnoe, which does not exist; the variables are text, count, missing, params"
        );
    }

    #[test]
    fn broken_template_names_its_place_and_no_value() {
        let mut templates = Templates::new();
        let template = templates.add(Mode::Text, "body.n", "{{ text | int }}", NAMES).unwrap();
        let variables = Value::from(BTreeMap::from([("text", Value::from("79991234567x"))]));

        let broken = templates.render(&template, &variables).unwrap_err();
        let tried = templates.try_render(&template, &variables).unwrap_err();

        assert_eq!(broken.to_string(), "the template body.n cannot be rendered");
        assert!(tried.starts_with("cannot be rendered: "), "{tried}");
        assert!(templates.uses(&template, "text") && !templates.uses(&template, "count"));
    }

    proptest! {
        #[test]
        fn value_never_leaves_its_place(text in any::<String>()) {
            let url = rendered(Mode::Url, "{{ text }}", &text);
            let json = rendered(Mode::Json, "{{ text }}", &text);

            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte);
            prop_assert!(url.bytes().all(is_plain), "{url}");
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }
}
