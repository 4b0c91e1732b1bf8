//! Reads settings one by one and gathers what is wrong with them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::NonZeroU16,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use adapters_http::Hosts;

use super::{
    mask::without_password,
    setting::{Setting, Values},
};
use crate::environment::is_readable_by_others;

const DAY: Duration = Duration::from_secs(86_400);

/// Reads settings by the name under which they are declared.
///
/// A method that returns `None` for a value that is set has noted a problem.
pub(super) struct Reader<'a> {
    pub(super) lookup: &'a dyn Fn(&str) -> Option<String>,
    pub(super) problems: Vec<String>,
    /// What is allowed and probably not meant.
    pub(super) remarks: Vec<String>,
    /// The defaults that depend on other settings, by name.
    pub(super) defaults: BTreeMap<&'static str, String>,
    /// The names that were asked for.
    pub(super) read: BTreeSet<&'static str>,
    /// The variables that a file names, which are no settings.
    pub(super) variables: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self {
            lookup,
            problems: Vec::new(),
            remarks: Vec::new(),
            defaults: BTreeMap::new(),
            read: BTreeSet::new(),
            variables: BTreeSet::new(),
        }
    }

    /// Returns a value as it is. An empty one counts as not set.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        self.read.insert(Setting::of(name).name);
        (self.lookup)(name).filter(|value| !value.trim().is_empty())
    }

    /// The same for a name that is not declared as a setting.
    pub(super) fn undeclared(&self, name: &str) -> Option<String> {
        (self.lookup)(name).filter(|value| !value.trim().is_empty())
    }

    pub(super) fn text_or_default(&mut self, name: &str) -> String {
        self.text(name).unwrap_or_else(|| Setting::of(name).default.to_owned())
    }

    pub(super) fn is_set(&mut self, name: &str) -> bool {
        self.text(name).is_some()
    }

    /// Says what holds if a setting is not set, for one whose default depends on others.
    pub(super) fn defaults_to(&mut self, name: &str, default: &str) {
        self.defaults.insert(Setting::of(name).name, default.to_owned());
    }

    pub(super) fn problem(&mut self, name: &str, problem: &str) {
        self.problems.push(format!("{name} {problem}"));
    }

    /// Reads a value, or the default.
    pub(super) fn parsed<T>(&mut self, name: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let set = self.text(name);
        let default = self.defaults.get(name).map_or(Setting::of(name).default, |it| it.as_str());
        let value = set.unwrap_or_else(|| default.to_owned());
        let parsed = parse(value.trim());
        if parsed.is_none() {
            let (value, rule) = (without_password(&value), Setting::of(name).values.rule());
            self.problem(name, &format!("is {value:?}, and must be {rule}"));
        }
        parsed
    }

    /// Reads a value that may be missing; `None` if it is.
    pub(super) fn optional<T>(
        &mut self,
        name: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        self.text(name)?;
        self.parsed(name, parse)
    }

    /// Reads a value that may be missing and is never shown; so its errors must not show it.
    pub(super) fn secret<T: FromStr<Err: fmt::Display>>(&mut self, name: &str) -> Option<T> {
        let read = self.text(name)?.trim().parse();
        read.map_err(|error| self.problem(name, &format!("cannot be used: {error}"))).ok()
    }

    /// Reads a URL that may be missing. A bad one is not shown: it may hold a password.
    pub(super) fn url(&mut self, name: &str) -> Option<http::Uri> {
        let url = self.text(name)?.trim().parse::<http::Uri>().ok().filter(|url| {
            matches!(url.scheme_str(), Some("http" | "https"))
                && url.host().is_some_and(|host| !host.is_empty())
                && has_good_port(url)
        });
        if url.is_none() {
            self.problem(
                name,
                "must begin with http:// or https:// and a host, and a port may be 1 to 65535",
            );
        }
        url
    }

    /// Reads the paths of a certificate and its key, which go together. Notes if every user of the
    /// machine can read the key. The files may be missing.
    pub(super) fn certificate(
        &mut self,
        certificate: &str,
        key: &str,
    ) -> Option<(PathBuf, PathBuf)> {
        let read = |text: String| PathBuf::from(text.trim());
        match (self.text(certificate).map(read), self.text(key).map(read)) {
            (Some(certificate), Some(path)) => {
                if is_readable_by_others(&path) {
                    self.remarks.push(format!(
                        "{key} names {}, which every user of this machine can read: take that \
                         right away, such as with chmod o-r",
                        path.display()
                    ));
                }
                Some((certificate, path))
            }
            (None, None) => None,
            (_, found) => {
                let missing = if found.is_none() { key } else { certificate };
                self.problem(missing, &format!("is missing: {certificate} and {key} go together"));
                None
            }
        }
    }

    /// Reads one of the words that are declared.
    pub(super) fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> Option<T> {
        let declared = Setting::of(name).values;
        let is_declared = |words: &[&str]| choices.iter().map(|it| it.0).eq(words.iter().copied());
        debug_assert!(
            matches!(declared, Values::OneOf(words) if is_declared(words)),
            "{name} is declared with other words"
        );
        self.parsed(name, |text| {
            choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice)
        })
    }

    pub(super) fn boolean(&mut self, name: &str) -> Option<bool> {
        self.choice(name, &[("true", true), ("false", false)])
    }

    /// Reads a whole number within the bounds that are declared.
    pub(super) fn number<T: FromStr>(&mut self, name: &str) -> Option<T> {
        let (Values::Number(min, max) | Values::Seconds(min, max) | Values::Days(min, max)) =
            Setting::of(name).values
        else {
            panic!("{name} is declared as a number");
        };
        self.parsed(name, |text| {
            text.parse().ok().filter(|number| (min..=max).contains(number))?;
            text.parse().ok()
        })
    }

    pub(super) fn seconds(&mut self, name: &str) -> Option<Duration> {
        self.number(name).map(|seconds: u32| Duration::from_secs(seconds.into()))
    }

    pub(super) fn days(&mut self, name: &str) -> Option<Duration> {
        self.number(name).map(|days: u32| DAY * days)
    }

    pub(super) fn hosts(&mut self, name: &str) -> Option<Hosts> {
        self.parsed(name, |text| text.parse().ok())
    }

    /// Reads a port that may be missing.
    pub(super) fn port(&mut self, name: &str) -> Option<u16> {
        self.optional(name, |text| text.parse().ok()).map(NonZeroU16::get)
    }
}

/// Whether a URL has no port or a valid one.
///
/// `Uri` treats an invalid port as a missing one, and the client would use the scheme's default.
fn has_good_port(url: &http::Uri) -> bool {
    let authority = url.authority().map_or("", |it| it.as_str());
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let port = host.strip_prefix(url.host().unwrap_or_default()).unwrap_or_default();
    port.is_empty() || port.strip_prefix(':').is_some_and(|it| it.parse::<NonZeroU16>().is_ok())
}
