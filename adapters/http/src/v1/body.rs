//! What requests say.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::Duration,
};

use application::ports::Receipt;
use domain::{Code, CodeLength, CustomLimit, MessageId, Metadata, Number, PhoneNumber, SendLimits};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use super::{
    problem::{Fault, Problem, ProblemKind},
    settings::V1Settings,
    typed,
};
use crate::numbering;

/// Seconds.
pub(crate) const TTL: std::ops::RangeInclusive<u64> = 60..=3600;
pub(crate) const CODE_LENGTH: std::ops::RangeInclusive<u64> = 4..=10;
pub(crate) const MAX_LOCALE: usize = 100;
pub(crate) const MAX_METADATA: usize = 16;
pub(crate) const MAX_METADATA_KEY: usize = 40;
pub(crate) const MAX_METADATA_VALUE: usize = 256;
pub(crate) const MAX_LIMIT_KEY: usize = 128;

/// Characters of a phone or a code, with all that stands between its digits.
pub(crate) const MAX_TYPED: usize = 64;

const DIGITS: &str = "must be a text of 4 to 10 digits";
const MISSING: &str = "is missing";
const TWICE: &str = "stands twice";
const PAIRS: &str = "must have at most 16 members, with names of 1 to 40 characters";

/// A verification that is asked for.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) recipient: Recipient,
    pub(super) locale: Option<String>,
    pub(super) ttl: Option<Duration>,
    pub(super) code_length: Option<CodeLength>,
    pub(super) template: Option<String>,
    pub(super) ip: Option<IpAddr>,
    pub(super) metadata: Option<Metadata>,
    pub(super) limits: Vec<(CustomLimit, String)>,
}

#[derive(Debug)]
pub(super) enum Recipient {
    /// Under which rules is to be seen.
    Number(Number),
    /// No numbering plan need have it, and no rule holds for it.
    Test(PhoneNumber, Code),
}

/// Members as they come: each is judged by itself, so that all that is wrong is told at once.
/// Unknown ones are passed over, and `null` is as good as none.
#[derive(Deserialize)]
struct StartMembers<'a> {
    phone: Option<Value>,
    locale: Option<Value>,
    ttl: Option<Value>,
    code_length: Option<Value>,
    template: Option<Value>,
    ip: Option<Value>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    limits: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct CheckMembers {
    phone: Option<Value>,
    code: Option<Value>,
}

#[derive(Deserialize)]
struct ReceiptMembers {
    id: Option<Value>,
    status: Option<Value>,
}

/// The members of an object as they come: a [`Value`] would keep the last of two of one name.
struct Pairs(Vec<(String, Value)>);

#[derive(Default)]
struct Faults(Vec<Fault>);

pub(super) fn start(body: &[u8], settings: &V1Settings) -> Result<Start, Problem> {
    let members: StartMembers = members(body)?;
    let mut faults = Faults::default();
    let recipient = faults.required("/phone", members.phone, |phone| recipient(phone, settings));
    let locale = faults.optional("/locale", members.locale, locale);
    let ttl = faults.optional("/ttl", members.ttl, ttl);
    let code_length = faults.optional("/code_length", members.code_length, code_length);
    let template = faults.optional("/template", members.template, |template| {
        let known = text(template).filter(|name| settings.templates.has(name));
        known.map(str::to_owned).ok_or("must be the name of a template that is set up")
    });
    let read_ip = |ip: &Value| {
        let ip = text(ip).and_then(|text| text.trim().parse().ok());
        // An IPv4 address may come in its IPv6 form, and one /64 has them all.
        ip.map(|ip: IpAddr| ip.to_canonical()).ok_or("must be an IPv4 or IPv6 address")
    };
    let ip = if settings.require_ip {
        faults.required("/ip", members.ip, read_ip)
    } else {
        faults.optional("/ip", members.ip, read_ip)
    };
    let metadata = members.metadata.map(pairs).transpose()?;
    let metadata = metadata.and_then(|pairs| faults.metadata(pairs.as_ref()));
    let limits = members.limits.map(pairs).transpose()?;
    let limits = limits.map(|keys| faults.limits(keys.as_ref(), &settings.limits));
    match recipient {
        Some(recipient) if faults.0.is_empty() => {
            let limits = limits.unwrap_or_default();
            Ok(Start { recipient, locale, ttl, code_length, template, ip, metadata, limits })
        }
        _ => Err(Problem::invalid(&faults.0)),
    }
}

/// The code that is to be tried.
pub(super) fn check(body: &[u8]) -> Result<Code, Problem> {
    let members: CheckMembers = members(body)?;
    let mut faults = Faults::default();
    faults.required("/code", members.code, code).ok_or_else(|| Problem::invalid(&faults.0))
}

/// The code that is to be tried, and at which phone.
pub(super) fn check_by_phone(
    body: &[u8],
    settings: &V1Settings,
) -> Result<(PhoneNumber, Code), Problem> {
    let members: CheckMembers = members(body)?;
    let mut faults = Faults::default();
    let phone = faults.required("/phone", members.phone, |value| {
        let text = typed_phone(value)?;
        if let Some((phone, _)) = settings.test_number(numbering::as_written(&text)) {
            return Ok(phone.clone());
        }
        numbering::sent_to(&text, settings.default_region).map_err(numbering::InvalidNumber::detail)
    });
    let code = faults.required("/code", members.code, code);
    phone.zip(code).ok_or_else(|| Problem::invalid(&faults.0))
}

/// What a gateway tells, and of which message.
pub(super) fn receipt(body: &[u8]) -> Result<(MessageId, Receipt), Problem> {
    let members: ReceiptMembers = members(body)?;
    let mut faults = Faults::default();
    let message = faults.required("/id", members.id, |id| {
        text(id).and_then(|id| id.parse().ok()).ok_or("must be the id of a message, a UUID")
    });
    let receipt = faults.required("/status", members.status, |status| {
        let said = |receipt: &Receipt| text(status) == Some(receipt.as_str());
        Receipt::ALL.into_iter().find(said).ok_or("must be delivered or undelivered")
    });
    message.zip(receipt).ok_or_else(|| Problem::invalid(&faults.0))
}

impl V1Settings {
    fn test_number(&self, phone: Option<PhoneNumber>) -> Option<(&PhoneNumber, &Code)> {
        self.test_numbers.get_key_value(&phone?)
    }
}

impl Faults {
    fn optional<T>(
        &mut self,
        pointer: &str,
        value: Option<Value>,
        read: impl FnOnce(&Value) -> Result<T, &'static str>,
    ) -> Option<T> {
        read(&value?).map_err(|rule| self.0.push(Fault::at(pointer, rule))).ok()
    }

    fn required<T>(
        &mut self,
        pointer: &str,
        value: Option<Value>,
        read: impl FnOnce(&Value) -> Result<T, &'static str>,
    ) -> Option<T> {
        if value.is_none() {
            self.0.push(Fault::at(pointer, MISSING));
        }
        self.optional(pointer, value, read)
    }

    fn metadata(&mut self, pairs: Option<&Pairs>) -> Option<Metadata> {
        const VALUE: &str = "must be a text of at most 256 characters";
        let pairs = pairs.filter(|Pairs(pairs)| {
            let named = |(name, _): &(String, Value)| {
                (1..=MAX_METADATA_KEY).contains(&name.chars().count())
            };
            pairs.len() <= MAX_METADATA && pairs.iter().all(named)
        });
        let Some(pairs) = pairs else {
            self.0.push(Fault::at("/metadata", PAIRS));
            return None;
        };
        let fits = |text: &&str| text.chars().count() <= MAX_METADATA_VALUE;
        let texts = self.members("/metadata", pairs, VALUE, |value| text(value).filter(fits));
        let json = serde_json::to_string(&texts).expect("texts are JSON");
        Some(Metadata::new(json))
    }

    fn limits(
        &mut self,
        keys: Option<&Pairs>,
        settings: &SendLimits,
    ) -> Vec<(CustomLimit, String)> {
        const VALUE: &str = "must be a text of 1 to 128 characters, none of them a control one";
        let named = |name: &String| -> Option<CustomLimit> {
            name.parse().ok().filter(|name| settings.custom.contains_key(name))
        };
        let known = keys.filter(|Pairs(keys)| keys.iter().all(|(name, _)| named(name).is_some()));
        let Some(keys) = known else {
            self.0.push(Fault::at("/limits", "must have the names of limits that are set up only"));
            return Vec::new();
        };
        let fits = |text: &&str| {
            (1..=MAX_LIMIT_KEY).contains(&text.chars().count()) && !text.contains(char::is_control)
        };
        let texts = self.members("/limits", keys, VALUE, |value| text(value).filter(fits));
        let limit = |(name, key): (&String, &str)| Some((named(name)?, key.to_owned()));
        texts.into_iter().filter_map(limit).collect()
    }

    /// The members of an object that `read` takes; the others break `rule`.
    fn members<'a>(
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
                self.0.push(Fault::at(pointer(object, name), rule));
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
fn pairs(value: &RawValue) -> Result<Option<Pairs>, Problem> {
    let pairs = value.get().starts_with('{').then(|| serde_json::from_str(value.get()));
    pairs.transpose().map_err(|_| ProblemKind::MalformedBody.into())
}

fn members<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
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

fn recipient(value: &Value, settings: &V1Settings) -> Result<Recipient, &'static str> {
    let text = typed_phone(value)?;
    let of_a_test = |phone| {
        let (phone, code) = settings.test_number(phone)?;
        Some(Recipient::Test(phone.clone(), code.clone()))
    };
    if let Some(recipient) = of_a_test(numbering::as_written(&text)) {
        return Ok(recipient);
    }
    let number = numbering::number(&text, settings.default_region)
        .map_err(numbering::InvalidNumber::detail)?;
    Ok(of_a_test(Some(number.phone.clone())).unwrap_or(Recipient::Number(number)))
}

/// Reads a language tag (RFC 5646), also as programs write it: `en_US.UTF-8`.
///
/// Extensions (`-u-ca-gregory`) and private parts (`-x-…`) say nothing of the language and are left
/// out.
fn locale(value: &Value) -> Result<String, &'static str> {
    const RULE: &str = "must be a language tag such as de-AT";
    let tag = text(value).map(str::trim).filter(|tag| tag.len() <= MAX_LOCALE).ok_or(RULE)?;
    let tag = tag.split(['.', '@']).next().unwrap_or_default().replace('_', "-");
    let is_language = |part: &str| {
        (2..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphabetic())
    };
    let is_part = |part: &str| {
        (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    let mut parts = tag.split('-');
    if !parts.next().is_some_and(is_language) || !parts.all(is_part) {
        return Err(RULE);
    }
    let language: Vec<&str> = tag.split('-').take_while(|part| part.len() > 1).collect();
    Ok(language.join("-"))
}

fn ttl(value: &Value) -> Result<Duration, &'static str> {
    let seconds = whole(value).filter(|seconds| TTL.contains(seconds));
    seconds.map(Duration::from_secs).ok_or("must be a whole number from 60 to 3600")
}

fn code_length(value: &Value) -> Result<CodeLength, &'static str> {
    let digits = whole(value).and_then(|digits| usize::try_from(digits).ok());
    digits.and_then(|digits| digits.try_into().ok()).ok_or("must be a whole number from 4 to 10")
}

fn code(value: &Value) -> Result<Code, &'static str> {
    typed(value).and_then(|text| typed::digits(text).parse().ok()).ok_or(DIGITS)
}

fn typed_phone(value: &Value) -> Result<String, &'static str> {
    typed(value).map(typed::phone).ok_or(numbering::InvalidNumber::Form.detail())
}

/// A text that a person may have typed.
fn typed(value: &Value) -> Option<&str> {
    text(value).filter(|text| text.chars().count() <= MAX_TYPED)
}

fn text(value: &Value) -> Option<&str> {
    value.as_str()
}

/// JSON has one kind of number: 600.0 is whole.
fn whole(value: &Value) -> Option<u64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_u64().or_else(|| {
        let number = value.as_f64().filter(|it| it.fract() == 0.0 && (0.0..EXACT).contains(it))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked")]
        Some(number as u64)
    })
}
