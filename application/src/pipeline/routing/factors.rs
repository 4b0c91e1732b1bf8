use std::collections::{BTreeSet, HashMap};

use domain::{Factor, GatewayName, MessageId, Region, RegionalGateway};

use super::{Router, table::uniform};
use crate::ports::SmsGateway;

/// The factors that are not full.
#[derive(Debug, Default)]
pub(super) struct Factors(HashMap<RegionalGateway, Factor>);

impl Factors {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts gateways behind the others for the messages that their factors take from them. A gateway
    /// keeps its place for the part of the messages that its factor says.
    pub(super) fn apply(
        &self,
        order: &mut [&GatewayName],
        message: MessageId,
        region: Option<Region>,
    ) {
        let is_behind = |gateway: &GatewayName| {
            let of = RegionalGateway { gateway: gateway.clone(), region };
            let factor = self.0.get(&of);
            // Drawn from the message's id, so that the message has the same order each time. The word
            // makes it independent of the draw by weight.
            factor.is_some_and(|it| uniform((message, gateway, "factor")) >= it.share())
        };
        order.sort_by_cached_key(|gateway| is_behind(gateway));
    }
}

impl<G: SmsGateway> Router<G> {
    /// Sets the factors of gateways. A gateway that is not named has the full factor.
    pub fn set_factors(&self, factors: impl IntoIterator<Item = (RegionalGateway, Factor)>) {
        let lower = factors.into_iter().filter(|(_, factor)| *factor < Factor::FULL).collect();
        self.shared.state().factors = Factors(lower);
    }

    /// Returns the factors that are not full, in no order.
    pub fn factors(&self) -> Vec<(RegionalGateway, Factor)> {
        let state = self.shared.state();
        state.factors.0.iter().map(|(of, factor)| (of.clone(), *factor)).collect()
    }

    /// Returns the regions that routes name, each with the gateways of its routes.
    pub fn regions(&self) -> BTreeSet<RegionalGateway> {
        let state = self.shared.state();
        let of_route = |route: &super::Route| {
            let names = route.gateways.names();
            let of = |region: Region| {
                names
                    .iter()
                    .map(move |it| RegionalGateway { gateway: (*it).clone(), region: Some(region) })
            };
            route.regions.iter().copied().flat_map(of).collect::<Vec<_>>()
        };
        state.routes.iter().flat_map(of_route).collect()
    }
}
