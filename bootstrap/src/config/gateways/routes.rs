//! The tables `[[route]]`, `[failover]` and `[health]` of a file of gateways.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use adapters_gateway::{Listed, catalogue};
use adapters_http::has_numbers;
use domain::{GatewayName, Region};

use super::{
    Ambiguous, GatewayConfig, RouteConfig, Weights,
    document::{Node, Table, Value, find},
    report::{Place, Report, hint},
};

const ROUTE: &[&str] = &["regions", "prefixes", "gateways", "sender", "params"];
const FAILOVER: &[&str] = &["ambiguous", "no_receipt_within"];
const HEALTH: &[&str] = &["weights"];

/// Reads the routes. Without any there is one to all gateways, in the order of the file. Each gateway
/// comes with its line.
pub(super) fn read(
    report: &mut Report,
    document: &Table,
    found: &[(GatewayConfig, usize)],
) -> Vec<RouteConfig> {
    let places: Vec<_> = found.iter().map(|(it, line)| (it.name.clone(), *line)).collect();
    let gateways = places.as_slice();
    let Some(node) = find(document, "route") else { return vec![RouteConfig::to_all(gateways)] };
    let tables = match &node.value {
        Value::List(tables) => tables.as_slice(),
        _ => &[],
    };
    if tables.is_empty() {
        let place = Place { line: node.line, table: "[[route]]" };
        report.problem(place, "must be a list of tables, each below a line [[route]]");
    }
    let mut routes = Vec::new();
    let mut above = Above::default();
    for (number, node) in (1..).zip(tables) {
        let name = format!("[[route]] {number}");
        let place = Place { line: node.line, table: &name };
        let Value::Table(table) = &node.value else {
            report.problem(place, "must be a table");
            continue;
        };
        report.refuse_unknown(place, table, ROUTE);
        let route = route(report, place, table, gateways);
        above.check(report, place, table, &route);
        refuse_unread(report, place, table, &route, found);
        routes.push(route);
    }
    for (name, line) in gateways {
        let is_used = |route: &RouteConfig| route.gateways.iter().any(|(used, _)| used == name);
        if !routes.iter().any(is_used) {
            let table = format!("[gateway.{name}]");
            report
                .remark(Place { line: *line, table: &table }, "is in no route, so nothing uses it");
        }
    }
    routes
}

/// Reads one route. What is bad in it is left out.
fn route(
    report: &mut Report,
    place: Place<'_>,
    table: &Table,
    gateways: &[(GatewayName, usize)],
) -> RouteConfig {
    let regions = list(report, place, table, "regions", region);
    let prefixes = list(report, place, table, "prefixes", prefix);
    let gateways = if let Some(node) = find(table, "gateways") {
        choice(report, place.at(node.line), &node.value, gateways)
    } else {
        report.problem(place, "gateways is missing: a list of names, or a table of weights");
        Vec::new()
    };
    let sender = find(table, "sender").and_then(|node| match &node.value {
        Value::Text(sender) if is_plain(sender) => Some(Arc::from(sender.trim())),
        _ => {
            report.problem(place.at(node.line), "sender must be a text without control characters");
            None
        }
    });
    let params = find(table, "params").map(|node| params(report, place.at(node.line), &node.value));
    RouteConfig {
        regions,
        prefixes,
        gateways,
        sender,
        params: Arc::new(params.unwrap_or_default()),
    }
}

/// Reads a list of texts, each with `parse`, which returns the reason if it fails.
fn list<T>(
    report: &mut Report,
    place: Place<'_>,
    table: &Table,
    key: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let Some(node) = find(table, key) else { return Vec::new() };
    let place = place.at(node.line);
    let Value::List(items) = &node.value else {
        report.problem(place, format!("{key} must be a list of texts"));
        return Vec::new();
    };
    if items.is_empty() {
        report.problem(place, format!("{key} is empty: leave it out if the route is for all"));
    }
    let mut parsed = Vec::new();
    for item in items {
        let Value::Text(text) = &item.value else {
            report.problem(place.at(item.line), format!("{key} must be a list of texts"));
            continue;
        };
        match parse(text) {
            Ok(item) => parsed.push(item),
            Err(reason) => {
                report.problem(place.at(item.line), format!("{key} has {text:?}: {reason}"));
            }
        }
    }
    parsed
}

fn region(text: &str) -> Result<Region, String> {
    let region: Region = text.parse().map_err(|_| {
        "a region is two capital letters, such as DE, or 001 for numbers of no country".to_owned()
    })?;
    if region == Region::NON_GEOGRAPHIC || has_numbers(region) {
        Ok(region)
    } else {
        Err("no country with phone numbers has this code".to_owned())
    }
}

fn prefix(text: &str) -> Result<String, String> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    if (1..=15).contains(&digits.len()) && digits.bytes().all(|it| it.is_ascii_digit()) {
        Ok(digits.to_owned())
    } else {
        Err("a prefix is 1 to 15 digits of an international number, such as +7999".to_owned())
    }
}

/// Reads the gateways of a route: in order, or by weight.
fn choice(
    report: &mut Report,
    place: Place<'_>,
    value: &Value,
    known: &[(GatewayName, usize)],
) -> Vec<(GatewayName, Option<NonZeroU32>)> {
    let mut chosen: Vec<(GatewayName, Option<NonZeroU32>)> = Vec::new();
    let mut choose = |report: &mut Report, line, name: &str, weight| {
        let Some((gateway, _)) = known.iter().find(|(known, _)| known.as_str() == name) else {
            let names: Vec<&str> = known.iter().map(|(known, _)| known.as_str()).collect();
            let hint = hint(name, &names);
            report.problem(place.at(line), format!("gateways has no gateway {name:?}{hint}"));
            return;
        };
        if chosen.iter().any(|(chosen, _)| chosen == gateway) {
            report.problem(place.at(line), format!("gateways has {name:?} twice"));
        } else {
            chosen.push((gateway.clone(), weight));
        }
    };
    match value {
        Value::List(names) if !names.is_empty() => {
            for Node { line, value } in names {
                match value {
                    Value::Text(name) => choose(report, *line, name, None),
                    _ => report.problem(place.at(*line), "gateways must be a list of names"),
                }
            }
        }
        Value::Table(weights) if !weights.is_empty() => {
            for (name, Node { line, value }) in weights {
                match weight(value) {
                    Some(weight) => choose(report, *line, name, Some(weight)),
                    None => report.problem(
                        place.at(*line),
                        format!("gateways: the weight of {name} must be a whole number from 1 to \
                                 1000000"),
                    ),
                }
            }
        }
        _ => report.problem(
            place,
            "gateways must be a list of names, such as [\"local\", \"main\"], or a table of weights, \
             such as { main = 70, local = 30 }",
        ),
    }
    chosen
}

fn weight(value: &Value) -> Option<NonZeroU32> {
    let Value::Number(number) = value else { return None };
    let weight = u32::try_from(number.as_u64()?).ok().filter(|weight| *weight <= 1_000_000);
    weight.and_then(NonZeroU32::new)
}

fn params(report: &mut Report, place: Place<'_>, value: &Value) -> BTreeMap<String, String> {
    let mut params = BTreeMap::new();
    let Value::Table(table) = value else {
        report.problem(place, "params must be a table of texts");
        return params;
    };
    for (key, Node { line, value }) in table {
        match value {
            Value::Text(text) if is_plain(text) => {
                params.insert(key.clone(), text.clone());
            }
            _ => report.problem(
                place.at(*line),
                format!("params: {key} must be a text without control characters"),
            ),
        }
    }
    params
}

/// Reports a sender that none of the gateways takes, and parameters that none of them reads. Of a
/// gateway without a known provider, it cannot be told.
fn refuse_unread(
    report: &mut Report,
    place: Place<'_>,
    table: &Table,
    route: &RouteConfig,
    found: &[(GatewayConfig, usize)],
) {
    let provider = |name: &GatewayName| {
        let (gateway, _) = found.iter().find(|(it, _)| it.name == *name)?;
        catalogue().find(|listed| listed.name == gateway.provider)
    };
    let listed: Option<Vec<Listed>> = route.gateways.iter().map(|it| provider(&it.0)).collect();
    let Some(listed) = listed.filter(|it| !it.is_empty()) else { return };
    let line = |node: Option<&Node>| place.at(node.map_or(place.line, |node| node.line));
    if route.sender.is_some() && !listed.iter().any(|it| it.sender) {
        let place = line(find(table, "sender"));
        report.problem(place, "sender is set, and none of its gateways takes one");
    }
    let known: BTreeSet<&str> = listed.iter().flat_map(|it| it.params).copied().collect();
    let known: Vec<&str> = known.into_iter().collect();
    let params = find(table, "params");
    for key in route.params.keys().filter(|key| !listed.iter().any(|it| it.reads(key))) {
        let place = match params.map(|node| &node.value) {
            Some(Value::Table(params)) => line(find(params, key).or_else(|| find(table, "params"))),
            _ => line(params),
        };
        let hint = if known.is_empty() {
            ", which none of its gateways reads".to_owned()
        } else {
            hint(key, &known)
        };
        report.problem(place, format!("params has {key:?}{hint}"));
    }
}

/// Whether a text can be sent in a header or a field.
fn is_plain(text: &str) -> bool {
    !text.trim().is_empty() && !text.chars().any(char::is_control)
}

/// The numbers that the routes above a route match.
#[derive(Default)]
struct Above {
    /// The number of the first route that matches all.
    catch_all: Option<String>,
    regions: BTreeSet<Region>,
    prefixes: Vec<String>,
}

impl Above {
    /// Reports a route that no number reaches.
    fn check(&mut self, report: &mut Report, place: Place<'_>, table: &Table, route: &RouteConfig) {
        if let Some(catch_all) = &self.catch_all {
            report.problem(
                place,
                format!("never matches, because {catch_all} above it matches every number"),
            );
            return;
        }
        let is_prefix_taken =
            |prefix: &String| self.prefixes.iter().any(|above| prefix.starts_with(above.as_str()));
        let RouteConfig { regions, prefixes, .. } = route;
        if find(table, "regions").is_none() && find(table, "prefixes").is_none() {
            self.catch_all = Some(place.table.to_owned());
        } else if !(regions.is_empty() && prefixes.is_empty())
            && regions.iter().all(|region| self.regions.contains(region))
            && prefixes.iter().all(is_prefix_taken)
        {
            report
                .problem(place, "never matches, because the routes above it match all its numbers");
        }
        self.regions.extend(regions);
        self.prefixes.extend(prefixes.iter().cloned());
    }
}

/// The table `[failover]`.
#[derive(Debug, Default)]
pub(super) struct Failover {
    pub(super) ambiguous: Ambiguous,
    /// With its line.
    pub(super) no_receipt_within: Option<(Duration, usize)>,
}

/// Reads `[failover]`: who is asked after a call without a clear outcome, and after an SMS without a
/// receipt. A code is valid for `code_ttl`.
pub(super) fn failover(report: &mut Report, document: &Table, code_ttl: Duration) -> Failover {
    let Some(node) = find(document, "failover") else { return Failover::default() };
    let place = Place { line: node.line, table: "[failover]" };
    let Value::Table(table) = &node.value else {
        report.problem(place, "must be a table");
        return Failover::default();
    };
    report.refuse_unknown(place, table, FAILOVER);
    Failover {
        ambiguous: ambiguous(report, place, table),
        no_receipt_within: no_receipt_within(report, place, table, code_ttl),
    }
}

fn ambiguous(report: &mut Report, place: Place<'_>, table: &Table) -> Ambiguous {
    let Some(Node { line, value }) = find(table, "ambiguous") else { return Ambiguous::default() };
    match value {
        Value::Text(word) if word == "same" => Ambiguous::Same,
        Value::Text(word) if word == "next" => Ambiguous::Next,
        _ => {
            report.problem(place.at(*line), "ambiguous must be \"same\" or \"next\"");
            Ambiguous::default()
        }
    }
}

/// Reads `[health]`.
pub(super) fn weights(report: &mut Report, document: &Table) -> Weights {
    let Some(node) = find(document, "health") else { return Weights::default() };
    let place = Place { line: node.line, table: "[health]" };
    let Value::Table(table) = &node.value else {
        report.problem(place, "must be a table");
        return Weights::default();
    };
    report.refuse_unknown(place, table, HEALTH);
    let Some(Node { line, value }) = find(table, "weights") else { return Weights::default() };
    match value {
        Value::Text(word) if word == "move" => Weights::Move,
        Value::Text(word) if word == "fixed" => Weights::Fixed,
        _ => {
            report.problem(place.at(*line), "weights must be \"move\" or \"fixed\"");
            Weights::default()
        }
    }
}

fn no_receipt_within(
    report: &mut Report,
    place: Place<'_>,
    table: &Table,
    code_ttl: Duration,
) -> Option<(Duration, usize)> {
    /// Receipts take some seconds even on a good day.
    const LEAST: Duration = Duration::from_secs(5);
    let Node { line, value } = find(table, "no_receipt_within")?;
    let time = if let Value::Text(text) = value { time(text) } else { None };
    let time = time.filter(|time| (LEAST..=code_ttl).contains(time));
    if time.is_none() {
        report.problem(
            place.at(*line),
            format!(
                "no_receipt_within must be a time such as \"20s\" or \"2m\", from 5s to the {}s of \
                 CODE_TTL",
                code_ttl.as_secs()
            ),
        );
    }
    Some((time?, *line))
}

/// Parses a number of seconds, `20s`, or of minutes, `2m`.
fn time(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u32 = number.parse().ok().filter(|_| !number.starts_with('+'))?;
    let seconds = match unit {
        "s" => u64::from(number),
        "m" => 60 * u64::from(number),
        _ => return None,
    };
    Some(Duration::from_secs(seconds))
}
