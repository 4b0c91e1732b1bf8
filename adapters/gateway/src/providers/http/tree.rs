//! Tables of the settings whose texts are templates: bodies, queries and headers.

use serde_json::{Map, Value};

use super::template::{Broken, Mode, Template, Templates};

/// A value whose texts are templates.
#[derive(Debug)]
pub(super) enum Tree {
    /// A number or a boolean.
    Fixed(Value),
    /// A text that is exactly one expression, and keeps the type of its value. If the expression has
    /// no value, the entry is left out.
    Typed(Template),
    Text(Template),
    Table(Vec<(String, Tree)>),
    List(Vec<Tree>),
}

/// Compiles trees, and gathers what is wrong, each problem with its place.
pub(super) struct Planter<'a> {
    pub(super) templates: &'a mut Templates,
    pub(super) names: &'a [&'a str],
    pub(super) problems: Vec<(String, String)>,
}

impl Planter<'_> {
    pub(super) fn tree(&mut self, place: &str, value: &Value) -> Option<Tree> {
        Some(match value {
            Value::String(text) => {
                let exact = is_one_expression(text);
                let mode = if exact { Mode::Json } else { Mode::Text };
                let source = if exact { text.trim() } else { text };
                let template = self.template(mode, place, source)?;
                if exact { Tree::Typed(template) } else { Tree::Text(template) }
            }
            Value::Object(table) => Tree::Table(self.table(place, table)?),
            Value::Array(list) => {
                let trees: Vec<Option<Tree>> = list
                    .iter()
                    .enumerate()
                    .map(|(at, value)| self.tree(&format!("{place}[{}]", at + 1), value))
                    .collect();
                Tree::List(trees.into_iter().collect::<Option<_>>()?)
            }
            fixed => Tree::Fixed(fixed.clone()),
        })
    }

    pub(super) fn table(
        &mut self,
        place: &str,
        table: &Map<String, Value>,
    ) -> Option<Vec<(String, Tree)>> {
        let trees: Vec<Option<(String, Tree)>> = table
            .iter()
            .map(|(key, value)| Some((key.clone(), self.tree(&format!("{place}.{key}"), value)?)))
            .collect();
        trees.into_iter().collect()
    }

    pub(super) fn template(&mut self, mode: Mode, place: &str, source: &str) -> Option<Template> {
        let added = self.templates.add(mode, place, source, self.names);
        added.map_err(|problem| self.problems.push((place.to_owned(), problem))).ok()
    }
}

impl Tree {
    /// Returns the value for one SMS, or `None` if the entry is left out.
    pub(super) fn render(
        &self,
        templates: &Templates,
        variables: &minijinja::Value,
    ) -> Result<Option<Value>, Broken> {
        Ok(match self {
            Self::Fixed(value) => Some(value.clone()),
            Self::Text(template) => Some(templates.render(template, variables)?.into()),
            Self::Typed(template) => {
                let json = templates.render(template, variables)?;
                let value: Value = serde_json::from_str(&json).map_err(|_| template.broken())?;
                Some(value).filter(|value| !value.is_null())
            }
            Self::Table(entries) => Some(Value::Object(table(entries, templates, variables)?)),
            Self::List(trees) => {
                let mut list = Vec::with_capacity(trees.len());
                for tree in trees {
                    list.extend(tree.render(templates, variables)?);
                }
                Some(Value::Array(list))
            }
        })
    }

    /// Calls `see` with each template.
    pub(super) fn templates<'a>(&'a self, see: &mut impl FnMut(&'a Template)) {
        match self {
            Self::Fixed(_) => {}
            Self::Typed(template) | Self::Text(template) => see(template),
            Self::Table(entries) => entries.iter().for_each(|(_, tree)| tree.templates(see)),
            Self::List(trees) => trees.iter().for_each(|tree| tree.templates(see)),
        }
    }

    /// Whether the tree is one value, or a list of such values, as forms and queries have.
    pub(super) fn is_flat(&self) -> bool {
        match self {
            Self::Fixed(_) | Self::Typed(_) | Self::Text(_) => true,
            Self::List(trees) => {
                trees.iter().all(|tree| !matches!(tree, Self::Table(_) | Self::List(_)))
            }
            Self::Table(_) => false,
        }
    }
}

fn table(
    entries: &[(String, Tree)],
    templates: &Templates,
    variables: &minijinja::Value,
) -> Result<Map<String, Value>, Broken> {
    let mut table = Map::new();
    for (key, tree) in entries {
        if let Some(value) = tree.render(templates, variables)? {
            table.insert(key.clone(), value);
        }
    }
    Ok(table)
}

/// Returns the pairs for one SMS, of a form, a query or headers. The values of a list share a name.
pub(super) fn pairs<'a>(
    entries: &'a [(String, Tree)],
    templates: &Templates,
    variables: &minijinja::Value,
) -> Result<Vec<(&'a str, String)>, Broken> {
    let mut pairs = Vec::with_capacity(entries.len());
    for (key, tree) in entries {
        match tree.render(templates, variables)? {
            None => {}
            Some(Value::Array(list)) => {
                pairs.extend(list.iter().map(|value| (key.as_str(), plain(value))));
            }
            Some(value) => pairs.push((key, plain(&value))),
        }
    }
    Ok(pairs)
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

/// Whether a text is `{{ … }}` and nothing else.
fn is_one_expression(text: &str) -> bool {
    let inner = text.trim().strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
    inner.is_some_and(|inner| !inner.contains("{{") && !inner.contains("}}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    const NAMES: &[&str] = &["text", "count", "missing"];

    fn rendered(value: &Value, text: &str) -> Value {
        let mut templates = Templates::new();
        let mut planter = Planter { templates: &mut templates, names: NAMES, problems: Vec::new() };
        let tree = planter.tree("body", value).unwrap();
        assert_eq!(planter.problems, []);
        let variables = minijinja::Value::from(BTreeMap::from([
            ("text", minijinja::Value::from(text)),
            ("count", minijinja::Value::from(3)),
        ]));
        tree.render(&templates, &variables).unwrap().unwrap()
    }

    #[test]
    fn text_that_is_one_expression_keeps_its_type() {
        let body = json!({
            "n": "{{ count }}", "s": "{{ text }}", "t": "{{ count }} ", "u": "n {{ count }}",
            "v": "{{ count }}{{ count }}", "w": "{{ missing }}", "x": "{{ count | string }}",
            "list": ["{{ text }}", "{{ missing }}", {"deep": "{{ count > 2 }}"}], "y": 1, "z": null,
        });

        let expected = json!({
            "n": 3, "s": "7", "t": 3, "u": "n 3", "v": "33", "x": "3",
            "list": ["7", {"deep": true}], "y": 1, "z": null,
        });
        assert_eq!(rendered(&body, "7"), expected);
    }

    #[test]
    fn each_problem_has_its_place() {
        let mut templates = Templates::new();
        let mut planter = Planter { templates: &mut templates, names: NAMES, problems: Vec::new() };

        let tree = planter.tree("body", &json!({"a": {"b": ["{{ text }}", "{{ x }}"]}, "c": "{{"}));

        assert!(tree.is_none());
        let places: Vec<&str> = planter.problems.iter().map(|(place, _)| place.as_str()).collect();
        assert_eq!(places, ["body.a.b[2]", "body.c"]);
    }

    #[test]
    fn pairs_repeat_the_name_of_a_list() {
        let mut templates = Templates::new();
        let mut planter = Planter { templates: &mut templates, names: NAMES, problems: Vec::new() };
        let table = json!({"a": ["1", 2, "{{ missing }}"], "b": true, "c": "{{ missing }}"});
        let entries = planter.table("query", table.as_object().unwrap()).unwrap();

        let pairs =
            pairs(&entries, &templates, &minijinja::Value::from(BTreeMap::from([("x", 1)])))
                .unwrap();

        let expected = [("a", "1"), ("a", "2"), ("b", "true")];
        assert_eq!(pairs, expected.map(|(name, value)| (name, value.to_owned())));
        assert!(entries.iter().all(|(_, tree)| tree.is_flat()));
        let nested = [json!({"a": 1}), json!([[1]]), json!([{"a": 1}])];
        for value in nested {
            let mut planter =
                Planter { templates: &mut templates, names: NAMES, problems: Vec::new() };
            assert!(!planter.tree("x", &value).unwrap().is_flat(), "{value}");
        }
    }
}
