//! Parsing of JSON bodies: each member is judged by itself, so that one answer names all faults.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use domain::Code;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use super::{
    problem::{Fault, Problem, ProblemKind},
    typed,
};
use crate::numbering;

/// Characters of a phone or a code, separators included.
pub(super) const MAX_TYPED: usize = 64;

const DIGITS: &str = "must be a string of 4 to 10 digits";
const MISSING: &str = "is required";
const TWICE: &str = "must not appear twice";

/// The members of an object in their order. Unlike a [`Value`], it keeps duplicates.
pub(super) struct Pairs(pub(super) Vec<(String, Value)>);

/// The faults found so far.
#[derive(Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn push(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    pub(super) fn problem(&self) -> Problem {
        Problem::invalid(&self.0)
    }

    /// Parses a member if it is present.
    pub(super) fn optional<T>(
        &mut self,
        pointer: &str,
        value: Option<Value>,
        read: impl FnOnce(&Value) -> Result<T, &'static str>,
    ) -> Option<T> {
        read(&value?).map_err(|rule| self.push(Fault::at(pointer, rule))).ok()
    }

    /// Parses a member that must be present.
    pub(super) fn required<T>(
        &mut self,
        pointer: &str,
        value: Option<Value>,
        read: impl FnOnce(&Value) -> Result<T, &'static str>,
    ) -> Option<T> {
        if value.is_none() {
            self.push(Fault::at(pointer, MISSING));
        }
        self.optional(pointer, value, read)
    }

    /// Returns the members that `read` accepts. Each other one breaks `rule`.
    pub(super) fn members<'a>(
        &mut self,
        object: &str,
        Pairs(members): &'a Pairs,
        rule: &'static str,
        read: impl Fn(&'a Value) -> Option<&'a str>,
    ) -> BTreeMap<&'a String, &'a str> {
        let (mut texts, mut told) = (BTreeMap::new(), BTreeSet::new());
        for (name, value) in members {
            let broken = match read(value) {
                Some(text) => texts.insert(name, text).map(|_| TWICE),
                None => Some(rule),
            };
            // One fault a name, however often the name appears.
            if let Some(rule) = broken
                && told.insert(name)
            {
                self.push(Fault::at(pointer(object, name), rule));
            }
        }
        texts
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = members.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// Parses the members of a value, or returns `None` if it is no object.
///
/// `serde_json` did not validate numbers and escapes in the raw value, so this can fail.
pub(super) fn pairs(value: &RawValue) -> Result<Option<Pairs>, Problem> {
    let pairs = value.get().starts_with('{').then(|| serde_json::from_str(value.get()));
    pairs.transpose().map_err(|_| ProblemKind::MalformedBody.into())
}

/// Parses a body that must be a JSON object.
pub(super) fn members<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    // The whole body: serde_json does not validate the strings of members that it skips.
    let text = std::str::from_utf8(body).map_err(|_| ProblemKind::MalformedBody)?;
    // serde would accept an array as the struct.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(ProblemKind::MalformedBody.into());
    }
    // serde's message may repeat values of the body.
    serde_json::from_str(text).map_err(|_| match serde_json::from_str(text) {
        Ok(pairs) => duplicates(&pairs),
        Err(_) => ProblemKind::MalformedBody.into(),
    })
}

/// Returns the problem of an object that serde refused. All members are optional values, so the
/// cause can only be a duplicate name.
fn duplicates(Pairs(members): &Pairs) -> Problem {
    let mut seen = BTreeSet::new();
    let names: BTreeSet<&String> =
        members.iter().map(|(name, _)| name).filter(|name| !seen.insert(*name)).collect();
    if names.is_empty() {
        return ProblemKind::MalformedBody.into();
    }
    let faults: Vec<Fault> =
        names.into_iter().map(|name| Fault::at(pointer("", name), TWICE)).collect();
    Problem::invalid(&faults)
}

/// Returns the JSON pointer of a member (RFC 6901).
fn pointer(object: &str, name: &str) -> String {
    format!("{object}/{}", name.replace('~', "~0").replace('/', "~1"))
}

pub(super) fn code(value: &Value) -> Result<Code, &'static str> {
    typed(value).and_then(|text| typed::digits(text).parse().ok()).ok_or(DIGITS)
}

pub(super) fn phone_text(value: &Value) -> Result<String, &'static str> {
    typed(value).map(typed::phone).ok_or(numbering::InvalidNumber::Form.detail())
}

/// Returns the string if it is no longer than a person would type.
fn typed(value: &Value) -> Option<&str> {
    text(value).filter(|text| text.chars().count() <= MAX_TYPED)
}

pub(super) fn text(value: &Value) -> Option<&str> {
    value.as_str()
}

/// Returns a whole number. JSON has one number type, so 600.0 is whole.
pub(super) fn whole(value: &Value) -> Option<u64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_u64().or_else(|| {
        let number = value.as_f64().filter(|it| it.fract() == 0.0 && (0.0..EXACT).contains(it))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked")]
        Some(number as u64)
    })
}
