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

/// Characters of a phone or a code, with all that stands between its digits.
pub(super) const MAX_TYPED: usize = 64;

const DIGITS: &str = "must be a text of 4 to 10 digits";
const MISSING: &str = "is missing";
const TWICE: &str = "stands twice";

/// The members of an object as they come: a [`Value`] would keep the last of two of one name.
pub(super) struct Pairs(pub(super) Vec<(String, Value)>);

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

    pub(super) fn optional<T>(
        &mut self,
        pointer: &str,
        value: Option<Value>,
        read: impl FnOnce(&Value) -> Result<T, &'static str>,
    ) -> Option<T> {
        read(&value?).map_err(|rule| self.push(Fault::at(pointer, rule))).ok()
    }

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

    /// The members of an object that `read` takes; the others break `rule`.
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
            // Once for each name, however often it stands there.
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

/// The members of a value that is an object. What `serde_json` skipped it has not read: numbers
/// and escapes in it may be none.
pub(super) fn pairs(value: &RawValue) -> Result<Option<Pairs>, Problem> {
    let pairs = value.get().starts_with('{').then(|| serde_json::from_str(value.get()));
    pairs.transpose().map_err(|_| ProblemKind::MalformedBody.into())
}

pub(super) fn members<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    // All of it: serde_json does not look into the texts of members that it skips.
    let text = std::str::from_utf8(body).map_err(|_| ProblemKind::MalformedBody)?;
    // serde would take an array for the struct.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(ProblemKind::MalformedBody.into());
    }
    // serde's own words may repeat what stands in the body.
    serde_json::from_str(text).map_err(|_| match serde_json::from_str(text) {
        Ok(pairs) => doubled(&pairs),
        Err(_) => ProblemKind::MalformedBody.into(),
    })
}

/// What is wrong with an object of values that is not the one that is expected: all that serde asks
/// of its members is that each stands once.
fn doubled(Pairs(members): &Pairs) -> Problem {
    let mut seen = BTreeSet::new();
    let doubled: BTreeSet<&String> =
        members.iter().map(|(name, _)| name).filter(|name| !seen.insert(*name)).collect();
    if doubled.is_empty() {
        return ProblemKind::MalformedBody.into();
    }
    let faults: Vec<Fault> =
        doubled.into_iter().map(|name| Fault::at(pointer("", name), TWICE)).collect();
    Problem::invalid(&faults)
}

/// Where a member of an object stands (RFC 6901).
fn pointer(object: &str, name: &str) -> String {
    format!("{object}/{}", name.replace('~', "~0").replace('/', "~1"))
}

pub(super) fn code(value: &Value) -> Result<Code, &'static str> {
    typed(value).and_then(|text| typed::digits(text).parse().ok()).ok_or(DIGITS)
}

pub(super) fn phone_text(value: &Value) -> Result<String, &'static str> {
    typed(value).map(typed::phone).ok_or(numbering::InvalidNumber::Form.detail())
}

/// A text that a person may have typed.
fn typed(value: &Value) -> Option<&str> {
    text(value).filter(|text| text.chars().count() <= MAX_TYPED)
}

pub(super) fn text(value: &Value) -> Option<&str> {
    value.as_str()
}

/// JSON has one kind of number: 600.0 is whole.
pub(super) fn whole(value: &Value) -> Option<u64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_u64().or_else(|| {
        let number = value.as_f64().filter(|it| it.fract() == 0.0 && (0.0..EXACT).contains(it))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked")]
        Some(number as u64)
    })
}
