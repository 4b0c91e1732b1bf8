use std::sync::Arc;

use application::{Budgets, Preference, Route, Tariff};
use domain::{Budget, GatewayName, Prices};

/// One gateway for all numbers, whose daily budget is used up.
pub(crate) fn no_budget() -> Budgets {
    let name = GatewayName::default();
    let budget = Budget { total: "0".parse().ok(), ..Budget::default() };
    let prices = Prices { default: "1".parse().ok(), ..Prices::default() };
    let gateways = Preference::InOrder(vec![name.clone()]);
    let budgets = Budgets::new(Arc::new(|_| None));
    let tariff = Tariff { prices, budget, home: None };
    budgets.replace(vec![Route { gateways, ..Route::default() }], [(name, tariff)]);
    budgets
}
