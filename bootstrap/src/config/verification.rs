//! The settings of verification: who may ask, how often, for which numbers, and with which keys.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

use adapters_gateway::has_private_address;
use adapters_http::{ApiAuth, has_numbers};
use adapters_persistence::DatabaseSettings;
use application::{Counting, KeySource, ResendPolicy, SendRules, SendSettings, VaultSettings};
use domain::{
    Code, CustomLimit, EventSecrets, GuardMode, GuardRule, InvalidGuardRule, NumberRules,
    PhoneNumber, Region, Regions, SendLimits, Windows,
};

use super::{DAY, Mode, Reader};

/// What verification needs beside the pipeline.
#[derive(Debug, Clone)]
pub struct VerificationConfig {
    pub api_auth: ApiAuth,
    /// What holds on `/v1`.
    pub sends: SendSettings,
    pub api: ApiConfig,
    /// Whether a start on `/v1` must name the end user's address.
    pub require_ip: bool,
    /// For a process that makes codes and one that sends them; each may need less.
    pub vault: VaultSettings,
    /// Whether records in clear are dead letters.
    pub require_sealed: bool,
    pub numbers: NumberConfig,
    pub guard: GuardConfig,
    /// None: nobody is told.
    pub events: Option<EventsConfig>,
    pub retention: Duration,
}

/// What holds on `/api`: what is set. What is only a default of `/v1` does not, since clients of the
/// Go service have never met it.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    pub is_open: bool,
    pub rules: SendRules,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberConfig {
    /// Of `/v1`.
    pub rules: NumberRules,
    pub api_rules: NumberRules,
    /// Where a number without a country belongs; none: it is not taken.
    pub default_region: Option<Region>,
    /// To these nothing is sent, and their codes are always the same.
    pub test: HashMap<PhoneNumber, Code>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardConfig {
    /// None: it is off.
    pub mode: Option<GuardMode>,
    /// Also of a guard that is off: a replay asks them.
    pub rules: Vec<GuardRule>,
    pub window: Duration,
}

#[derive(Clone)]
pub struct EventsConfig {
    pub url: http::Uri,
    pub secrets: EventSecrets,
    /// Whether the URL may lead to a machine of our own network.
    pub allow_private: bool,
}

const WINDOWS: &str = "off, or 1 to 3 limits by comma, each of another period: \
    1 to 1000000 in at most 30d, such as 5/1h,10/1d";
/// Of an older client, which cannot check and so asks again.
const API_PHONE: &str = "20/1h";
const GUARD_RULES: &str = "adaptive";

impl GuardConfig {
    /// The rules that are asked before each send; none while the guard is off.
    pub fn rules_in_force(&self) -> Vec<GuardRule> {
        if self.mode.is_some() { self.rules.clone() } else { Vec::new() }
    }
}

/// Reads rules by comma. `mode` is that of those that name none.
pub fn guard_rules(text: &str, mode: GuardMode) -> Result<Vec<GuardRule>, InvalidGuardRule> {
    text.split(',').map(|rule| GuardRule::parse(rule, mode)).collect()
}

/// `has_kafka`: whether any Kafka is set. `database` and `mode` are none where theirs are bad.
pub(super) fn read(
    env: &mut Reader<'_>,
    database: Option<&DatabaseSettings>,
    has_kafka: bool,
    mode: Option<Mode>,
) -> Option<VerificationConfig> {
    let is_sqlite = matches!(database, Some(DatabaseSettings::Sqlite(_)));
    let api_auth = env.choice(
        "API_AUTH",
        if is_sqlite { "none" } else { "v1" },
        &[("none", ApiAuth::None), ("v1", ApiAuth::V1), ("all", ApiAuth::All)],
    );
    let (limits, api_limits) = limits(env);
    let is_open = env.choice("API_ENABLED", "true", &[("true", true), ("false", false)]);
    let refuse_unreadable =
        env.choice("API_UNREADABLE_NUMBERS", "send", &[("send", false), ("refuse", true)]);
    let require_ip = env.choice("REQUIRE_IP", "false", &[("true", true), ("false", false)]);
    let vault = vault(env, is_sqlite && !has_kafka);
    let require_sealed = env.choice("REQUIRE_SEALED", "false", &[("true", true), ("false", false)]);
    let has_no_key = matches!(vault.payload, KeySource::Absent);
    if require_sealed == Some(true) && has_no_key && env.text("PAYLOAD_KEY").is_none() {
        env.problem("REQUIRE_SEALED", "is true, and needs PAYLOAD_KEY: nothing could be read");
    }
    let pacing = env.parsed(
        "RESEND_AFTER",
        "1 to 9 whole numbers of seconds from 1 to 3600, by comma",
        "60,90,120",
        |text| text.parse().ok(),
    );
    let resend_policy = env.choice(
        "RESEND_POLICY",
        "same",
        &[("same", ResendPolicy::Same), ("new", ResendPolicy::New)],
    );
    let numbers = numbers(env, mode);
    let guard = guard(env);
    let events = events(env);
    let retention = env.number("VERIFICATION_RETENTION", 30, 1, 3_650).map(|days: u32| DAY * days);

    let counting = match api_auth? {
        ApiAuth::V1 => Counting::Apart,
        ApiAuth::None | ApiAuth::All if env.text("LIMIT_PHONE").is_none() => Counting::PhonesApart,
        ApiAuth::None | ApiAuth::All => Counting::Shared,
    };
    let numbers = numbers?;
    let rules = SendRules { numbers: numbers.rules.clone(), limits, ..SendRules::NONE };
    let api_rules = SendRules {
        numbers: numbers.api_rules.clone(),
        refuse_unreadable: refuse_unreadable?,
        limits: api_limits,
        counting,
    };
    Some(VerificationConfig {
        api_auth: api_auth?,
        sends: SendSettings { rules, pacing: pacing?, resend_policy: resend_policy? },
        api: ApiConfig { is_open: is_open?, rules: api_rules },
        require_ip: require_ip?,
        vault,
        require_sealed: require_sealed?,
        numbers,
        guard: guard?,
        events,
        retention: retention?,
    })
}

/// The limits of `/v1`, and those of `/api`.
fn limits(env: &mut Reader<'_>) -> (SendLimits, SendLimits) {
    let defaults = SendLimits::default();
    let mut set = |name: &str| env.optional::<Windows>(name, WINDOWS);
    let [phone, ip, prefix, region, key, check] =
        ["PHONE", "IP", "PREFIX", "REGION", "KEY", "CHECK"]
            .map(|name| set(&format!("LIMIT_{name}")));
    let api_phone = || API_PHONE.parse().expect("the default is a window");
    // Who calls `/api` says nothing of its end user, and checks nothing there.
    let of_api = SendLimits {
        phone: phone.clone().unwrap_or_else(api_phone),
        prefix: prefix.clone().unwrap_or_default(),
        region: region.clone().unwrap_or_default(),
        key: key.clone().unwrap_or_default(),
        ..SendLimits::OFF
    };
    let of_v1 = SendLimits {
        phone: phone.unwrap_or(defaults.phone),
        ip: ip.unwrap_or(defaults.ip),
        prefix: prefix.unwrap_or(defaults.prefix),
        region: region.unwrap_or(defaults.region),
        key: key.unwrap_or(defaults.key),
        check: check.unwrap_or(defaults.check),
        custom: custom_limits(env),
    };
    env.otherwise("LIMIT_PHONE", format!("{}; on /api {}", of_v1.phone, of_api.phone));
    for (name, windows) in [
        ("LIMIT_IP", &of_v1.ip),
        ("LIMIT_PREFIX", &of_v1.prefix),
        ("LIMIT_REGION", &of_v1.region),
        ("LIMIT_KEY", &of_v1.key),
        ("LIMIT_CHECK", &of_v1.check),
    ] {
        env.otherwise(name, windows.to_string());
    }
    (of_v1, of_api)
}

fn custom_limits(env: &mut Reader<'_>) -> BTreeMap<CustomLimit, Windows> {
    if env.text("LIMIT_CUSTOM").is_none() {
        return BTreeMap::new();
    }
    let allowed = format!(
        "name=limits by semicolon, such as device=5/1d;tenant=100/1h: each name once, none of \
         ours, a letter and up to 31 more of a-z, 0-9 and -; limits as {WINDOWS}"
    );
    let limits = env.parsed("LIMIT_CUSTOM", &allowed, "", |text| {
        let mut limits = BTreeMap::new();
        for limit in text.split(';') {
            let (name, windows) = limit.split_once('=')?;
            let known = limits.insert(name.trim().parse().ok()?, windows.trim().parse().ok()?);
            if known.is_some() {
                return None;
            }
        }
        Some(limits)
    });
    limits.unwrap_or_default()
}

/// Where the queue is in the SQLite file, codes pass through it, and what is deleted there can be
/// read for long: so they are sealed, with a key that is drawn if none is set. Elsewhere they are
/// carried as before, and only who sets a key on both sides of Kafka has them sealed.
fn vault(env: &mut Reader<'_>, is_embedded: bool) -> VaultSettings {
    let unset = if is_embedded { KeySource::Drawn } else { KeySource::Absent };
    env.otherwise("CODE_PEPPER", "drawn");
    env.otherwise("PAYLOAD_KEY", if is_embedded { "drawn" } else { "" });
    VaultSettings {
        peppers: env.secret("CODE_PEPPER").map_or(KeySource::Drawn, KeySource::Set),
        payload: env.secret("PAYLOAD_KEY").map_or(unset, KeySource::Set),
    }
}

fn numbers(env: &mut Reader<'_>, mode: Option<Mode>) -> Option<NumberConfig> {
    let allowed = env.parsed(
        "REGIONS",
        "none, or codes of two capital letters by comma, such as DE,AT; * stands for every country, \
         and 001 for numbers of no country",
        "*",
        |text| text.parse::<Regions>().ok(),
    );
    let refused = env.parsed(
        "REFUSED_NUMBER_TYPES",
        "none, or some by comma of mobile, fixed_line_or_mobile, fixed_line, toll_free, \
         premium_rate, shared_cost, voip, personal_number, pager, uan, voicemail, unknown",
        "fixed_line,premium_rate,shared_cost,toll_free,voip,pager,uan,voicemail,personal_number",
        list,
    );
    let default_region =
        env.parsed("DEFAULT_REGION", "a code of two capital letters", "", |text| {
            let region = if text.is_empty() { None } else { Some(text.parse().ok()?) };
            (region != Some(Region::NON_GEOGRAPHIC)).then_some(region)
        });
    known_regions(env, "REGIONS", allowed.iter().flat_map(Regions::countries));
    let default_region = default_region.flatten();
    known_regions(env, "DEFAULT_REGION", default_region.iter());
    let test = test_numbers(env, mode);
    let rules = NumberRules { allowed: allowed?, refused: refused? };
    let NumberRules { allowed, refused } = rules.clone();
    let none = NumberRules::NONE;
    let api_rules = NumberRules {
        allowed: if env.text("REGIONS").is_some() { allowed } else { none.allowed },
        refused: if env.text("REFUSED_NUMBER_TYPES").is_some() { refused } else { none.refused },
    };
    Some(NumberConfig { api_rules, rules, default_region, test: test? })
}

/// Says which regions are none: nothing would ever be sent there.
fn known_regions<'a>(env: &mut Reader<'_>, name: &str, regions: impl Iterator<Item = &'a Region>) {
    let unknown: Vec<&str> =
        regions.filter(|region| !has_numbers(**region)).map(Region::as_str).collect();
    if !unknown.is_empty() {
        let unknown = unknown.join(", ");
        env.problem(name, &format!("has {unknown}: no country with phone numbers has this code"));
    }
}

/// Words by comma, or `none`.
fn list<T: std::str::FromStr, L: Default + FromIterator<T>>(text: &str) -> Option<L> {
    if text == "none" {
        return Some(L::default());
    }
    text.split(',').map(|word| word.trim().parse().ok()).collect()
}

fn test_numbers(env: &mut Reader<'_>, mode: Option<Mode>) -> Option<HashMap<PhoneNumber, Code>> {
    let in_release =
        env.choice("TEST_NUMBERS_IN_RELEASE", "refuse", &[("refuse", false), ("allow", true)]);
    env.hide("TEST_NUMBERS");
    let text = env.text("TEST_NUMBERS").unwrap_or_default();
    let mut numbers = HashMap::new();
    for number in text.split(',').filter(|number| !number.trim().is_empty()) {
        let read = number.trim().split_once(':').and_then(|(phone, code)| {
            Some((phone.strip_prefix('+')?.parse().ok()?, code.parse().ok()?))
        });
        let is_new = read.is_some_and(|(phone, code)| numbers.insert(phone, code).is_none());
        if !is_new {
            // Not shown: a code stands in it.
            env.problem(
                "TEST_NUMBERS",
                "must be +phone:code by comma, such as +79990000000:000000: each phone once, \
                 with 7 to 15 digits; codes have 4 to 10",
            );
            return None;
        }
    }
    if !numbers.is_empty() && mode == Some(Mode::Release) && in_release == Some(false) {
        env.problem(
            "TEST_NUMBERS",
            "are refused with APP_MODE=release: whoever knows one is verified without an SMS; \
             TEST_NUMBERS_IN_RELEASE=allow takes them all the same",
        );
    }
    in_release.map(|_| numbers)
}

fn guard(env: &mut Reader<'_>) -> Option<GuardConfig> {
    let mode = env.choice(
        "GUARD",
        "enforce",
        &[
            ("off", None),
            ("shadow", Some(GuardMode::Shadow)),
            ("enforce", Some(GuardMode::Enforce)),
        ],
    );
    let window = env.seconds("GUARD_WINDOW", 3_600, 60, 604_800);
    // Of a guard that is off, a replay tells what it would block.
    let of_rule = mode.flatten().unwrap_or(GuardMode::Enforce);
    let rules = env.parsed(
        "GUARD_RULES",
        "rules by comma, each adaptive, or prefix or region, the least number of sends and a \
         percentage of approvals from 1 to 100, and if it is to differ from GUARD, shadow or \
         enforce: adaptive,region:1000:5:shadow",
        GUARD_RULES,
        |text| guard_rules(text, of_rule).ok(),
    );
    Some(GuardConfig { mode: mode?, rules: rules?, window: window? })
}

fn events(env: &mut Reader<'_>) -> Option<EventsConfig> {
    let allow_private =
        env.choice("EVENTS_ALLOW_PRIVATE", "false", &[("true", true), ("false", false)]);
    let secrets = env.secret("EVENTS_SECRET");
    let url = env.url("EVENTS_URL");
    if url.is_some() && env.text("EVENTS_SECRET").is_none() {
        env.problem("EVENTS_SECRET", "is missing: what is posted to EVENTS_URL is signed");
    }
    if allow_private == Some(false) && url.as_ref().is_some_and(has_private_address) {
        let problem = "has an address that is not public; EVENTS_ALLOW_PRIVATE=true would allow it";
        env.problem("EVENTS_URL", problem);
    }
    Some(EventsConfig { url: url?, secrets: secrets?, allow_private: allow_private? })
}

/// Leaves the URL out: a password may stand in it.
impl fmt::Debug for EventsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventsConfig({:?} …)", self.secrets)
    }
}
