//! Every provider that a gateway may have, and how a gateway is made of its settings.

mod money;

use std::{
    num::{NonZeroU32, NonZeroUsize},
    path::Path,
    time::Duration,
};

use domain::{Budget, Prices};
use serde_json::{Map, Value};

use crate::{
    ConsoleGateway, Gateway, HttpGateway, PROVIDERS, Transport,
    authorities::Authorities,
    client::{ClientSettings, KEEP_ALIVE},
    fields::{FieldProblem, Fields},
    smpp::{self, SmppGateway},
    spec::{Field, FieldKind, ProviderSpec},
};

/// A word that `provider` may have.
#[derive(Debug, Clone, Copy)]
pub struct Listed {
    pub name: &'static str,
    /// The name that the vendor uses.
    pub title: &'static str,
    /// Whether a route may give the sender.
    pub sender: bool,
    /// The keys of a route's `params` that the provider reads. A `*` at the end stands for any
    /// characters.
    pub params: &'static [&'static str],
    /// The settings that only this provider has. [`COMMON`] has the others.
    pub fields: &'static [Field],
}

/// The settings that every gateway has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Common {
    /// The limit for one call.
    pub timeout: Duration,
    /// The limit of calls at a time.
    pub in_flight: NonZeroU32,
    /// The limit of calls per second. `None`: there is none.
    pub max_per_second: Option<NonZeroU32>,
    /// The price of one segment.
    pub price: Prices,
    pub daily_budget: Budget,
}

/// The fields of [`Common`], and those that all gateways read.
pub static COMMON: &[Field] = &[
    Field::optional(
        "timeout",
        FieldKind::Seconds(1, 300),
        "Seconds that one call may take. The default is 10.",
    ),
    Field::optional(
        "keep_alive",
        FieldKind::Seconds(0, 300),
        "Seconds for which an idle connection may be used again. If the provider closes one just as \
         a call arrives, that call has no outcome. The default is 1 if the provider recognises a \
         repeated message, and otherwise 0, which is then the only value.",
    ),
    Field::with_default(
        "in_flight",
        FieldKind::Number(1, 10_000),
        "50",
        "The number of concurrent calls, for all consumers together.",
    ),
    Field::optional(
        "max_per_second",
        FieldKind::Number(1, 100_000),
        "The number of calls that may begin in a second, for all consumers together. The default is \
         unlimited.",
    ),
    Field::optional(
        "max_segments",
        FieldKind::Number(1, 255),
        "The longest text in segments. A longer one is refused before the call, and its message \
         fails. The default is unlimited.",
    ),
    Field::optional(
        "price",
        FieldKind::Any,
        "The price of one segment in your currency: an amount, or a table of amounts with `default` and \
         regions.",
    ),
    Field::optional(
        "daily_budget",
        FieldKind::Any,
        "The limit on the cost of a day (UTC): an amount, or a table of amounts with `total`, \
         `international` and regions. It needs `price`.",
    ),
    Field::optional(
        "ca",
        FieldKind::Text,
        "A PEM file with the authorities that sign the provider's certificate. Without it, those \
         that browsers trust.",
    ),
];

const TIMEOUT: Duration = Duration::from_secs(10);

/// The console writes a line. A call that takes longer has no outcome.
const CONSOLE_TIMEOUT: Duration = Duration::from_secs(1);

const CONSOLE: Listed =
    Listed { name: "console", title: "Console", sender: false, params: &[], fields: &[] };

const SMPP: Listed = Listed {
    name: "smpp",
    title: "SMPP 3.4",
    sender: true,
    params: smpp::PARAMS,
    fields: smpp::FIELDS,
};

impl Listed {
    /// Whether the provider reads this key of a route's `params`.
    pub fn reads(&self, key: &str) -> bool {
        let fits = |word: &&str| {
            word.strip_suffix('*').map_or(key == *word, |beginning| key.starts_with(beginning))
        };
        self.params.iter().any(fits)
    }
}

/// Returns every provider.
pub fn catalogue() -> impl Iterator<Item = Listed> {
    let over_http = PROVIDERS.iter().map(|spec| {
        let ProviderSpec { name, title, sender, params, fields, .. } = **spec;
        Listed { name, title, sender, params, fields }
    });
    [CONSOLE, SMPP].into_iter().chain(over_http)
}

/// Makes a gateway of its settings: a table with the fields of the provider and those of
/// [`COMMON`]. It connects at the first call.
///
/// Fails with all problems of the settings. They do not repeat a value, which may be a secret.
pub fn build(
    provider: &str,
    table: &Map<String, Value>,
) -> Result<(Gateway, Common), Vec<FieldProblem>> {
    let Some(listed) = catalogue().find(|listed| listed.name == provider) else {
        let names: Vec<&str> = catalogue().map(|listed| listed.name).collect();
        let problem = format!("must be one of: {}", names.join(", "));
        return Err(vec![FieldProblem { field: "provider".to_owned(), problem }]);
    };
    let mut own = Fields::new(listed.fields, table);
    own.refuse_unknown(&[listed.fields, COMMON]);
    let mut fields = Fields::new(COMMON, table);
    let default_timeout = if listed.name == CONSOLE.name { CONSOLE_TIMEOUT } else { TIMEOUT };
    let common = common(&mut fields, default_timeout);
    let max_segments = fields.number("max_segments").and_then(|it| usize::try_from(it).ok());
    let keep_alive = fields.seconds("keep_alive");
    let authorities = authorities(&mut fields);
    let transport = match ProviderSpec::of(provider) {
        Some(spec) => (spec.make)(&mut own).and_then(|provider| {
            let keep_alive = kept_alive(&mut fields, keep_alive, provider.deduplicates());
            let settings = ClientSettings { timeout: common.timeout, keep_alive, authorities };
            HttpGateway::new(provider, settings)
                .map_err(|error| fields.problem("ca", format!("cannot be used for TLS: {error}")))
                .ok()
                .map(Transport::Http)
        }),
        None if listed.name == SMPP.name => {
            // It has no connections that are used again: it keeps them.
            kept_alive(&mut fields, keep_alive, false);
            over_smpp(&mut own, &mut fields, common.timeout, authorities)
        }
        None => {
            for name in ["keep_alive", "ca"].into_iter().filter(|name| table.contains_key(*name)) {
                fields.problem(name, "is not for the console, which calls nothing");
            }
            Some(Transport::Console(ConsoleGateway::stdout()))
        }
    };
    let problems: Vec<FieldProblem> =
        own.into_problems().into_iter().chain(fields.into_problems()).collect();
    match transport {
        Some(transport) if problems.is_empty() => {
            let max_segments = max_segments.and_then(NonZeroUsize::new);
            Ok((Gateway { transport, max_segments }, common))
        }
        _ => Err(problems),
    }
}

/// Returns the prices and the daily budget of a gateway. They need none of its secrets. A value that
/// [`build`] refuses counts as missing.
pub fn costs(table: &Map<String, Value>) -> (Prices, Budget) {
    let mut fields = Fields::new(COMMON, table);
    (money::prices(&mut fields), money::budget(&mut fields))
}

fn over_smpp(
    own: &mut Fields<'_>,
    fields: &mut Fields<'_>,
    timeout: Duration,
    authorities: Authorities,
) -> Option<Transport> {
    let settings = smpp::read(own, timeout)?;
    if !settings.tls && fields.is_set("ca") {
        fields.problem("ca", "is not used without TLS");
    }
    let gateway = SmppGateway::new(settings, authorities);
    gateway.map_err(|error| own.problem("host", error)).ok().map(Transport::Smpp)
}

/// Reads what every gateway has. A bad value is noted, and the value that stands for it is not used.
fn common(fields: &mut Fields<'_>, default_timeout: Duration) -> Common {
    let common = Common {
        timeout: fields.seconds("timeout").unwrap_or(default_timeout),
        in_flight: limit(fields, "in_flight").unwrap_or(NonZeroU32::MIN),
        max_per_second: limit(fields, "max_per_second"),
        price: money::prices(fields),
        daily_budget: money::budget(fields),
    };
    if fields.is_set("daily_budget") && !fields.is_set("price") {
        fields.problem("daily_budget", "needs price: without it, every call costs nothing");
    }
    common
}

/// Returns how long a connection may be idle.
///
/// A gateway that does not recognise a repeated message must not use a connection again: if the
/// provider closes an idle one just as a call is written to it, the message ends `unknown`.
fn kept_alive(fields: &mut Fields<'_>, set: Option<Duration>, deduplicates: bool) -> Duration {
    let default = if deduplicates { KEEP_ALIVE } else { Duration::ZERO };
    let keep_alive = set.unwrap_or(default);
    if !deduplicates && !keep_alive.is_zero() {
        fields.problem(
            "keep_alive",
            "must be 0, because the provider does not recognise a repeated message",
        );
    }
    keep_alive
}

fn authorities(fields: &mut Fields<'_>) -> Authorities {
    let Some(path) = fields.text("ca") else { return Authorities::Public };
    Authorities::read(Path::new(&path)).unwrap_or_else(|problem| {
        fields.problem("ca", format!("cannot be used: {problem}"));
        Authorities::Public
    })
}

fn limit(fields: &mut Fields<'_>, name: &str) -> Option<NonZeroU32> {
    fields.number(name).and_then(|number| u32::try_from(number).ok()).and_then(NonZeroU32::new)
}

#[cfg(test)]
mod tests;
