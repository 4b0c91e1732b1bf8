use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use domain::{Amount, GatewayName, Origin, PhoneNumber, Region};

use super::{RegionOf, Route, Tariff, tariff::amount_of};

/// The daily budgets of all gateways, as they were a moment ago.
///
/// They tell a caller that no gateway of its route can afford a message, before the message is accepted.
/// They lag, and calls in progress may give something back: the ledger decides about accepted messages.
///
/// A copy shows the same budgets.
#[derive(Clone)]
pub struct Budgets(Arc<Inner>);

/// The amounts that were spent today, by gateway and by the scope of the limit, in millionths.
pub type Spent = BTreeMap<GatewayName, BTreeMap<String, u64>>;

/// One limit of a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetStatus {
    pub gateway: GatewayName,
    /// `total`, `international` or a region.
    pub scope: String,
    pub spent: Amount,
    pub limit: Amount,
}

struct Inner {
    region: RegionOf,
    state: RwLock<Arc<State>>,
    /// The messages of `/v1` and of `/api` that were refused.
    refusals: [AtomicU64; 2],
}

#[derive(Debug, Clone, Default)]
struct State {
    routes: Vec<Route>,
    /// Gateways with a budget.
    tariffs: BTreeMap<GatewayName, Tariff>,
    spent: Spent,
    /// Whether a limit may have no room for one more segment.
    is_tight: bool,
}

impl Budgets {
    /// No budgets.
    pub fn new(region: RegionOf) -> Self {
        Self(Arc::new(Inner { region, state: RwLock::default(), refusals: Default::default() }))
    }

    /// Replaces the routes, and the tariffs of all gateways. The amounts that were spent stay.
    pub fn replace(
        &self,
        routes: Vec<Route>,
        tariffs: impl IntoIterator<Item = (GatewayName, Tariff)>,
    ) {
        let tariffs = tariffs.into_iter().filter(|(_, tariff)| !tariff.is_free()).collect();
        let spent = self.state().spent.clone();
        self.put(State { routes, tariffs, spent, is_tight: false });
    }

    /// Notes what was spent today.
    pub fn note(&self, spent: Spent) {
        self.put(State { spent, ..State::clone(&self.state()) });
    }

    /// Whether any gateway has a budget.
    pub fn has_limits(&self) -> bool {
        !self.state().tariffs.is_empty()
    }

    /// Returns every limit.
    pub fn snapshot(&self) -> Vec<BudgetStatus> {
        let state = self.state();
        let of = |(gateway, tariff): (&GatewayName, &Tariff)| {
            tariff.status(gateway, state.spent.get(gateway))
        };
        state.tariffs.iter().flat_map(of).collect()
    }

    /// Returns the number of messages that were refused, by their origin.
    pub fn refusals(&self) -> [(Origin, u64); 2] {
        [Origin::V1, Origin::Api]
            .map(|origin| (origin, self.0.refusals[place(origin)].load(Ordering::Relaxed)))
    }

    /// Whether every gateway that a message to `phone` can take has used its budget up. `phone` has the
    /// form that the gateways get. Counts the refusal that follows.
    pub(crate) fn refuse(&self, origin: Origin, phone: &PhoneNumber) -> bool {
        let state = self.state();
        // The region is looked up only if it may matter: the lookup is slow.
        let refuses = state.is_tight && state.is_used_up(phone, (self.0.region)(phone));
        if refuses {
            self.0.refusals[place(origin)].fetch_add(1, Ordering::Relaxed);
        }
        refuses
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.0.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn put(&self, mut state: State) {
        let is_tight =
            |(gateway, tariff): (&GatewayName, &Tariff)| tariff.is_tight(state.spent.get(gateway));
        state.is_tight = state.tariffs.iter().any(is_tight);
        *self.0.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
    }
}

impl State {
    fn is_used_up(&self, phone: &PhoneNumber, region: Option<Region>) -> bool {
        let Some(route) = self.routes.iter().find(|route| route.matches(phone, || region)) else {
            return false;
        };
        let gateways = route.gateways.names();
        !gateways.is_empty() && gateways.into_iter().all(|gateway| !self.has_room(gateway, region))
    }

    /// Whether a gateway can afford one segment to a region.
    fn has_room(&self, gateway: &GatewayName, region: Option<Region>) -> bool {
        let cost = self.tariffs.get(gateway).and_then(|tariff| tariff.cost(region, 1));
        let spent = self.spent.get(gateway);
        cost.is_none_or(|cost| {
            let after = |scope| amount_of(spent, scope).saturating_add(cost.amount);
            cost.limits.iter().all(|it| after(&it.scope) <= it.limit)
        })
    }
}

/// Test numbers get no messages.
const fn place(origin: Origin) -> usize {
    match origin {
        Origin::Api => 1,
        Origin::V1 | Origin::Test => 0,
    }
}

impl fmt::Debug for Budgets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Budgets").field(&self.state()).finish()
    }
}

#[cfg(test)]
mod tests {
    use domain::{Budget, Prices};

    use super::super::Preference;
    use super::*;

    fn name(text: &str) -> GatewayName {
        text.parse().unwrap()
    }

    fn tariff(budget: Budget) -> (GatewayName, Tariff) {
        let prices = Prices { default: "1".parse().ok(), ..Prices::default() };
        (name("main"), Tariff { prices, budget, home: "RU".parse().ok() })
    }

    fn total(limit: &str) -> Budget {
        Budget { total: limit.parse().ok(), ..Budget::default() }
    }

    fn route(gateways: &[&str], regions: &[&str]) -> Route {
        let gateways = Preference::InOrder(gateways.iter().map(|it| name(it)).collect());
        let regions = regions.iter().map(|it| it.parse().unwrap()).collect();
        Route { regions, gateways, ..Route::default() }
    }

    /// Numbers that begin with 7 are in Russia, and all others in Germany.
    fn budgets(routes: Vec<Route>, budget: Budget) -> Budgets {
        let region = |phone: &PhoneNumber| {
            if phone.as_str().starts_with('7') { "RU" } else { "DE" }.parse().ok()
        };
        let budgets = Budgets::new(Arc::new(region));
        budgets.replace(routes, [tariff(budget)]);
        budgets
    }

    /// Notes amounts that `main` has spent, in whole units.
    fn spend(budgets: &Budgets, spent: &[(&str, u64)]) {
        let spent = spent.iter().map(|(scope, amount)| ((*scope).to_owned(), amount * 1_000_000));
        budgets.note([(name("main"), spent.collect())].into());
    }

    fn refuses(budgets: &Budgets, phone: &str) -> bool {
        budgets.refuse(Origin::V1, &phone.parse().unwrap())
    }

    const RUSSIAN: &str = "79991234567";
    const GERMAN: &str = "4915112345678";

    #[test]
    fn a_message_is_refused_once_its_gateway_cannot_pay_for_a_segment() {
        let budgets = budgets(vec![route(&["main"], &[])], total("10.5"));
        assert!(!refuses(&budgets, RUSSIAN));

        spend(&budgets, &[("", 9)]);
        assert!(!refuses(&budgets, RUSSIAN));
        spend(&budgets, &[("", 10)]);
        assert!(refuses(&budgets, RUSSIAN), "half a segment is left");

        spend(&budgets, &[]);
        assert!(!refuses(&budgets, RUSSIAN), "the next day");
    }

    #[test]
    fn a_message_is_not_refused_while_another_gateway_of_its_route_can_pay() {
        let routes = vec![route(&["main"], &["RU"]), route(&["main", "spare"], &[])];
        let budgets = budgets(routes, total("10"));
        spend(&budgets, &[("", 10)]);

        assert!(refuses(&budgets, RUSSIAN));
        assert!(!refuses(&budgets, GERMAN), "the spare gateway has no budget");
    }

    #[test]
    fn each_limit_refuses_the_messages_that_it_is_for() {
        let budget = Budget { international: "5".parse().ok(), ..Budget::default() };
        let budgets = budgets(vec![route(&["main"], &[])], budget);
        spend(&budgets, &[("international", 5)]);

        assert!(refuses(&budgets, GERMAN));
        assert!(!refuses(&budgets, RUSSIAN));
    }

    #[test]
    fn a_number_without_a_route_is_not_refused_for_a_budget() {
        let budgets = budgets(vec![route(&["main"], &["RU"])], total("0"));

        assert!(!refuses(&budgets, GERMAN));
        assert!(refuses(&budgets, RUSSIAN));
    }

    #[test]
    fn new_settings_count_with_what_was_spent_before() {
        let budgets = budgets(vec![route(&["main"], &[])], total("10"));
        spend(&budgets, &[("", 10)]);

        budgets.replace(vec![route(&["main"], &[])], [tariff(total("11"))]);
        assert!(!refuses(&budgets, RUSSIAN));
        let shown = budgets.snapshot();
        let [BudgetStatus { scope, spent, limit, .. }] = shown.as_slice() else { panic!() };
        assert_eq!(
            (&**scope, spent.to_string(), limit.to_string()),
            ("total", "10".into(), "11".into())
        );

        budgets.replace(vec![route(&["main"], &[])], [tariff(Budget::default())]);
        assert!(!budgets.has_limits() && budgets.snapshot().is_empty());
    }

    #[test]
    fn refusals_are_counted_by_origin() {
        let budgets = budgets(vec![route(&["main"], &[])], total("0"));
        let phone = RUSSIAN.parse().unwrap();

        assert!(budgets.refuse(Origin::V1, &phone));
        assert!((0..2).all(|_| budgets.refuse(Origin::Api, &phone)));

        assert_eq!(budgets.refusals(), [(Origin::V1, 1), (Origin::Api, 2)]);
    }
}
