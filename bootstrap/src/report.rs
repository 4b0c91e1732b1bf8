//! Writes to standard error outside the log: before the log is set up, when the process panics, and
//! at its end.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, Write},
    panic::{self, PanicHookInfo},
    thread,
};

use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value};

use crate::config::LogFormat;

/// The reader of standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// The person who typed a command.
    Person,
    /// The log of a service.
    Log,
}

impl LogFormat {
    /// Reports the error that ends the process.
    pub(crate) fn report_error(self, message: &str) {
        match self {
            // Standard error may be closed.
            Self::Text => drop(writeln!(io::stderr(), "{message}")),
            Self::Json => write_line(&line(message, [])),
        }
    }

    /// Has panics reported in this format.
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
    // RUST_BACKTRACE may ask for one.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured)
        .then(|| ("backtrace", backtrace.to_string()));
    let fields = [("place", place), ("thread", thread)].into_iter().chain(backtrace);
    line(&format!("a task panicked: {message}"), fields)
}

/// Formats a line as the log does.
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

/// Writes a line in one piece, so that no other thread's line is mixed into it.
fn write_line(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_is_one_line_with_its_place() {
        let (send, said) = std::sync::mpsc::channel();
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| send.send(panicked(info)).unwrap()));
        let panics = || panic!("on purpose,\nas a test");
        let ended = thread::Builder::new().name("tested".to_owned()).spawn(panics).unwrap().join();
        panic::set_hook(before);

        assert!(ended.is_err());
        // Other tests may have panicked at the same time.
        let line = said.iter().find(|line| line.contains("on purpose")).unwrap();
        let object: Value = serde_json::from_str(&line).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(object["message"], "a task panicked: on purpose,\nas a test");
        assert_eq!(object["thread"], "tested");
        assert!(object["place"].as_str().unwrap().contains("report.rs:"));
    }

    #[test]
    fn message_of_several_lines_becomes_one_line() {
        let line = line("the settings:\n  \"A\" is bad", [("place", "here".to_owned())]);

        let object: Value = serde_json::from_str(&line).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(object["message"], "the settings:\n  \"A\" is bad");
        assert_eq!((&object["level"], &object["place"]), (&"ERROR".into(), &"here".into()));
    }
}
