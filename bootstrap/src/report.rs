//! What a process says on standard error without its log: before that is set up, when it panics,
//! and at its end.
//!
//! A service says it as one JSON object a line, as its log is in release mode. To people it speaks
//! in text: on the command line, in debug mode, and on a terminal until the log is set up.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, IsTerminal, Write},
    panic::{self, PanicHookInfo},
    thread,
};

use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value};

use crate::config::Mode;

/// Whom a process speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Whoever typed the command.
    Person,
    /// What gathers the logs of a service.
    Log,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    Json,
}

impl Form {
    /// `mode` is none if the settings cannot be used.
    pub(crate) fn of(audience: Audience, mode: Option<Mode>) -> Self {
        match (audience, mode) {
            (Audience::Person, _) | (Audience::Log, Some(Mode::Debug)) => Self::Text,
            (Audience::Log, None) if io::stderr().is_terminal() => Self::Text,
            (Audience::Log, Some(Mode::Release) | None) => Self::Json,
        }
    }

    /// Says what ends the process.
    pub(crate) fn error(self, message: &str) {
        match self {
            // Standard error may be gone, and then there is nobody to tell.
            Self::Text => drop(writeln!(io::stderr(), "{message}")),
            Self::Json => write_line(&line(message, [])),
        }
    }

    /// Has panics reported in this form.
    pub(crate) fn report_panics(self) {
        if self == Self::Json {
            panic::set_hook(Box::new(|info| write_line(&panicked(info))));
        }
    }
}

fn panicked(info: &PanicHookInfo<'_>) -> String {
    let message = info.payload_as_str().unwrap_or("of an unknown kind");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = thread::current().name().unwrap_or("unnamed").to_owned();
    // Where RUST_BACKTRACE asks for one.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured)
        .then(|| ("backtrace", backtrace.to_string()));
    let fields = [("place", place), ("thread", thread)].into_iter().chain(backtrace);
    line(&format!("a task panicked: {message}"), fields)
}

/// As the log has its lines.
fn line(message: &str, fields: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let common = [
        ("timestamp", Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true)),
        ("level", "ERROR".to_owned()),
        ("message", message.to_owned()),
    ];
    let all = common.into_iter().chain(fields);
    let object: Map<String, Value> = all
        .chain([("target", "bootstrap".to_owned())])
        .map(|(k, v)| (k.to_owned(), v.into()))
        .collect();
    Value::from(object).to_string()
}

/// In one piece, so that no other thread's line gets into it.
fn write_line(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_in_release_mode_speaks_json() {
        assert_eq!(Form::of(Audience::Log, Some(Mode::Release)), Form::Json);
        assert_eq!(Form::of(Audience::Log, Some(Mode::Debug)), Form::Text);
        assert_eq!(Form::of(Audience::Person, Some(Mode::Release)), Form::Text);
        assert_eq!(Form::of(Audience::Person, None), Form::Text);
    }

    #[test]
    fn a_panic_is_one_line_with_its_place() {
        let (send, said) = std::sync::mpsc::channel();
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| send.send(panicked(info)).unwrap()));
        let panics = || panic!("on purpose,\nas a test");
        let ended = thread::Builder::new().name("tested".to_owned()).spawn(panics).unwrap().join();
        panic::set_hook(before);

        assert!(ended.is_err());
        // Other tests may have panicked meanwhile.
        let line = said.iter().find(|line| line.contains("on purpose")).unwrap();
        let object: Value = serde_json::from_str(&line).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(object["message"], "a task panicked: on purpose,\nas a test");
        assert_eq!(object["thread"], "tested");
        assert!(object["place"].as_str().unwrap().contains("report.rs:"));
    }

    #[test]
    fn a_message_of_several_lines_is_one_line() {
        let line = line("the settings:\n  \"A\" is bad", [("place", "here".to_owned())]);

        let object: Value = serde_json::from_str(&line).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(object["message"], "the settings:\n  \"A\" is bad");
        assert_eq!((&object["level"], &object["place"]), (&"ERROR".into(), &"here".into()));
    }
}
