//! `messager gateways check`.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use super::super::Output;
use crate::config::{
    Effective, GatewaysConfig, GatewaysFile, environment, problem_beside_the_file,
};

/// Checks `file`, or the gateways of the settings. Exits with 2 if a process would not start with
/// them.
pub fn check(file: Option<PathBuf>) -> ExitCode {
    let environment = environment();
    let lookup = |name: &str| environment.get(name).map(|(value, _)| value.to_owned());
    let path = lookup("GATEWAYS_FILE").filter(|path| !path.trim().is_empty());
    let beside = if file.is_none() { problem_beside_the_file(&lookup) } else { None };
    match file.or_else(|| path.map(|path| path.trim().into())) {
        Some(path) => {
            let read = GatewaysFile::read(&path, &lookup);
            report(&read, beside.as_ref(), &path.display().to_string())
        }
        None => of_settings(),
    }
}

/// Checks the gateway that `GATEWAY` names, together with all other settings.
fn of_settings() -> ExitCode {
    match Effective::read().config {
        Ok(config) => say(&config.gateways, "GATEWAY"),
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::from(2)
        }
    }
}

fn report(file: &GatewaysFile, beside: Option<&String>, name: &str) -> ExitCode {
    for remark in &file.remarks {
        let _ = writeln!(io::stderr(), "warning: {remark}");
    }
    let problems: Vec<&String> =
        beside.into_iter().chain(&file.problems).chain(&file.missing).collect();
    match &file.gateways {
        Some(gateways) if problems.is_empty() => say(gateways, name),
        _ => {
            for problem in problems {
                let _ = writeln!(io::stderr(), "{problem}");
            }
            ExitCode::from(2)
        }
    }
}

fn say(gateways: &GatewaysConfig, name: &str) -> ExitCode {
    let names: Vec<String> =
        gateways.gateways.iter().map(|it| format!("{} ({})", it.name, it.provider)).collect();
    let (names, routes) = (names.join(", "), gateways.routes.len());
    let written = writeln!(Output, "{name} can be used; gateways: {names}; routes: {routes}");
    written.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}
