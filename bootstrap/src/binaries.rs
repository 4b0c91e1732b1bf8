//! The binaries that run one role each.
//!
//! `messager` has them too, and runs the one by whose name it is called. So an image or a package
//! needs one file for all four, with a link for each name.

pub mod api;
pub mod consumer;
pub mod processor;

use std::{ffi::OsStr, path::Path, process::ExitCode};

/// Returns the main function of the binary that `program` calls: the path of the program, as its
/// caller gave it. `None` if that is no role.
pub fn called(program: &OsStr) -> Option<fn() -> ExitCode> {
    match Path::new(program).file_name()?.to_str()? {
        "api" => Some(api::main),
        "consumer" => Some(consumer::main),
        "processor" => Some(processor::main),
        _ => None,
    }
}
