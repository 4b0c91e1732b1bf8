use application::Budgets;
use domain::{Amount, Origin};
use prometheus::{GaugeVec, IntCounterVec, Opts, Registry, core::Collector};

use super::on_demand::{self, Readings};

/// Metrics of the daily budgets, read from them when they are asked for. So they always name the limits
/// of the present configuration.
pub(crate) struct BudgetMetrics {
    budgets: Budgets,
    limit: GaugeVec,
    spent: GaugeVec,
    refusals: IntCounterVec,
}

impl BudgetMetrics {
    pub(crate) fn register(registry: &Registry, budgets: Budgets) -> prometheus::Result<()> {
        let gauges = |name, help| GaugeVec::new(Opts::new(name, help), &["gateway", "scope"]);
        let refusals = Opts::new(
            "messager_budget_refusals_total",
            "Messages that were refused because every gateway of their route has used its daily budget up.",
        );
        let metrics = Self {
            budgets,
            limit: gauges(
                "messager_gateway_budget",
                "A daily limit on the cost of a gateway, in the operator's currency.",
            )?,
            spent: gauges(
                "messager_gateway_budget_spent",
                "The amount that was spent of a daily limit today (UTC).",
            )?,
            refusals: IntCounterVec::new(refusals, &["origin"])?,
        };
        on_demand::register(registry, metrics)
    }
}

impl Readings for BudgetMetrics {
    fn vectors(&self) -> Vec<&dyn Collector> {
        vec![&self.limit, &self.spent, &self.refusals]
    }

    fn fill(&self) {
        self.limit.reset();
        self.spent.reset();
        for budget in self.budgets.snapshot() {
            let labels = [budget.gateway.as_str(), &*budget.scope];
            self.limit.with_label_values(&labels).set(number(budget.limit));
            self.spent.with_label_values(&labels).set(number(budget.spent));
        }
        self.refusals.reset();
        for (origin, count) in self.budgets.refusals() {
            let origin = if origin == Origin::Api { "api" } else { "v1" };
            self.refusals.with_label_values(&[origin]).inc_by(count);
        }
    }
}

/// Returns an amount in units of the currency.
fn number(amount: Amount) -> f64 {
    amount.to_string().parse().expect("an amount is a decimal number")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use application::Tariff;
    use domain::{Budget, GatewayName};
    use prometheus::TextEncoder;

    use super::*;

    #[test]
    fn each_limit_of_the_settings_is_shown_with_what_was_spent() {
        let registry = Registry::new();
        let budgets = Budgets::new(Arc::new(|_| None));
        BudgetMetrics::register(&registry, budgets.clone()).unwrap();
        let shown = || TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let name = GatewayName::default();
        let set = |budget| {
            let tariff = Tariff { budget, ..Tariff::default() };
            budgets.replace(Vec::new(), [(name.clone(), tariff)]);
        };
        let amount = |text: &str| text.parse().ok();

        set(Budget { total: amount("100"), international: amount("7.5"), ..Budget::default() });
        budgets.note([(name.clone(), [(String::new(), 2_500_000)].into())].into());

        let text = shown();
        for line in [
            "messager_gateway_budget{gateway=\"default\",scope=\"total\"} 100\n",
            "messager_gateway_budget{gateway=\"default\",scope=\"international\"} 7.5\n",
            "messager_gateway_budget_spent{gateway=\"default\",scope=\"total\"} 2.5\n",
            "messager_gateway_budget_spent{gateway=\"default\",scope=\"international\"} 0\n",
            "messager_budget_refusals_total{origin=\"v1\"} 0\n",
            "messager_budget_refusals_total{origin=\"api\"} 0\n",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        set(Budget::default());
        assert!(!shown().contains("messager_gateway_budget"));
    }
}
