//! The gateways, and the routes to them.

mod document;
#[cfg(test)]
mod examples;
mod file;
mod located;
mod providers;
mod report;
mod routes;

use std::{collections::BTreeMap, fmt, num::NonZeroU32, path::PathBuf, sync::Arc, time::Duration};

use adapters_gateway::{Common, Gateway};
use anyhow::Context;
use domain::{Budget, GatewayName, PhoneNumber, Prices, Region};
use serde_json::{Map, Value as Json};

pub use self::file::GatewaysFile;
pub(super) use self::providers::{Named, PLAIN, own_fields_of, variable, variables, words};
use super::InvalidConfig;

/// Returns the value of a variable, or of a line of `.env`.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The gateways that SMS go through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GatewaysConfig {
    /// In the order of the file. There is at least one.
    pub gateways: Vec<GatewayConfig>,
    /// The first route that matches a number decides. There is at least one.
    pub routes: Vec<RouteConfig>,
    pub ambiguous: Ambiguous,
    pub weights: Weights,
    /// Without a receipt in this time, a code goes through the next gateway too. `None`: it does not.
    pub no_receipt_within: Option<Duration>,
    /// The URL at which providers reach this service, without a slash at its end.
    pub public_url: Option<String>,
    /// The file of gateways, and then the files with secrets that it names. Empty without
    /// `GATEWAYS_FILE`.
    pub files: Vec<PathBuf>,
    /// Secrets that the file names and that are not here: see [`Self::check_secrets`].
    pub missing: Vec<String>,
}

/// A gateway and its settings.
#[derive(Clone, PartialEq, Eq)]
pub struct GatewayConfig {
    pub name: GatewayName,
    /// One of the words of `provider`.
    pub provider: &'static str,
    /// The settings by the names of their fields, with their secrets.
    pub(super) table: Map<String, Json>,
    /// Whether the file names a secret that is not here. The gateway then cannot be built.
    pub misses_secrets: bool,
}

/// The gateways of some numbers.
///
/// A number matches if it is in one of the regions or begins with one of the prefixes. If there are
/// neither, every number matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteConfig {
    pub regions: Vec<Region>,
    /// Digits of international numbers.
    pub prefixes: Vec<String>,
    /// Without weights they are asked in this order. Either all have a weight or none has one.
    pub gateways: Vec<(GatewayName, Option<NonZeroU32>)>,
    /// `None`: each gateway has its own sender.
    pub sender: Option<Arc<str>>,
    /// The parameters of the provider for this route.
    pub params: Arc<BTreeMap<String, String>>,
}

/// Who is asked after a call without a clear outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ambiguous {
    /// The same gateway again, if it recognises the message.
    #[default]
    Same,
    /// The next gateway. The user may get two SMS with the same code.
    Next,
}

/// Whether a gateway that does worse than the others gets fewer messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Weights {
    #[default]
    Move,
    /// Routes alone decide.
    Fixed,
}

impl GatewaysConfig {
    /// One gateway for all numbers.
    pub(super) fn alone(gateway: GatewayConfig) -> Self {
        let route = RouteConfig::to_all(&[(gateway.name.clone(), 0)]);
        Self { gateways: vec![gateway], routes: vec![route], ..Self::default() }
    }

    /// Fails if the file names secrets that are not here. Only a process that sends needs them.
    pub fn check_secrets(&self) -> Result<(), InvalidConfig> {
        if self.missing.is_empty() { Ok(()) } else { Err(InvalidConfig(self.missing.clone())) }
    }

    pub fn find(&self, name: &GatewayName) -> Option<&GatewayConfig> {
        self.gateways.iter().find(|gateway| gateway.name == *name)
    }
}

impl GatewayConfig {
    /// Makes the gateway. Fails if a secret is missing or TLS cannot be set up.
    pub fn build(&self) -> anyhow::Result<(Gateway, Common)> {
        // Without a secret that need not be set, it would take receipts unsigned.
        anyhow::ensure!(
            !self.misses_secrets,
            "gateway {}: a secret that the file names is not available to this process",
            self.name
        );
        adapters_gateway::build(self.provider, &self.table)
            .map_err(|problems| {
                let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
                anyhow::anyhow!(problems.join("; "))
            })
            .with_context(|| format!("gateway {}", self.name))
    }

    /// Returns its prices and its daily budget, also if a secret is missing.
    pub fn costs(&self) -> (Prices, Budget) {
        adapters_gateway::costs(&self.table)
    }

    /// Returns what is wrong with the settings: the name of a field, and words that continue it.
    pub(super) fn problems(&self) -> Vec<(String, String)> {
        let problems = adapters_gateway::build(self.provider, &self.table).err();
        problems.into_iter().flatten().map(|it| (it.field, it.problem)).collect()
    }

    /// Whether its deliveries are reported, as far as that is known without its secrets.
    pub(super) fn may_report(&self, public_url: Option<&str>) -> bool {
        let callback = public_url.map(|url| callback(url, &self.name));
        let reports = |gateway: Gateway| gateway.reports_receipts(callback.as_deref());
        self.build().map_or(self.misses_secrets, |(gateway, _)| reports(gateway))
    }

    /// Returns how many connections it may have open.
    pub fn connections(&self) -> u64 {
        /// The default of `in_flight`.
        const IN_FLIGHT: u64 = 50;
        if self.is_console() {
            return 0;
        }
        self.table.get("in_flight").and_then(Json::as_u64).unwrap_or(IN_FLIGHT)
    }

    /// Whether its provider is called over HTTP, and reports deliveries over HTTP if it reports any.
    pub fn is_over_http(&self) -> bool {
        !self.is_console() && self.provider != "smpp"
    }

    /// Whether it prints SMS and calls nothing.
    pub fn is_console(&self) -> bool {
        self.provider == "console"
    }
}

impl RouteConfig {
    /// Whether a number of this region takes the route.
    pub fn matches(&self, phone: &PhoneNumber, region: Option<Region>) -> bool {
        let has_prefix = |prefix: &String| phone.as_str().starts_with(prefix.as_str());
        self.regions.is_empty() && self.prefixes.is_empty()
            || region.is_some_and(|region| self.regions.contains(&region))
            || self.prefixes.iter().any(has_prefix)
    }

    /// Returns the first gateway, or the one with the greatest weight.
    pub fn first(&self) -> Option<&GatewayName> {
        let weight = |place: usize| self.gateways[place].1.map_or(0, NonZeroU32::get);
        // The first of those with the same weight.
        let place = (0..self.gateways.len()).rev().max_by_key(|place| weight(*place))?;
        Some(&self.gateways[place].0)
    }

    /// All numbers go to the first gateway, and to the others in their order if it fails.
    fn to_all(gateways: &[(GatewayName, usize)]) -> Self {
        Self {
            regions: Vec::new(),
            prefixes: Vec::new(),
            gateways: gateways.iter().map(|(name, _)| (name.clone(), None)).collect(),
            sender: None,
            params: Arc::default(),
        }
    }
}

/// Returns a URL as long as the one at which the provider of a gateway reports deliveries.
pub(crate) fn callback(public_url: &str, gateway: &GatewayName) -> String {
    /// The length of a token in such a URL.
    const TOKEN: usize = 22;
    let public_url = public_url.trim_end_matches('/');
    format!("{public_url}/v1/receipts/{gateway}?token={}", "0".repeat(TOKEN))
}

/// Leaves the values out: they may be secrets.
impl fmt::Debug for GatewayConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields: Vec<&String> = self.table.keys().collect();
        f.debug_struct("GatewayConfig")
            .field("name", &self.name)
            .field("provider", &self.provider)
            .field("fields", &fields)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
