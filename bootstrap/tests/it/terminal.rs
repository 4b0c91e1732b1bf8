//! The start of `messager` as a person on a terminal sees it.

use std::{
    fs::File,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use super::support::{ACCEPTED, Binary, Folder, eventually, free_port, get, post};

/// What was shown on the terminal, and what was written to standard output.
struct Seen {
    terminal: String,
    stdout: String,
}

/// Runs `messager` with standard error on a terminal until it has sent an SMS, and ends it by Ctrl-C.
async fn run_on_a_terminal(folder: &Path, port: u16, settings: &[(&str, &str)]) -> Seen {
    let metrics_port = free_port();
    let (shown, stdout) = (folder.join("shown"), folder.join("stdout"));
    let command = format!("exec {} >stdout", env!("CARGO_BIN_EXE_messager"));
    let mut script = Command::new("script")
        .args(["--quiet", "--return", "--flush", "--command", &command, "/dev/null"])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("APP_PORT", port.to_string())
        .env("PROMETHEUS_SERVER_PORT", metrics_port.to_string())
        .envs(settings.iter().copied())
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(File::create(&shown).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("ready", Duration::from_secs(30), async || {
        (get(metrics_port, "/readyz").await?.0 == 200).then_some(())
    })
    .await;
    assert_eq!(post(port, "79990000001").await, (200, ACCEPTED.to_owned()));
    let text = || std::fs::read_to_string(&stdout).unwrap_or_default();
    eventually("an SMS", Duration::from_secs(30), async || {
        text().contains("SMS to 79990000001").then_some(())
    })
    .await;

    script.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    assert!(script.wait().unwrap().success());
    Seen { terminal: std::fs::read_to_string(&shown).unwrap(), stdout: text() }
}

#[tokio::test]
async fn start_shows_where_everything_is_and_a_readable_log() {
    let (folder, port) = (Folder::new(), free_port());

    let seen = run_on_a_terminal(folder.path(), port, &[("NO_COLOR", "1")]).await;

    let Seen { terminal, stdout } = &seen;
    for part in [
        &format!("http://localhost:{port}/\r\n"),
        &format!("http://localhost:{port}/docs"),
        "/metrics",
        "messager.db",
        "without an API key",
        "Ctrl-C",
        "the schema is up to date",
        "stopped",
    ] {
        assert!(terminal.contains(part), "{part} is not in:\n{terminal}");
    }
    assert_eq!(terminal.matches("migration").count(), 1, "migrations are one line:\n{terminal}");
    assert!(!terminal.contains('\x1b') && !terminal.contains("\"level\""), "{terminal}");
    assert!(stdout.lines().all(|line| line.starts_with("SMS to ")), "{stdout}");
}

#[tokio::test]
async fn colours_are_shown_unless_no_color_is_set() {
    let folder = Folder::new();

    let seen = run_on_a_terminal(folder.path(), free_port(), &[]).await;

    assert!(seen.terminal.contains("\x1b[1mMessager"), "{}", seen.terminal);
}

#[tokio::test]
async fn log_format_setting_applies_with_and_without_a_terminal() {
    let folder = Folder::new();
    let json = run_on_a_terminal(folder.path(), free_port(), &[("LOG_FORMAT", "json")]).await;
    for line in json.terminal.lines().filter(|line| *line != "^C") {
        let line = line.trim_start_matches("^C");
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }

    let text = Binary::new("messager", folder.path()).env("LOG_FORMAT", "text").ready().await;
    let log = text.stderr();
    assert!(log.contains(" INFO ") && !log.contains("\"level\""), "{log}");
    assert!(!log.contains("Ctrl-C") && !log.contains('\x1b'), "{log}");
}
