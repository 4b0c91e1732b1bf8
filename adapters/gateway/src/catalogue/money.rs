//! Prices and budgets in the settings.

use std::collections::BTreeMap;

use domain::{Amount, Budget, Prices, Region};
use serde_json::Value;

use crate::fields::Fields;

type Amounts = BTreeMap<String, Amount>;

pub(super) fn prices(fields: &mut Fields<'_>) -> Prices {
    let mut amounts = amounts(fields, "price", &["default"]);
    Prices { default: amounts.remove("default"), by_region: by_region(&amounts) }
}

pub(super) fn budget(fields: &mut Fields<'_>) -> Budget {
    let mut amounts = amounts(fields, "daily_budget", &["total", "international"]);
    Budget {
        total: amounts.remove("total"),
        international: amounts.remove("international"),
        by_region: by_region(&amounts),
    }
}

/// Reads a table of amounts, whose keys are `words` and regions. An amount alone stands for the
/// first word.
fn amounts(fields: &mut Fields<'_>, name: &str, words: &[&str]) -> Amounts {
    let Some(value) = fields.value(name) else { return Amounts::new() };
    let read = match &value {
        Value::Object(table) => {
            let is_key = |key: &str| words.contains(&key) || key.parse::<Region>().is_ok();
            let entries = table.iter().map(|(key, value)| {
                is_key(key).then_some(())?;
                Some((key.clone(), amount(value)?))
            });
            entries.collect()
        }
        value => amount(value).map(|amount| [(words[0].to_owned(), amount)].into()),
    };
    read.unwrap_or_else(|| {
        let words = words.join(", ");
        fields.problem(
            name,
            format!(
                "must be an amount with at most six decimals, or a table of amounts with the keys \
                 {words} and regions such as RU"
            ),
        );
        Amounts::new()
    })
}

fn amount(value: &Value) -> Option<Amount> {
    match value {
        Value::Number(number) => number.to_string().parse().ok(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn by_region(amounts: &Amounts) -> BTreeMap<Region, Amount> {
    amounts.iter().filter_map(|(key, amount)| Some((key.parse().ok()?, *amount))).collect()
}
