//! `messager doctor`: checks everything that a process needs, and says what to do.

mod broker;
mod certificates;
mod database;
mod findings;
mod gateways;

use std::{io::Write, process::ExitCode};

use adapters_persistence::{Database, Part};

use self::findings::Findings;
use super::{Output, ensure_exists, table::Form};
use crate::config::{Config, Effective};

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Args {
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
    /// Parts of the service that run with the database user of these settings, separated by commas.
    /// Their privileges are checked. By default, the user runs all parts.
    #[arg(long, value_delimiter = ',')]
    part: Vec<Role>,
}

/// A part of the service with a database user of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    Api,
    Processor,
    Consumer,
}

/// Prints what it finds. Exits with 1 if a finding keeps the service from working.
///
/// It changes only a row of `write_probe`.
pub fn execute(args: &Args) -> ExitCode {
    let mut findings = Findings::default();
    let Effective { config, remarks, .. } = Effective::read();
    for remark in remarks {
        findings.warn("settings", remark, "");
    }
    match config {
        Ok(config) => match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(examine(&config, &args.part, &mut findings)),
            Err(error) => findings.fail(
                "process",
                format!("the asynchronous runtime cannot start: {error}"),
                "",
            ),
        },
        Err(invalid) => {
            for problem in invalid.problems() {
                findings.fail("settings", problem, "correct it; docs/settings.md has the rule");
            }
        }
    }
    let text = findings.text(Form::of(args.json));
    if write!(Output, "{text}").is_err() || findings.has_failures() {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn examine(config: &Config, roles: &[Role], findings: &mut Findings) {
    findings.ok("settings", "a process starts with them");
    for warning in config.warnings() {
        findings.warn("settings", warning, "");
    }
    if let Err(error) = config.check_all_in_one() {
        let advice =
            "only `messager` needs both; ignore this if api, processor and consumer run apart";
        findings.warn("settings", error.problems().join("; "), advice);
    }
    if let Some(files) = &config.api.tls
        && (roles.is_empty() || roles.contains(&Role::Api))
    {
        certificates::examine(files, findings);
    }
    if let Err(error) = ensure_exists(config) {
        findings.fail("database", error.to_string(), "start the service once, or run it there");
        gateways::examine(config, None, findings).await;
        return;
    }
    let database = Database::connect_lazily(&config.database, "messager doctor", 1);
    let usable = database::examine(config, &database, &parts(config, roles), findings).await;
    broker::examine(config, &database, findings).await;
    // Only consumers and operators may read the state of the gateways.
    let may_read = roles.is_empty() || roles.contains(&Role::Consumer);
    gateways::examine(config, (usable && may_read).then_some(&database), findings).await;
    // A failure to close changes no finding.
    let _ = database.close().await;
}

/// Returns the parts of the database that the roles write to. Without roles, all of them do.
fn parts(config: &Config, roles: &[Role]) -> Vec<Part> {
    let all = [Role::Api, Role::Processor, Role::Consumer];
    let roles = if roles.is_empty() { &all } else { roles };
    let needs_queue = roles.iter().any(|role| *role != Role::Api);
    let queue = (needs_queue && !config.relay.broker.is_kafka()).then_some(Part::Queue);
    let part = |role: &Role| match role {
        Role::Api => Part::Api,
        Role::Processor => Part::Processor,
        Role::Consumer => Part::Consumer,
    };
    roles.iter().map(part).chain(queue).collect()
}
