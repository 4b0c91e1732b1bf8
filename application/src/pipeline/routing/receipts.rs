use domain::GatewayName;

use super::{Ask, Router};
use crate::ports::{AwaitedReceipt, Past, SmsGateway};

impl<G: SmsGateway> Router<G> {
    /// Returns the receipt that a message needs in time, now that `called` has accepted it. `None` if the
    /// setting is off, if `called` reports no receipts, or if the code could go through no other gateway.
    /// The past of `ask` includes the call.
    pub fn awaited_receipt(&self, ask: &Ask<'_>, called: &GatewayName) -> Option<AwaitedReceipt> {
        let to = self.to(ask.phone);
        let state = self.shared.state();
        let receipts = state.receipts.as_ref().filter(|receipts| receipts.of.contains(called))?;
        let place = state.place_of(&to)?;
        let Past { passed_over, ambiguous, unroutable, .. } = ask.past;
        let mut not_again = passed_over.clone();
        for name in ambiguous.iter().chain(unroutable).chain([called]) {
            if !not_again.contains(name) {
                not_again.push(name.clone());
            }
        }
        let order = state.routes[place].gateways.order(ask.id);
        let has_other =
            order.iter().any(|name| state.desks.contains_key(*name) && !not_again.contains(name));
        has_other.then_some(AwaitedReceipt { within: receipts.within, passed_over: not_again })
    }
}
