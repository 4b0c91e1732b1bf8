//! How a process reaches its topic. The relay and the consumer each have such settings.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
};

use super::{reader::Reader, setting::Values};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerConfig {
    /// Kafka's, each as `host:port`. If there are none, the embedded queue is used.
    pub servers: Vec<String>,
    pub topic: String,
}

const SERVERS_RULE: &str = "host:port, several by comma or space";
pub(super) const SERVERS: Values = Values::Text(SERVERS_RULE);
pub(super) const TOPIC: Values =
    Values::Text("1 to 249 letters, digits, dots, underscores and hyphens");

impl BrokerConfig {
    /// Reads the settings of these names.
    pub(super) fn read(env: &mut Reader<'_>, servers: &str, topic: &str) -> Self {
        Self { servers: read_servers(env, servers), topic: read_topic(env, topic) }
    }

    pub fn is_kafka(&self) -> bool {
        !self.servers.is_empty()
    }
}

/// Returns each server once. A bad one is noted.
fn read_servers(env: &mut Reader<'_>, name: &str) -> Vec<String> {
    let Some(text) = env.text(name) else { return Vec::new() };
    let mut servers: Vec<String> = Vec::new();
    for server in text.split(|c: char| c == ',' || c.is_whitespace()) {
        if server.is_empty() || servers.iter().any(|known| known.eq_ignore_ascii_case(server)) {
            continue;
        }
        if let Err(rule) = check_server(server) {
            // What stands before an @ may be a password.
            let shown = if server.contains('@') { "…@…" } else { server };
            env.problem(name, &format!("has {shown:?}, and must be {SERVERS_RULE}: {rule}"));
        }
        servers.push(server.to_owned());
    }
    if servers.is_empty() {
        env.problem(name, &format!("is {text:?}, and must be {SERVERS_RULE}: it names no server"));
    }
    servers
}

/// Reads a topic name that Kafka allows.
fn read_topic(env: &mut Reader<'_>, name: &str) -> String {
    let topic = env.parsed(name, |text| {
        let fits = text.len() <= 249
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            && text != "."
            && text != "..";
        fits.then(|| text.to_owned())
    });
    topic.unwrap_or_default()
}

/// Says which rule of `host:port` a text breaks.
fn check_server(text: &str) -> Result<(), &'static str> {
    if text.contains(';') {
        return Err("servers are separated by a comma or a space");
    }
    if text.contains("://") {
        return Err(
            "it has no protocol before the host; KAFKA_SECURITY_PROTOCOL says whether it uses TLS",
        );
    }
    let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
    if let Some(bracketed) = host.strip_prefix('[') {
        let address = bracketed.strip_suffix(']').ok_or("a bracket is not closed")?;
        address.parse::<Ipv6Addr>().map_err(|_| "brackets hold an IPv6 address")?;
    } else if host.contains(':') {
        return Err("write an IPv6 address in brackets and put the port after them");
    } else {
        check_host(host)?;
    }
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse::<NonZeroU16>() {
        Ok(_) if is_number => Ok(()),
        _ => Err("the port is a whole number from 1 to 65535"),
    }
}

fn check_host(host: &str) -> Result<(), &'static str> {
    let labels = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.is_empty() {
        return Err("the host is missing");
    }
    if labels.len() > 253 || !labels.split('.').all(is_label) {
        return Err("a host has letters, digits, hyphens and underscores, in parts by dots");
    }
    let last = labels.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) && host.parse::<Ipv4Addr>().is_err() {
        return Err("an IPv4 address has four numbers from 0 to 255");
    }
    Ok(())
}
