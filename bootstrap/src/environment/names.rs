//! Names of variables: settings, names that resemble settings, and names of other programs.

use std::collections::{BTreeSet, HashMap};

use strsim::osa_distance;

/// Prefixes that settings have and names of other programs hardly ever have.
const OURS: [&str; 20] = [
    "API_AUTH",
    "CODE_",
    "CONSUMER_",
    "DB_SSL",
    "DELIVERY_",
    "EVENTS_",
    "GATEWAY_",
    "GUARD_",
    "LIMIT_",
    "PAYLOAD_",
    "POSTGRES_",
    "PROCESSOR_",
    "PRODUCER_",
    "REGIONS_",
    "RESEND_",
    "SMS_",
    "SQLITE_",
    "TEMPLATES_",
    "TEST_NUMBERS",
    "VERIFICATION_",
];

/// Prefixes of names that other programs read from the same places: Docker Compose, and the image of
/// PostgreSQL.
const OF_OTHERS: [&str; 5] =
    ["COMPOSE_", "DOCKER_", "GATEWAY_INTERFACE", "POSTGRES_HOST_AUTH_METHOD", "POSTGRES_INITDB_"];

/// Returns whether another program is known to read the name.
pub(super) fn is_of_another(name: &str) -> bool {
    OF_OTHERS.iter().any(|prefix| name.starts_with(prefix))
}

/// Returns the setting that an unknown name most likely means: one letter, one swap or only case away.
pub(super) fn misspelt<'a>(name: &str, settings: &'a BTreeSet<String>) -> Option<&'a str> {
    /// Shorter words are too often one letter apart.
    const SHORT: usize = 5;

    if settings.contains(name) || is_of_another(name) {
        return None;
    }
    let is_slip = |setting: &&String| {
        name.eq_ignore_ascii_case(setting)
            || setting.len() >= SHORT && osa_distance(&name.to_ascii_uppercase(), setting) <= 1
    };
    settings.iter().find(is_slip).map(String::as_str)
}

/// Returns whether an unknown name in the environment may be meant for Messager.
pub(super) fn looks_like_ours(name: &str, settings: &BTreeSet<String>) -> bool {
    !is_of_another(name)
        && (misspelt(name, settings).is_some() || OURS.iter().any(|it| name.starts_with(it)))
}

/// Returns the setting with the nearest name, if one is near enough.
pub(super) fn nearest<'a>(name: &str, settings: &'a BTreeSet<String>) -> Option<&'a str> {
    let upper = name.to_ascii_uppercase();
    let distance = |setting: &str| {
        // One name continues the other, as in POSTGRES_PASSWORD_FILE.
        let is_part = setting.starts_with(&upper) || upper.starts_with(setting);
        if is_part { 1 } else { osa_distance(&upper, setting) }
    };
    let (distance, nearest) =
        settings.iter().map(|setting| (distance(setting), setting)).min_by_key(|it| it.0)?;
    (2 * distance <= name.len()).then_some(nearest)
}

/// Returns the names that Kubernetes sets in every container for each service, as Docker once did.
/// For a service "postgres" these are `POSTGRES_PORT=tcp://10.0.0.1:5432`, `POSTGRES_SERVICE_HOST`,
/// `POSTGRES_PORT_5432_TCP_ADDR` and so on.
pub(super) fn of_links(process: &HashMap<String, String>) -> BTreeSet<String> {
    let service = |name: &'_ str, value: &str| -> Option<String> {
        let by_port = name.strip_suffix("_PORT").filter(|_| is_link(value));
        let by_host = name
            .strip_suffix("_SERVICE_HOST")
            .filter(|service| process.contains_key(&format!("{service}_SERVICE_PORT")));
        Some(by_port.or(by_host)?.to_owned())
    };
    let services: BTreeSet<String> =
        process.iter().filter_map(|(name, value)| service(name, value)).collect();
    let is_of = |name: &str, service: &String| {
        name.strip_prefix(service.as_str()).is_some_and(|rest| {
            let port = rest.strip_prefix("_PORT_").unwrap_or_default();
            rest.starts_with("_SERVICE_HOST")
                || rest.starts_with("_SERVICE_PORT")
                || port.starts_with(|c: char| c.is_ascii_digit())
        })
    };
    let is_link = |name: &str, value: &str| {
        name.ends_with("_PORT") && is_link(value)
            || services.iter().any(|service| is_of(name, service))
    };
    let links = process.iter().filter(|(name, value)| is_link(name, value));
    links.map(|(name, _)| name.clone()).collect()
}

/// Returns whether a value has the form `tcp://10.0.0.1:5432`.
fn is_link(value: &str) -> bool {
    let address = ["tcp://", "udp://", "sctp://"].iter().find_map(|it| value.strip_prefix(it));
    address.and_then(|address| address.rsplit_once(':')).is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok()
    })
}
