//! The binaries that run one role each.
//!
//! `messager` contains them, too, and runs the one whose name it is started under. So an image or a
//! package needs one file for all four, with a link for each name.

pub mod api;
pub mod consumer;
pub mod processor;

use std::{ffi::OsStr, path::Path, process::ExitCode};

/// Returns the main function of the role that `program` is named after. `program` is the first
/// argument of the process. `None` if no role has that name.
pub fn called(program: &OsStr) -> Option<fn() -> ExitCode> {
    match Path::new(program).file_name()?.to_str()? {
        "api" => Some(api::main),
        "consumer" => Some(consumer::main),
        "processor" => Some(processor::main),
        _ => None,
    }
}
