//! Paths to a value in JSON: `data.0.id`, or the JSON pointer `/data/0/id`.

use std::fmt;

use serde_json::Value;

use crate::answer::scalar;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path(Vec<String>);

impl Path {
    /// Parses a path: keys and places in lists, separated by dots; or a JSON pointer (RFC 6901),
    /// which begins with a slash and can name keys with dots.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let steps: Vec<String> = match text.strip_prefix('/') {
            Some(pointer) => {
                pointer.split('/').map(|key| key.replace("~1", "/").replace("~0", "~")).collect()
            }
            None => text.split('.').map(str::to_owned).collect(),
        };
        steps.iter().all(|step| !step.is_empty()).then_some(Self(steps))
    }

    pub(super) fn find<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(value, |value, step| match value {
            Value::Array(list) => list.get(step.parse::<usize>().ok()?),
            value => value.get(step),
        })
    }

    /// Returns the text or the number at this place, as text.
    pub(super) fn text(&self, value: &Value) -> Option<String> {
        scalar(self.find(value)?)
    }
}

/// Shows the keys, separated by dots.
impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(path: &str, expected: Option<&str>) {
        let value = json!({
            "id": 7, "data": [{"id": "a"}, {"id": "b"}], "a.b": {"c/d": "e"}, "0": "zero",
            "none": null, "yes": true,
        });
        let found = Path::parse(path).unwrap().text(&value);
        assert_eq!(found.as_deref(), expected, "{path}");
    }

    #[test]
    fn path_names_keys_and_places_in_lists() {
        check("id", Some("7"));
        check("data.1.id", Some("b"));
        assert_eq!(Path::parse("/data/1/id").unwrap().to_string(), "data.1.id");
        check("/data/0/id", Some("a"));
        check("/a.b/c~1d", Some("e"));
        check("0", Some("zero"));
        for path in ["data", "data.2.id", "data.x", "data.-1.id", "id.x", "none", "yes", "other"] {
            check(path, None);
        }
    }

    #[test]
    fn empty_steps_are_no_path() {
        for text in ["", ".", "a.", ".a", "a..b", "/", "/a//b"] {
            assert_eq!(Path::parse(text), None, "{text:?}");
        }
    }
}
