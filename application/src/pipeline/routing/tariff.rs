use std::collections::BTreeMap;

use domain::{Amount, Budget, GatewayName, Prices, Region};

use super::BudgetStatus;
use crate::ports::{Cost, DailyLimit};

/// The prices and the daily budget of a gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tariff {
    pub prices: Prices,
    pub budget: Budget,
    /// The operator's own region. All others are international.
    pub home: Option<Region>,
}

/// The scope of a limit for all regions.
const TOTAL: &str = "";
/// The scope of a limit for all regions other than the operator's own.
const INTERNATIONAL: &str = "international";

impl Tariff {
    /// Whether no limit counts any message.
    pub(super) fn is_free(&self) -> bool {
        self.budget == Budget::default()
    }

    /// Returns the cost of a message with so many segments to a region, with the limits that count it.
    /// A segment without a price costs nothing.
    pub(super) fn cost(&self, region: Option<Region>, segments: usize) -> Option<Cost> {
        let limit = |scope: &str, limit: Option<Amount>| {
            limit.map(|it| DailyLimit { scope: scope.to_owned(), limit: it.millionths() })
        };
        let Budget { total, international, by_region } = &self.budget;
        let abroad = international.filter(|_| region.is_none() || region != self.home);
        let own = region.and_then(|it| limit(it.as_str(), by_region.get(&it).copied()));
        let limits: Vec<DailyLimit> = [limit(TOTAL, *total), limit(INTERNATIONAL, abroad), own]
            .into_iter()
            .flatten()
            .collect();
        let price = self.prices.of(region).unwrap_or_default().millionths();
        let segments = u64::try_from(segments).unwrap_or(u64::MAX);
        let amount = price.saturating_mul(segments);
        (!limits.is_empty()).then_some(Cost { amount, limits })
    }

    /// Returns each limit with the amount that was spent. `spent` has the amounts by scope.
    pub fn status(
        &self,
        gateway: &GatewayName,
        spent: Option<&BTreeMap<String, u64>>,
    ) -> Vec<BudgetStatus> {
        let status = |(scope, limit): (&str, Amount)| BudgetStatus {
            gateway: gateway.clone(),
            scope: if scope == TOTAL { "total" } else { scope }.to_owned(),
            spent: Amount::from_millionths(amount_of(spent, scope)),
            limit,
        };
        self.limits().map(status).collect()
    }

    /// Whether a limit may have no room for one more segment.
    pub(super) fn is_tight(&self, spent: Option<&BTreeMap<String, u64>>) -> bool {
        let Prices { default, by_region } = &self.prices;
        let price = by_region.values().chain(default).max().map_or(0, |it| it.millionths());
        self.limits().any(|(scope, limit)| {
            amount_of(spent, scope).saturating_add(price) > limit.millionths()
        })
    }

    /// Returns every limit, by its scope.
    fn limits(&self) -> impl Iterator<Item = (&str, Amount)> {
        let Budget { total, international, by_region } = &self.budget;
        let groups = [(TOTAL, *total), (INTERNATIONAL, *international)];
        let groups = groups.into_iter().filter_map(|(scope, limit)| Some((scope, limit?)));
        groups.chain(by_region.iter().map(|(region, limit)| (region.as_str(), *limit)))
    }
}

pub(super) fn amount_of(spent: Option<&BTreeMap<String, u64>>, scope: &str) -> u64 {
    spent.and_then(|spent| spent.get(scope)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(text: &str) -> Option<Amount> {
        text.parse().ok()
    }

    fn region(text: &str) -> Option<Region> {
        text.parse().ok()
    }

    fn tariff(budget: Budget) -> Tariff {
        let by_region = [(region("RU").unwrap(), amount("0.03").unwrap())].into();
        let prices = Prices { default: amount("0.05"), by_region };
        Tariff { prices, budget, home: region("RU") }
    }

    /// The amount, and the scopes with their limits, in millionths.
    fn cost(tariff: &Tariff, to: Option<Region>, segments: usize) -> Option<(u64, Vec<String>)> {
        let Cost { amount, limits } = tariff.cost(to, segments)?;
        let limits = limits.into_iter().map(|it| format!("{}:{}", it.scope, it.limit));
        Some((amount, limits.collect()))
    }

    #[test]
    fn a_message_costs_the_price_of_its_region_for_each_segment() {
        let tariff = tariff(Budget { total: amount("100"), ..Budget::default() });

        let all = || vec![":100000000".to_owned()];
        assert_eq!(cost(&tariff, region("RU"), 2), Some((60_000, all())));
        assert_eq!(cost(&tariff, region("KZ"), 1), Some((50_000, all())));
        assert_eq!(cost(&tariff, None, 1), Some((50_000, all())));
    }

    #[test]
    fn each_limit_counts_the_messages_that_it_is_for() {
        let tariff = tariff(Budget {
            total: None,
            international: amount("10"),
            by_region: [(region("KZ").unwrap(), amount("1").unwrap())].into(),
        });

        let scopes = |to| cost(&tariff, to, 1).map(|(_, limits)| limits.join(" "));
        assert_eq!(scopes(region("RU")), None);
        assert_eq!(scopes(region("DE")).as_deref(), Some("international:10000000"));
        assert_eq!(scopes(region("KZ")).as_deref(), Some("international:10000000 KZ:1000000"));
        assert_eq!(scopes(None).as_deref(), Some("international:10000000"));
    }

    #[test]
    fn every_limit_is_shown_with_what_was_spent() {
        let tariff = tariff(Budget {
            total: amount("100"),
            international: amount("10"),
            by_region: [(region("KZ").unwrap(), amount("1").unwrap())].into(),
        });
        let spent = [(String::new(), 2_500_000), ("KZ".to_owned(), 50_000)].into();

        let shown = tariff.status(&GatewayName::default(), Some(&spent));

        let shown: Vec<String> =
            shown.iter().map(|it| format!("{} {} of {}", it.scope, it.spent, it.limit)).collect();
        assert_eq!(shown, ["total 2.5 of 100", "international 0 of 10", "KZ 0.05 of 1"]);
    }

    #[test]
    fn tariff_is_tight_once_a_limit_has_no_room_for_the_dearest_segment() {
        let tariff = tariff(Budget { total: amount("1"), ..Budget::default() });
        let is_tight = |spent: u64| tariff.is_tight(Some(&[(String::new(), spent)].into()));

        assert!(!tariff.is_tight(None) && !is_tight(950_000));
        assert!(is_tight(950_001));
    }

    #[test]
    fn without_a_budget_nothing_is_counted() {
        let tariff = tariff(Budget::default());

        assert!(tariff.is_free());
        assert_eq!(cost(&tariff, region("KZ"), 1), None);
    }
}
