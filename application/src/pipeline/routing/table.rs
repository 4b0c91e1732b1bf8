use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use domain::{GatewayName, MessageId, PhoneNumber, Region};

/// The gateways, and which messages go through which of them.
#[derive(Debug)]
pub struct RoutingTable<G> {
    /// Each name occurs once.
    pub gateways: Vec<RoutedGateway<G>>,
    /// The first route that matches a number counts.
    pub routes: Vec<Route>,
    pub after_ambiguous: AfterAmbiguous,
    /// `None`: no receipt is awaited.
    pub receipts: Option<ReceiptsInTime>,
}

/// The receipts without which a code is sent again through another gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptsInTime {
    pub within: Duration,
    /// The gateways that report receipts. That of no other gateway is awaited.
    pub of: BTreeSet<GatewayName>,
}

/// A gateway and its limits.
#[derive(Debug)]
pub struct RoutedGateway<G> {
    pub name: GatewayName,
    pub gateway: Arc<G>,
    pub limits: GatewayLimits,
}

/// The limits of one gateway. Those on calls hold for all consumers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatewayLimits {
    /// How long a call lasts at most. A call without an outcome by then is ambiguous.
    pub call_limit: Duration,
    /// The maximum number of concurrent calls.
    pub in_flight: Option<NonZeroUsize>,
    /// The number of concurrent calls that one process can make. A further call would wait in the gateway.
    pub in_process: Option<NonZeroUsize>,
    /// The maximum number of calls that begin in a second.
    pub per_second: Option<NonZeroU32>,
}

/// The next gateway of a message after an ambiguous outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AfterAmbiguous {
    /// To the same gateway, if that recognises a repeated message. Otherwise it ends as unknown.
    #[default]
    Same,
    /// To another gateway, even if that may send a second SMS.
    Next,
}

/// The gateways for some numbers, and what they are told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    /// The numbers of the route: those of these regions, and those that begin with one of these digits.
    /// If both are empty, all numbers.
    pub regions: BTreeSet<Region>,
    pub prefixes: BTreeSet<String>,
    pub gateways: Preference,
    /// The sender, if it is not the gateway's own.
    pub sender: Option<Arc<str>>,
    /// The parameters of the provider for these numbers.
    pub params: Arc<BTreeMap<String, String>>,
}

/// Which gateway of a route comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preference {
    InOrder(Vec<GatewayName>),
    /// Each message draws its own order, in which a gateway is first as often as its weight says. A
    /// gateway with weight 0 comes last.
    ByWeight(Vec<(GatewayName, u32)>),
}

impl<G> RoutingTable<G> {
    /// A table with one gateway for all numbers, under the default name.
    pub fn single(gateway: G, limits: GatewayLimits) -> Self {
        let name = GatewayName::default();
        let gateways = Preference::InOrder(vec![name.clone()]);
        Self {
            gateways: vec![RoutedGateway { name, gateway: Arc::new(gateway), limits }],
            routes: vec![Route { gateways, ..Route::default() }],
            after_ambiguous: AfterAmbiguous::default(),
            receipts: None,
        }
    }
}

impl GatewayLimits {
    /// No limits but that on the time of a call.
    pub const fn none(call_limit: Duration) -> Self {
        Self { call_limit, in_flight: None, in_process: None, per_second: None }
    }
}

impl Route {
    /// `region` looks up the region of the number.
    pub(super) fn matches(
        &self,
        phone: &PhoneNumber,
        region: impl FnOnce() -> Option<Region>,
    ) -> bool {
        let begins = |prefix: &String| phone.as_str().starts_with(prefix.as_str());
        let is_listed = |region| self.regions.contains(&region);
        self.regions.is_empty() && self.prefixes.is_empty()
            || self.prefixes.iter().any(begins)
            || !self.regions.is_empty() && region().is_some_and(is_listed)
    }
}

impl Default for Preference {
    fn default() -> Self {
        Self::InOrder(Vec::new())
    }
}

impl Preference {
    /// Returns the gateways in the order of the settings.
    pub(super) fn names(&self) -> Vec<&GatewayName> {
        match self {
            Self::InOrder(names) => names.iter().collect(),
            Self::ByWeight(weights) => weights.iter().map(|(name, _)| name).collect(),
        }
    }

    /// Returns the gateways in the order for one message. It is the same each time, also in other
    /// processes.
    pub(super) fn order(&self, message: MessageId) -> Vec<&GatewayName> {
        match self {
            Self::InOrder(names) => names.iter().collect(),
            Self::ByWeight(weights) => {
                let mut drawn: Vec<_> = weights
                    .iter()
                    .map(|(name, weight)| (place(message, name, *weight), name))
                    .collect();
                drawn.sort_by(|(left, _), (right, _)| left.total_cmp(right));
                drawn.into_iter().map(|(_, name)| name).collect()
            }
        }
    }
}

/// Draws the place of a gateway from the message's id. The smallest of exponentially distributed numbers
/// with the weights as their rates belongs to each gateway as often as its weight says (weighted
/// rendezvous hashing), and the order of the others stays the same if a gateway is added or removed.
fn place(message: MessageId, name: &GatewayName, weight: u32) -> f64 {
    -uniform((message, name)).ln() / f64::from(weight)
}

/// Draws a number between 0 and 1 that is neither. It is the same each time, also in other processes.
pub(super) fn uniform(of: impl Hash) -> f64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    let high = u32::try_from(hasher.finish() >> 32).unwrap_or(u32::MAX);
    (f64::from(high) + 0.5) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn name(text: &str) -> GatewayName {
        text.parse().unwrap()
    }

    fn message(number: i64) -> MessageId {
        MessageId::of_record("t", 0, number, 0)
    }

    fn route(regions: &[&str], prefixes: &[&str]) -> Route {
        Route {
            regions: regions.iter().map(|region| region.parse().unwrap()).collect(),
            prefixes: prefixes.iter().map(|&prefix| prefix.to_owned()).collect(),
            ..Route::default()
        }
    }

    #[test]
    fn a_route_matches_by_region_or_by_prefix() {
        let phone: PhoneNumber = "77011234567".parse().unwrap();
        for (route, expected) in [
            (route(&[], &[]), true),
            (route(&["RU", "KZ"], &[]), true),
            (route(&["RU"], &[]), false),
            (route(&[], &["770", "49"]), true),
            (route(&[], &["771"]), false),
            (route(&["RU"], &["770"]), true),
            (route(&["RU"], &["79"]), false),
        ] {
            assert_eq!(route.matches(&phone, || "KZ".parse().ok()), expected, "{route:?}");
        }
        assert!(!route(&["KZ"], &[]).matches(&phone, || None), "a number of no region");
    }

    #[test]
    fn the_region_is_looked_up_only_if_a_route_has_regions() {
        let phone = "77011234567".parse().unwrap();

        assert!(!route(&[], &["49"]).matches(&phone, || panic!("looked up")));
        assert!(route(&["RU"], &["77"]).matches(&phone, || panic!("looked up")));
    }

    #[test]
    fn gateways_are_first_as_often_as_their_weights_say() {
        let weights = [("main", 70), ("local", 30), ("spare", 0)];
        let by_weight = Preference::ByWeight(weights.map(|(it, weight)| (name(it), weight)).into());

        let mut first: HashMap<&str, u32> = HashMap::new();
        for number in 0..10_000 {
            let order = by_weight.order(message(number));
            assert_eq!(order.len(), 3);
            assert_eq!(order[2].as_str(), "spare");
            *first.entry(order[0].as_str()).or_default() += 1;
        }

        assert!((6_800..7_200).contains(&first["main"]), "{first:?}");
    }

    #[test]
    fn a_message_keeps_its_order_if_a_gateway_is_removed() {
        let all = [("a", 50), ("b", 30), ("c", 20)].map(|(it, weight)| (name(it), weight));
        let three = Preference::ByWeight(all.to_vec());
        let two = Preference::ByWeight(all[1..].to_vec());

        for number in 0..100 {
            let order = three.order(message(number));
            assert_eq!(order, three.order(message(number)));
            let rest: Vec<_> = order.into_iter().filter(|it| it.as_str() != "a").collect();
            assert_eq!(rest, two.order(message(number)));
        }
    }
}
