//! The SMS gateway that `GATEWAY` names, or the file that names several.

use std::path::Path;

use adapters_gateway::COMMON;
use domain::{Amount, GatewayName};
use serde_json::{Map, Value as Json, json};

use super::{
    gateways::{
        GatewayConfig, GatewaysConfig, GatewaysFile, Lookup, PLAIN, own_fields_of, variable, words,
    },
    reader::Reader,
    setting::{
        Section, Setting, Values,
        Values::{Number, OneOf, Provider, Seconds, Text, Url},
    },
};

pub(super) const SECTION: Section = Section {
    title: "Gateway",
    settings: &[
        Setting {
            name: "GATEWAY",
            default: "console",
            example: Some("console"),
            values: Provider,
            meaning: "Where SMS go: `console` prints each SMS with its code to standard output, \
                      `webhook` posts it to `GATEWAY_URL`, and every other word is a \
                      [provider](gateways.md), whose own settings are named `<PROVIDER>_<FIELD>`.",
        },
        Setting {
            name: "GATEWAYS_FILE",
            default: "",
            example: Some("gateways.toml"),
            values: Text("path of a TOML file"),
            meaning: "[Several gateways](gateways.md#several-gateways) and the routes to them. It \
                      replaces `GATEWAY`.",
        },
        Setting {
            name: "PUBLIC_URL",
            default: "",
            example: Some("https://codes.example.com"),
            values: Url,
            meaning: "Where providers reach this service, to report the delivery of SMS. Unset, no \
                      provider is asked for reports.",
        },
        Setting {
            name: "GATEWAY_URL",
            default: "",
            example: Some("https://sms.example/send"),
            values: Url,
            meaning: "Where `webhook` posts. A user and a password in it become \
                      `Authorization: Basic`.",
        },
        Setting {
            name: "GATEWAY_TIMEOUT",
            default: "10",
            example: None,
            values: Seconds(1, 300),
            meaning: "Seconds that one call may take.",
        },
        Setting {
            name: "GATEWAY_DEDUPLICATES",
            default: "true",
            example: None,
            values: OneOf(&["true", "false"]),
            meaning: "Whether the webhook heeds `Idempotency-Key`. With `false`, a call without an \
                      outcome is not repeated, and its message ends `unknown`.",
        },
        Setting {
            name: "GATEWAY_KEEP_ALIVE",
            default: "1",
            example: Some("1"),
            values: Seconds(0, 300),
            meaning: "Seconds for which an idle connection to the gateway may be used again. 0 \
                      opens a connection for each call. If the gateway closes an idle connection \
                      just as a call arrives, that call has no outcome, so keep this below the \
                      gateway's own time-out. A gateway that does not deduplicate allows only 0, \
                      which is then the default.",
        },
        Setting {
            name: "GATEWAY_IN_FLIGHT",
            default: "50, webhook 10000",
            example: Some("50"),
            values: Number(1, 10_000),
            meaning: "Calls at a time, of all consumers together.",
        },
        Setting {
            name: "GATEWAY_MAX_PER_SECOND",
            default: "",
            example: Some("30"),
            values: Number(1, 100_000),
            meaning: "Calls per second, of all consumers together. Unset, there is no limit.",
        },
        Setting {
            name: "GATEWAY_MAX_SEGMENTS",
            default: "",
            example: Some("3"),
            values: Number(1, 255),
            meaning: "The longest text in segments. A longer one is refused before the call, and its \
                      message fails. Unset, there is no limit.",
        },
        Setting {
            name: "GATEWAY_PRICE",
            default: "",
            example: Some("0.05"),
            values: AMOUNT,
            meaning: "The price of one segment, in your currency. A file of gateways may have prices \
                      by region.",
        },
        Setting {
            name: "GATEWAY_DAILY_BUDGET",
            default: "",
            example: Some("100"),
            values: AMOUNT,
            meaning: "The limit on the cost of a day (UTC). It needs `GATEWAY_PRICE`. Unset, there is \
                      no limit. A file of gateways may have [limits by \
                      region](gateways.md#budgets).",
        },
        Setting {
            name: "GATEWAY_CA",
            default: "",
            example: Some("/etc/messager/provider.pem"),
            values: Text("path of a PEM file"),
            meaning: "The authorities that sign the certificate of the gateway. Unset, those that \
                      browsers trust.",
        },
    ],
};

const AMOUNT: Values = Text("an amount with at most six decimals, such as 0.05");

/// The numbers that every gateway may have, and the names of their fields.
const NUMBERS: [(&str, &str); 3] = [
    ("GATEWAY_IN_FLIGHT", "in_flight"),
    ("GATEWAY_MAX_PER_SECOND", "max_per_second"),
    ("GATEWAY_MAX_SEGMENTS", "max_segments"),
];

/// The amounts that every gateway may have, their fields, and the keys under which the tables of the
/// fields have them.
const AMOUNTS: [(&str, &str, &str); 2] =
    [("GATEWAY_PRICE", "price", "default"), ("GATEWAY_DAILY_BUDGET", "daily_budget", "total")];

pub(super) fn read(env: &mut Reader<'_>) -> Option<GatewaysConfig> {
    let public_url = public_url(env);
    let alone = alone(env);
    let gateways = if let Some(path) = env.text("GATEWAYS_FILE") {
        several(env, path.trim())
    } else {
        refuse_for_others(env);
        alone
    };
    Some(GatewaysConfig { public_url, ..gateways? })
}

/// Reads `PUBLIC_URL`, without the slash at its end.
fn public_url(env: &mut Reader<'_>) -> Option<String> {
    let url = env.url("PUBLIC_URL")?;
    let has_user = url.authority().is_some_and(|authority| authority.as_str().contains('@'));
    if has_user || url.query().is_some() {
        env.problem("PUBLIC_URL", "must have no user, no password and no query");
    }
    Some(url.to_string().trim_end_matches('/').to_owned())
}

/// The problem of `GATEWAY` if there is a file too.
const BOTH_SET: &str =
    "and GATEWAYS_FILE are both set: the file replaces GATEWAY, so remove one of them";

/// Returns the problem that keeps a process from starting with the file, although the file is good.
pub(crate) fn problem_beside_the_file(lookup: Lookup<'_>) -> Option<String> {
    let is_set = |name| lookup(name).is_some_and(|value| !value.trim().is_empty());
    (is_set("GATEWAY") && is_set("GATEWAYS_FILE")).then(|| format!("GATEWAY {BOTH_SET}"))
}

/// Reads the file of gateways.
fn several(env: &mut Reader<'_>, path: &str) -> Option<GatewaysConfig> {
    if env.is_set("GATEWAY") {
        env.problem("GATEWAY", BOTH_SET);
    }
    for setting in SECTION.settings {
        let is_ours = setting.name.starts_with("GATEWAY_");
        if is_ours && env.text(setting.name).is_some_and(|value| value.trim() != setting.default) {
            env.remarks.push(format!("{} is not used, because GATEWAYS_FILE is set", setting.name));
        }
    }
    let file = GatewaysFile::read(Path::new(path), env.lookup);
    env.problems.extend(file.problems);
    env.remarks.extend(file.remarks);
    env.variables.extend(file.variables);
    file.gateways
}

/// Reports settings that only the webhook has, if `GATEWAY` names another gateway. A default, as
/// `.env.example` has it, is no sign of a mistake.
fn refuse_for_others(env: &mut Reader<'_>) {
    let gateway = env.text_or_default("GATEWAY");
    let gateway = gateway.trim();
    if gateway == "webhook" || !words().contains(&gateway) {
        return;
    }
    for name in ["GATEWAY_URL", "GATEWAY_DEDUPLICATES"] {
        let default = Setting::of(name).default;
        if env.text(name).is_some_and(|value| value.trim() != default) {
            let problem =
                format!("is only for GATEWAY=webhook, and GATEWAY is {gateway}: remove it");
            env.problem(name, &problem);
        }
    }
    let default = Setting::of("GATEWAY_KEEP_ALIVE").default;
    let keep_alive = env.text("GATEWAY_KEEP_ALIVE");
    if gateway == "console" && keep_alive.is_some_and(|value| value.trim() != default) {
        env.problem(
            "GATEWAY_KEEP_ALIVE",
            "is not for GATEWAY=console, which calls nothing: remove it",
        );
    }
}

/// Reads the gateway that `GATEWAY` names.
fn alone(env: &mut Reader<'_>) -> Option<GatewaysConfig> {
    let timeout = env.seconds("GATEWAY_TIMEOUT");
    let url = env.url("GATEWAY_URL");
    let deduplicates = env.boolean("GATEWAY_DEDUPLICATES");
    let table = common(env);
    let is_provider = |word: &str| words().into_iter().find(|known| *known == word);
    let provider = env.parsed("GATEWAY", is_provider);
    let is_webhook = provider == Some("webhook");
    env.defaults_to("GATEWAY_IN_FLIGHT", if is_webhook { "10000" } else { "50" });
    if is_webhook && !env.is_set("GATEWAY_URL") {
        env.problem("GATEWAY_URL", "is missing: GATEWAY=webhook posts there");
    }
    let keep_alive = match provider {
        Some(word) if !PLAIN.contains(&word) => Some(None),
        _ => keep_alive(env, deduplicates?).map(Some),
    };
    let (provider, mut table) = (provider?, table?);
    if provider != "console" {
        table.insert("timeout".to_owned(), timeout?.as_secs().into());
    }
    if is_webhook {
        table.entry("in_flight").or_insert(10_000.into());
        table.insert("url".to_owned(), url?.to_string().into());
        table.insert("deduplicates".to_owned(), deduplicates?.into());
        table.insert("keep_alive".to_owned(), keep_alive??.into());
    }
    let name = GatewayName::default();
    let mut gateway = GatewayConfig { name, provider, table, misses_secrets: false };
    if PLAIN.contains(&provider) {
        // Its own settings were checked above.
        let is_common = |field: &str| COMMON.iter().any(|common| common.name == field);
        let problems = gateway.problems().into_iter().filter(|(field, _)| is_common(field));
        report(env, provider, &problems.collect::<Vec<_>>())?;
    } else {
        own_settings(env, &mut gateway)?;
    }
    Some(GatewaysConfig::alone(gateway))
}

/// Reads what every gateway may have, except times.
fn common(env: &mut Reader<'_>) -> Option<Map<String, Json>> {
    let mut table = Map::new();
    let mut is_good = true;
    for (name, field) in NUMBERS {
        if env.is_set(name) {
            let number = env.number::<u32>(name);
            is_good &= number.is_some();
            table.extend(number.map(|number| (field.to_owned(), number.into())));
        }
    }
    for (name, field, key) in AMOUNTS {
        if env.is_set(name) {
            let amount = env.parsed(name, |text| text.parse::<Amount>().ok());
            is_good &= amount.is_some();
            table.extend(amount.map(|it| (field.to_owned(), json!({ key: it.to_string() }))));
        }
    }
    if let Some(path) = env.text("GATEWAY_CA") {
        table.insert("ca".to_owned(), path.trim().into());
    }
    is_good.then_some(table)
}

/// A gateway that does not deduplicate gets a connection for each call: if it closes an idle one
/// just as a call is written to it, the message ends `unknown`.
fn keep_alive(env: &mut Reader<'_>, deduplicates: bool) -> Option<u64> {
    if !deduplicates {
        env.defaults_to("GATEWAY_KEEP_ALIVE", "0");
    }
    let keep_alive = env.seconds("GATEWAY_KEEP_ALIVE")?;
    if !deduplicates && !keep_alive.is_zero() {
        env.problem("GATEWAY_KEEP_ALIVE", "must be 0 with GATEWAY_DEDUPLICATES=false");
        return None;
    }
    Some(keep_alive.as_secs())
}

/// Reads the settings of a provider: `<PROVIDER>_<FIELD>`.
fn own_settings(env: &mut Reader<'_>, gateway: &mut GatewayConfig) -> Option<()> {
    let provider = gateway.provider;
    if env.is_set("GATEWAY_KEEP_ALIVE") {
        let seconds = env.seconds("GATEWAY_KEEP_ALIVE")?.as_secs();
        gateway.table.insert("keep_alive".to_owned(), seconds.into());
    }
    for field in own_fields_of(provider) {
        if let Some(value) = env.undeclared(&variable(provider, field.name)) {
            gateway.table.insert(field.name.to_owned(), Json::from(value));
        }
    }
    report(env, provider, &gateway.problems())
}

/// Reports what is wrong with the settings of a gateway.
fn report(env: &mut Reader<'_>, provider: &str, problems: &[(String, String)]) -> Option<()> {
    for (field, problem) in problems {
        // The rest is a place within a table, such as `rules[1].outcome`.
        let (field, place) = field.split_at(field.find(['.', '[']).unwrap_or(field.len()));
        let is_own = own_fields_of(provider).iter().any(|own| own.name == field);
        let name = variable(if is_own { provider } else { "gateway" }, field) + place;
        let hint = if problem == "is missing" && place.is_empty() {
            format!(": GATEWAY={provider} needs it")
        } else {
            String::new()
        };
        env.problem(&name, &format!("{problem}{hint}"));
    }
    problems.is_empty().then_some(())
}
