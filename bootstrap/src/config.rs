//! The settings, in sections that mirror the roles. Each section declares its settings and reads
//! them; nothing else knows a setting by its name.

mod api;
mod broker;
mod codes;
mod consumer;
mod database;
mod effective;
mod events;
mod gateway;
mod gateways;
mod guard;
mod kafka;
mod limits;
mod mask;
mod numbers;
mod process;
mod reader;
mod relay;
mod setting;
mod texts;
mod traces;
mod verification;
mod warnings;

use std::{fmt, sync::Arc};

use adapters_broker::KafkaSecurity;
use adapters_persistence::DatabaseSettings;
use domain::Templates;

use self::reader::Reader;
pub use self::{
    api::{ApiConfig, ApiTls, LegacyApiConfig},
    broker::BrokerConfig,
    codes::CodesConfig,
    consumer::{Beginning, ConsumerConfig},
    effective::{Effective, Shown},
    events::EventsConfig,
    gateways::{Ambiguous, GatewayConfig, GatewaysConfig, GatewaysFile, RouteConfig, Weights},
    guard::{GuardConfig, guard_rules},
    numbers::NumberConfig,
    process::{LogFormat, Mode, ProcessConfig},
    relay::RelayConfig,
    setting::{Section, Setting, Values, example, markdown},
    traces::TracesConfig,
    verification::VerificationConfig,
};
pub(crate) use self::{
    effective::environment, gateway::problem_beside_the_file, gateways::callback,
};

/// All settings of all binaries: one `.env` serves them all.
#[derive(Debug, Clone)]
pub struct Config {
    pub api: ApiConfig,
    pub verification: VerificationConfig,
    pub codes: CodesConfig,
    pub numbers: NumberConfig,
    pub guard: GuardConfig,
    /// `None`: no events are recorded or posted.
    pub events: Option<EventsConfig>,
    pub texts: Arc<Templates>,
    pub gateways: GatewaysConfig,
    pub database: DatabaseSettings,
    pub relay: RelayConfig,
    pub consumer: ConsumerConfig,
    pub kafka: KafkaSecurity,
    pub process: ProcessConfig,
    /// `None`: nothing is traced.
    pub traces: Option<TracesConfig>,
    /// Values that the operator probably did not intend, such as a name that no setting has.
    pub remarks: Vec<String>,
}

/// Everything that is wrong with the settings.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidConfig(Vec<String>);

impl InvalidConfig {
    /// The problems, each on a line of its own.
    pub(crate) fn problems(&self) -> &[String] {
        &self.0
    }
}

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

    /// Reads the values that `lookup` returns, and reports every problem at once.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, InvalidConfig> {
        Self::from_reader(&mut Reader::new(lookup))
    }

    fn from_reader(env: &mut Reader<'_>) -> Result<Self, InvalidConfig> {
        match Self::read_sections(env) {
            Some(config) if env.problems.is_empty() => Ok(config),
            _ => Err(InvalidConfig(std::mem::take(&mut env.problems))),
        }
    }

    /// Reads every section, even after a bad one, so that all problems are reported.
    fn read_sections(env: &mut Reader<'_>) -> Option<Self> {
        let mode = process::mode(env);
        let process = process::read(env, mode);
        let database = database::read(env);
        let is_sqlite = matches!(database, Some(DatabaseSettings::Sqlite(_)));
        let relay = relay::read(env);
        let consumer = consumer::read(env);
        let kafka = kafka::read(env);
        let is_embedded = is_sqlite && !env.is_set("PRODUCER_URL") && !env.is_set("CONSUMER_URL");
        let codes = codes::read(env, is_embedded);
        let texts = texts::read(env);
        let numbers = numbers::read(env, mode);
        let limits = limits::read(env);
        let verification = verification::read(env, numbers.as_ref(), limits.v1);
        let api = api::read(env, is_sqlite, numbers.as_ref(), limits.legacy);
        let guard = guard::read(env);
        let events = events::read(env);
        let gateways = gateway::read(env);
        let traces = traces::read(env);

        Some(Self {
            api: api?,
            verification: verification?,
            codes: codes?,
            numbers: numbers?,
            guard: guard?,
            events,
            texts: texts?,
            gateways: gateways?,
            database: database?,
            relay: relay?,
            consumer: consumer?,
            kafka: kafka?,
            process: process?,
            traces,
            remarks: Vec::new(),
        })
    }

    /// Checks what holds only if the processor and the consumer are one process.
    pub fn check_all_in_one(&self) -> Result<(), InvalidConfig> {
        if self.relay.broker.is_kafka() == self.consumer.broker.is_kafka() {
            return Ok(());
        }
        let problem =
            "PRODUCER_URL and CONSUMER_URL go together: both for Kafka, none for the queue";
        Err(InvalidConfig(vec![problem.to_owned()]))
    }
}

#[cfg(test)]
mod tests;
