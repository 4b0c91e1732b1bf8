//! The settings by their names. Nothing else knows a name; `.env.example` and
//! `docs/settings.md` list them, and a test holds this module against both.

mod effective;
mod texts;
mod verification;
mod warnings;

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    num::{NonZeroU16, NonZeroU32},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use adapters_http::Hosts;
use adapters_persistence::{DatabaseSettings, PostgresSettings, SslMode, SslRootCert};
use domain::{CodeLength, Templates};
use tracing_subscriber::EnvFilter;

use self::effective::{Asked, Kind, without_password};
pub use self::{
    effective::{Effective, Setting},
    verification::{
        ApiConfig, EventsConfig, GuardConfig, NumberConfig, VerificationConfig, guard_rules,
    },
};

/// All settings of all binaries: one `.env` serves them all.
#[derive(Debug, Clone)]
pub struct Config {
    pub mode: Mode,
    pub log: Option<String>,
    pub api_hosts: Hosts,
    pub api_port: u16,
    pub max_connections: u16,
    /// `None`: as many as there are.
    pub max_connections_per_peer: Option<NonZeroU16>,
    pub metrics_hosts: Hosts,
    /// `None`: the binary's own default.
    pub metrics_port: Option<u16>,
    pub shutdown_grace: Duration,
    pub database: DatabaseSettings,
    pub producer: BrokerConfig,
    pub consumer: BrokerConfig,
    pub batch: NonZeroU32,
    pub reservation: Duration,
    pub confirm_within: Duration,
    pub topic_partitions: NonZeroU16,
    pub topic_replication: NonZeroU16,
    pub group: String,
    /// `None`: the latest in Kafka, the earliest in the embedded queue, which is nobody else's.
    pub start_from: Option<Beginning>,
    pub concurrency: usize,
    pub delivery_retention: Duration,
    pub code_length: CodeLength,
    pub code_ttl: Duration,
    pub templates: Arc<Templates>,
    pub verification: VerificationConfig,
    pub gateway: GatewayConfig,
    /// What is set and probably not meant, such as a name that no setting has.
    pub remarks: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Debug,
    Release,
}

/// Where a group begins that has no offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// At the earliest record.
    Earliest,
    /// At the end; the first group of a topic at what may still be good.
    Latest,
    /// At the end, whatever is before it.
    End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerConfig {
    /// Kafka's, each as `host:port`; none: the embedded queue.
    pub servers: Vec<String>,
    pub topic: String,
}

#[derive(Clone, PartialEq, Eq)]
pub enum GatewayConfig {
    Console,
    Webhook { url: http::Uri, timeout: Duration, deduplicates: bool, keep_alive: Duration },
}

const DAY: Duration = Duration::from_secs(86_400);

/// Everything that is wrong with the settings.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidConfig(Vec<String>);

impl std::error::Error for InvalidConfig {}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the settings are not usable:")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl Config {
    /// Reads the process's environment and the file `.env` of the working directory.
    pub fn read() -> Result<Self, InvalidConfig> {
        Effective::read().config
    }

    /// Reads what `lookup` knows, and reports all that is wrong with it.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, InvalidConfig> {
        Self::read_all(lookup).0
    }

    /// Tells what was asked for, too.
    fn read_all(
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> (Result<Self, InvalidConfig>, Vec<Asked>) {
        let mut env = Reader { lookup, problems: Vec::new(), asked: Vec::new() };
        let config = Self::read_with(&mut env);
        let config = match config {
            Some(config) if env.problems.is_empty() => Ok(config),
            _ => Err(InvalidConfig(env.problems)),
        };
        (config, env.asked)
    }

    fn read_with(env: &mut Reader<'_>) -> Option<Self> {
        let mode = env.choice(
            "APP_MODE",
            "release",
            &[("debug", Mode::Debug), ("release", Mode::Release)],
        );
        let log = env.text("LOG");
        if let Some(filter) = &log
            && EnvFilter::try_new(filter).is_err()
        {
            env.problem(
                "LOG",
                &format!("is {filter:?}, and must be a level or target=level, by comma"),
            );
        }
        let api_hosts = env.hosts("APP_HOST");
        let api_port = env.port("APP_PORT").unwrap_or(8080);
        env.otherwise("APP_PORT", "8080");
        let max_connections = env.number("MAX_CONNECTIONS", 768, 1, 65_535);
        let max_connections_per_peer = env.parsed(
            "MAX_CONNECTIONS_PER_PEER",
            "off, or a whole number from 1 to 65535",
            "off",
            |text| {
                if text == "off" { Some(None) } else { text.parse().ok().map(Some) }
            },
        );
        let metrics_hosts = env.hosts("PROMETHEUS_SERVER_HOST");
        let metrics_port = env.port("PROMETHEUS_SERVER_PORT");
        env.otherwise("PROMETHEUS_SERVER_PORT", "8082, processor 8083, consumer 8084");
        let shutdown_grace = env.seconds("SHUTDOWN_GRACE", 20, 1, 3_600);
        let database = database(env);
        let producer = BrokerConfig {
            servers: env.servers("PRODUCER_URL"),
            topic: env.topic("PROCESSOR_TOPIC"),
        };
        let consumer = BrokerConfig {
            servers: env.servers("CONSUMER_URL"),
            topic: env.topic("CONSUMER_TOPIC"),
        };
        let batch = env.number("PROCESSOR_TAKE_MESSAGE_LIMIT", 1_000, 1, 10_000);
        let reservation = env.seconds("PROCESSOR_RESERVATION_TIME", 1, 1, 3_600);
        let confirm_within = env.seconds("PROCESSOR_CONFIRM_WITHIN", 30, 1, 86_400);
        let topic_partitions = env.number("TOPIC_PARTITIONS", 4, 1, 1_000);
        let topic_replication = env.number("TOPIC_REPLICATION_FACTOR", 1, 1, 100);
        let group = env.text("CONSUMER_GROUP_ID").unwrap_or_else(|| "1".to_owned());
        env.otherwise("CONSUMER_GROUP_ID", "1");
        let start_from = env.text("CONSUMER_AUTO_OFFSET_RESET").map(|_| {
            let choices = [
                ("earliest", Beginning::Earliest),
                ("latest", Beginning::Latest),
                ("end", Beginning::End),
            ];
            env.choice("CONSUMER_AUTO_OFFSET_RESET", "", &choices)
        });
        let concurrency = env.number("CONSUMER_CONCURRENCY", 64, 1, 10_000);
        let delivery_retention =
            env.number("DELIVERY_RETENTION", 7, 1, 3_650).map(|days: u32| DAY * days);
        let code_length = env.parsed("CODE_LENGTH", "a whole number from 4 to 10", "6", |text| {
            text.parse::<usize>().ok().and_then(|digits| digits.try_into().ok())
        });
        let code_ttl = env.seconds("CODE_TTL", 600, 1, 86_400);
        let templates = texts::read(env);
        let has_kafka = !producer.servers.is_empty() || !consumer.servers.is_empty();
        let verification = verification::read(env, database.as_ref(), has_kafka, mode);
        let gateway = gateway(env);

        Some(Self {
            mode: mode?,
            log,
            api_hosts: api_hosts?,
            api_port,
            max_connections: max_connections?,
            max_connections_per_peer: max_connections_per_peer?,
            metrics_hosts: metrics_hosts?,
            metrics_port,
            shutdown_grace: shutdown_grace?,
            database: database?,
            producer,
            consumer,
            batch: batch?,
            reservation: reservation?,
            confirm_within: confirm_within?,
            topic_partitions: topic_partitions?,
            topic_replication: topic_replication?,
            group,
            start_from: start_from.flatten(),
            concurrency: usize::from(NonZeroU16::get(concurrency?)),
            delivery_retention: delivery_retention?,
            code_length: code_length?,
            code_ttl: code_ttl?,
            templates: templates?,
            verification: verification?,
            gateway: gateway?,
            remarks: Vec::new(),
        })
    }
}

impl Config {
    /// What holds only where the processor and the consumer are one process.
    pub fn check_all_in_one(&self) -> Result<(), InvalidConfig> {
        if self.producer.servers.is_empty() == self.consumer.servers.is_empty() {
            return Ok(());
        }
        let problem =
            "PRODUCER_URL and CONSUMER_URL go together: both for Kafka, none for the queue";
        Err(InvalidConfig(vec![problem.to_owned()]))
    }
}

fn database(env: &mut Reader<'_>) -> Option<DatabaseSettings> {
    const NEEDED: [&str; 4] =
        ["POSTGRES_HOST", "POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD"];

    let ssl_root_cert = env.text("DB_SSL_ROOT_CERT").map(|text| match &*text {
        "system" => SslRootCert::System,
        path => SslRootCert::File(path.into()),
    });
    if let Some(Err(problem)) = ssl_root_cert.as_ref().map(SslRootCert::check) {
        env.problem("DB_SSL_ROOT_CERT", &format!("cannot be used: {problem}"));
    }
    // As libpq: whom the public authorities have signed for, must be whom we asked for.
    let is_system = ssl_root_cert == Some(SslRootCert::System);
    let ssl_mode = env.choice(
        "DB_SSL_MODE",
        if is_system { "verify-full" } else { "prefer" },
        &[
            ("disable", SslMode::Disable),
            ("allow", SslMode::Allow),
            ("prefer", SslMode::Prefer),
            ("require", SslMode::Require),
            ("verify-ca", SslMode::VerifyCa),
            ("verify-full", SslMode::VerifyFull),
        ],
    );
    let port = env.port("POSTGRES_PORT");
    let sqlite = env.parsed("SQLITE_PATH", "the path of a file", "messager.db", |path| {
        // What SQLite keeps in memory is not kept.
        (!path.contains(":memory:")).then(|| path.to_owned())
    });
    env.otherwise("POSTGRES_PORT", "5432");
    let [host, database, user, password] = NEEDED.map(|name| env.text(name));
    env.hide("POSTGRES_PASSWORD");

    let any = [&host, &database, &user, &password].iter().any(|it| it.is_some()) || port.is_some();
    if !any {
        return Some(DatabaseSettings::Sqlite(sqlite?.into()));
    }
    let (Some(host), Some(database), Some(user)) = (&host, &database, &user) else {
        for (name, value) in NEEDED.iter().zip([&host, &database, &user]) {
            if value.is_none() {
                env.problem(
                    name,
                    "is missing: the POSTGRES_ settings go together; none of them means SQLite",
                );
            }
        }
        return None;
    };
    check_root_cert(env, ssl_mode, ssl_root_cert.as_ref());
    Some(DatabaseSettings::Postgres(PostgresSettings {
        host: host.clone(),
        port: port.unwrap_or(5432),
        database: database.clone(),
        user: user.clone(),
        // Servers that trust their own machine ask for none.
        password,
        ssl_mode: ssl_mode?,
        ssl_root_cert,
    }))
}

/// What `DB_SSL_MODE` needs of `DB_SSL_ROOT_CERT`, as in libpq.
fn check_root_cert(env: &mut Reader<'_>, mode: Option<SslMode>, root: Option<&SslRootCert>) {
    let Some(mode) = mode else { return };
    match root {
        None if mode.verifies() => env.problem(
            "DB_SSL_ROOT_CERT",
            &format!(
                "is missing: DB_SSL_MODE={} needs the PEM file of the authority that signs the \
                 server's certificate, or system",
                mode.name()
            ),
        ),
        Some(SslRootCert::System) if mode != SslMode::VerifyFull => env.problem(
            "DB_SSL_MODE",
            &format!("is {}, and must be verify-full, as DB_SSL_ROOT_CERT is system", mode.name()),
        ),
        _ => {}
    }
}

fn gateway(env: &mut Reader<'_>) -> Option<GatewayConfig> {
    let timeout = env.seconds("GATEWAY_TIMEOUT", 10, 1, 300);
    let deduplicates =
        env.choice("GATEWAY_DEDUPLICATES", "true", &[("true", true), ("false", false)]);
    let keep_alive = keep_alive(env, deduplicates);
    let url = env.url("GATEWAY_URL");
    let is_webhook = env.choice("GATEWAY", "console", &[("console", false), ("webhook", true)])?;
    if !is_webhook {
        return Some(GatewayConfig::Console);
    }
    if env.text("GATEWAY_URL").is_none() {
        env.problem("GATEWAY_URL", "is missing: GATEWAY=webhook posts there");
    }
    Some(GatewayConfig::Webhook {
        url: url?,
        timeout: timeout?,
        deduplicates: deduplicates?,
        keep_alive: keep_alive?,
    })
}

/// A gateway that does not deduplicate gets a connection for each call: if it closes an idle one
/// just as a call is written to it, the message ends `unknown`.
fn keep_alive(env: &mut Reader<'_>, deduplicates: Option<bool>) -> Option<Duration> {
    let deduplicates = deduplicates?;
    let keep_alive = env.seconds("GATEWAY_KEEP_ALIVE", u32::from(deduplicates), 0, 300)?;
    if !deduplicates && !keep_alive.is_zero() {
        env.problem("GATEWAY_KEEP_ALIVE", "must be 0 with GATEWAY_DEDUPLICATES=false");
        return None;
    }
    Some(keep_alive)
}

/// Leaves the URL out: a password may stand in it.
impl fmt::Debug for GatewayConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Console => "Console",
            Self::Webhook { .. } => "Webhook(…)",
        })
    }
}

/// Reads settings one by one and gathers what is wrong with them.
struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<String>,
    asked: Vec<Asked>,
}

impl Reader<'_> {
    /// An empty value is none.
    fn text(&mut self, name: &str) -> Option<String> {
        let value = (self.lookup)(name).filter(|value| !value.trim().is_empty());
        self.asked(name).value.clone_from(&value);
        value
    }

    fn asked(&mut self, name: &str) -> &mut Asked {
        let known = self.asked.iter().position(|asked| asked.name == name);
        let at = known.unwrap_or_else(|| {
            self.asked.push(Asked::new(name));
            self.asked.len() - 1
        });
        &mut self.asked[at]
    }

    /// Tells what holds where nothing is set, if that is not said otherwise.
    fn otherwise(&mut self, name: &str, default: impl Into<String>) {
        self.asked(name).default = Some(default.into());
    }

    /// Says that a value is not to be shown.
    fn hide(&mut self, name: &str) {
        self.asked(name).kind = Kind::Secret;
    }

    fn problem(&mut self, name: &str, problem: &str) {
        self.problems.push(format!("{name} {problem}"));
    }

    fn parsed<T>(
        &mut self,
        name: &str,
        allowed: &str,
        default: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let value = self.text(name).unwrap_or_else(|| default.to_owned());
        self.otherwise(name, default);
        let parsed = parse(value.trim());
        if parsed.is_none() {
            let value = without_password(&value);
            self.problem(name, &format!("is {value:?}, and must be {allowed}"));
        }
        parsed
    }

    /// None: it is unset, or it is bad, which then is noted.
    fn optional<T: FromStr>(&mut self, name: &str, allowed: &str) -> Option<T> {
        self.text(name)?;
        self.parsed(name, allowed, "", |text| text.parse().ok())
    }

    /// None: it is unset or bad. It is not shown, and so its errors must say nothing of it.
    fn secret<T: FromStr<Err: fmt::Display>>(&mut self, name: &str) -> Option<T> {
        self.hide(name);
        let read = self.text(name)?.trim().parse();
        read.map_err(|error| self.problem(name, &format!("cannot be used: {error}"))).ok()
    }

    /// None: it is unset or bad. It is not shown: it may hold a password.
    fn url(&mut self, name: &str) -> Option<http::Uri> {
        self.asked(name).kind = Kind::Url;
        let url = self.text(name)?.trim().parse::<http::Uri>().ok().filter(|url| {
            matches!(url.scheme_str(), Some("http" | "https"))
                && url.host().is_some_and(|host| !host.is_empty())
                && has_good_port(url)
        });
        if url.is_none() {
            self.problem(
                name,
                "must begin with http:// or https:// and a host, and a port may be 1 to 65535",
            );
        }
        url
    }

    fn choice<T: Copy>(&mut self, name: &str, default: &str, choices: &[(&str, T)]) -> Option<T> {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        self.parsed(name, &format!("one of {}", words.join(", ")), default, |text| {
            choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice)
        })
    }

    fn number<T: FromStr>(&mut self, name: &str, default: u32, min: u32, max: u32) -> Option<T> {
        let allowed = format!("a whole number from {min} to {max}");
        self.parsed(name, &allowed, &default.to_string(), |text| {
            text.parse().ok().filter(|number| (min..=max).contains(number))?;
            text.parse().ok()
        })
    }

    fn seconds(&mut self, name: &str, default: u32, min: u32, max: u32) -> Option<Duration> {
        let allowed = format!("seconds, a whole number from {min} to {max}");
        self.parsed(name, &allowed, &default.to_string(), |text| {
            let number: u32 = text.parse().ok().filter(|number| (min..=max).contains(number))?;
            Some(Duration::from_secs(number.into()))
        })
    }

    fn hosts(&mut self, name: &str) -> Option<Hosts> {
        let allowed = "*, localhost, or IP addresses of this machine, by comma";
        self.parsed(name, allowed, "*", |text| text.parse().ok())
    }

    fn port(&mut self, name: &str) -> Option<u16> {
        self.text(name)?;
        let port = self.parsed(name, "a port, a whole number from 1 to 65535", "", |text| {
            text.parse::<NonZeroU16>().ok()
        });
        port.map(NonZeroU16::get)
    }

    /// Kafka's servers, each once. None: it is unset, or bad, which then is noted.
    fn servers(&mut self, name: &str) -> Vec<String> {
        let Some(text) = self.text(name) else { return Vec::new() };
        let mut servers: Vec<String> = Vec::new();
        for server in text.split(|c: char| c == ',' || c.is_whitespace()) {
            if server.is_empty() || servers.iter().any(|known| known.eq_ignore_ascii_case(server)) {
                continue;
            }
            if let Err(rule) = check_server(server) {
                // What stands before an @ may be a password.
                let shown = if server.contains('@') { "…@…" } else { server };
                self.problem(name, &format!("has {shown:?}, and must be {SERVERS}: {rule}"));
            }
            servers.push(server.to_owned());
        }
        if servers.is_empty() {
            self.problem(name, &format!("is {text:?}, and must be {SERVERS}: it names no server"));
        }
        servers
    }

    /// A topic name that Kafka allows.
    fn topic(&mut self, name: &str) -> String {
        let allowed = "1 to 249 letters, digits, dots, underscores and hyphens";
        let topic = self.parsed(name, allowed, "message", |text| {
            let fits = text.len() <= 249
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
                && text != "."
                && text != "..";
            fits.then(|| text.to_owned())
        });
        topic.unwrap_or_default()
    }
}

const SERVERS: &str = "host:port, several by comma or space";

/// Says which rule of `host:port` a text breaks.
fn check_server(text: &str) -> Result<(), &'static str> {
    if text.contains(';') {
        return Err("servers are separated by a comma or a space");
    }
    if text.contains("://") {
        return Err("it has no protocol before the host; connections are not encrypted");
    }
    let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
    if let Some(bracketed) = host.strip_prefix('[') {
        let address = bracketed.strip_suffix(']').ok_or("a bracket is not closed")?;
        address.parse::<Ipv6Addr>().map_err(|_| "brackets hold an IPv6 address")?;
    } else if host.contains(':') {
        return Err("an IPv6 address stands in brackets, and a port behind them");
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

/// What stands behind the host's colon. Where that is no port, `Uri` has none, and the scheme's own
/// would be connected to.
fn has_good_port(url: &http::Uri) -> bool {
    let authority = url.authority().map_or("", |it| it.as_str());
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let port = host.strip_prefix(url.host().unwrap_or_default()).unwrap_or_default();
    port.is_empty() || port.strip_prefix(':').is_some_and(|it| it.parse::<NonZeroU16>().is_ok())
}

#[cfg(test)]
mod tests;
