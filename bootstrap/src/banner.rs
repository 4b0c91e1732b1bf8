//! What a person who starts `messager` on a terminal reads first.

use std::{fmt::Write, path::absolute};

use adapters_http::Hosts;
use adapters_persistence::DatabaseSettings;

use crate::config::{Config, GatewayConfig, GatewaysConfig};

/// Returns the text. `metrics_port` is the port that is in use, and `colours` allows escape codes.
pub(crate) fn banner(config: &Config, metrics_port: u16, colours: bool) -> String {
    let scheme = if config.api.tls.is_some() { "https" } else { "http" };
    let api = url(scheme, &config.api.hosts, config.api.port);
    let metrics = url("http", &config.process.metrics_hosts, metrics_port);
    let is_embedded = matches!(config.database, DatabaseSettings::Sqlite(_));
    let page = is_embedded.then(|| ("Try it", format!("{api}/")));
    let is_watched = config.process.operator_password.is_some();
    let operator = is_watched.then(|| ("Operator", format!("{metrics}/operator")));
    let rest = [
        ("API reference", format!("{api}/docs")),
        ("API", listens(&config.api.hosts, config.api.port)),
        ("Metrics", format!("{metrics}/metrics, health on {metrics}/readyz")),
        ("Data", data(&config.database)),
        ("SMS", sms(&config.gateways)),
        ("Access", config.access()),
        ("Stop", "Ctrl-C".to_owned()),
    ];
    let (bold, plain) = if colours { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    let mut text =
        format!("\n{bold}Messager {} is starting.{plain}\n\n", env!("CARGO_PKG_VERSION"));
    for (name, words) in page.into_iter().chain(operator).chain(rest) {
        for (number, line) in wrapped(&words).into_iter().enumerate() {
            let name = if number == 0 { name } else { "" };
            let _ = writeln!(text, "  {bold}{name:13}{plain}  {line}");
        }
    }
    text + "\n"
}

/// The URL by which a program on this machine reaches a server.
fn url(scheme: &str, hosts: &Hosts, port: u16) -> String {
    match (hosts, hosts.from_here().first()) {
        (Hosts::These(_), Some(address)) => {
            format!("{scheme}://{}", std::net::SocketAddr::from((*address, port)))
        }
        _ => format!("{scheme}://localhost:{port}"),
    }
}

fn listens(hosts: &Hosts, port: u16) -> String {
    match hosts {
        Hosts::All => format!("port {port} of every address of this machine, IPv4 and IPv6"),
        hosts => format!("port {port} of {hosts}"),
    }
}

fn data(database: &DatabaseSettings) -> String {
    match database {
        DatabaseSettings::Sqlite(path) => {
            absolute(path).as_ref().unwrap_or(path).display().to_string()
        }
        postgres @ DatabaseSettings::Postgres(_) => postgres.to_string(),
    }
}

fn sms(gateways: &GatewaysConfig) -> String {
    let is_file = !gateways.files.is_empty();
    match gateways.gateways.as_slice() {
        all if all.iter().all(GatewayConfig::is_console) => {
            let by = if is_file { "GATEWAYS_FILE" } else { "GATEWAY=console" };
            format!("printed here with their codes, and not sent ({by})")
        }
        [webhook] if webhook.provider == "webhook" && !is_file => {
            "posted to GATEWAY_URL".to_owned()
        }
        [gateway] if !is_file => format!("sent through {}", gateway.provider),
        all => {
            let names: Vec<&str> = all.iter().map(|gateway| gateway.name.as_str()).collect();
            format!("sent through {} (GATEWAYS_FILE)", names.join(", "))
        }
    }
}

/// Breaks words into lines that fit beside the names on a terminal of 80 columns.
fn wrapped(words: &str) -> Vec<String> {
    const WIDTH: usize = 63;
    let mut lines = vec![String::new()];
    for word in words.split(' ') {
        let line = lines.last_mut().expect("there is a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= WIDTH {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(settings: &[(&str, &str)]) -> String {
        let value = |name: &str| settings.iter().find(|it| it.0 == name).map(|it| it.1.to_owned());
        banner(&Config::from_lookup(&value).unwrap(), 8083, false)
    }

    #[test]
    fn page_of_the_operator_is_named_if_there_is_one() {
        let password = ("OPERATOR_PASSWORD", "a-password-of-the-page");

        let text = shown(&[password]);

        assert!(text.contains("Operator       http://localhost:8083/operator\n"), "{text}");
        assert!(!text.contains(password.1) && !shown(&[]).contains("/operator"), "{text}");
    }

    #[test]
    fn embedded_default_shows_its_page_file_and_access() {
        let shown = shown(&[]);

        let file = absolute("messager.db").unwrap();
        for part in [
            "http://localhost:8080/\n",
            "http://localhost:8080/docs",
            "http://localhost:8083/metrics",
            &file.display().to_string(),
            "printed here with their codes",
            "without an API key",
            "APP_HOST=localhost",
            "Ctrl-C",
        ] {
            assert!(shown.contains(part), "{part} is not in:\n{shown}");
        }
        assert!(!shown.contains('\x1b'));
    }

    #[test]
    fn other_settings_are_shown_as_they_are() {
        let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let shown = shown(&[
            ("POSTGRES_HOST", "db"),
            ("POSTGRES_DB", "messager"),
            ("POSTGRES_USER", "messager"),
            ("POSTGRES_PASSWORD", "secret"),
            ("CODE_PEPPER", &format!("p1:{key}")),
            ("APP_HOST", "::1"),
            ("APP_PORT", "7000"),
            ("API_AUTH", "all"),
            ("GATEWAY", "webhook"),
            ("GATEWAY_URL", "http://user:secret@gateway/secret"),
        ]);

        for part in ["http://[::1]:7000/docs", "posted to GATEWAY_URL", "needs an API key", "db"] {
            assert!(shown.contains(part), "{part} is not in:\n{shown}");
        }
        for hidden in ["secret", key, "Try it"] {
            assert!(!shown.contains(hidden), "{hidden} is in:\n{shown}");
        }
    }

    #[test]
    fn lines_fit_on_a_terminal_of_80_columns() {
        let shown = shown(&[("API_AUTH", "v1"), ("SQLITE_PATH", "/tmp/messager.db")]);

        assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    }
}
