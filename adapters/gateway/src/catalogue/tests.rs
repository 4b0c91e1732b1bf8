use application::ports::{SendError, Sms, SmsGateway};
use domain::{Amount, Region};
use serde_json::json;

use super::*;
use crate::testing::{Fake, Reply, sms};

#[track_caller]
fn built(provider: &str, table: &Value) -> Result<(Gateway, Common), Vec<String>> {
    let problems = |all: Vec<FieldProblem>| all.iter().map(ToString::to_string).collect();
    build(provider, table.as_object().unwrap()).map_err(problems)
}

fn amount(text: &str) -> Amount {
    text.parse().unwrap()
}

#[test]
fn names_in_the_catalogue_are_unique_and_no_own_field_hides_a_common_one() {
    let all: Vec<Listed> = catalogue().collect();
    for (at, listed) in all.iter().enumerate() {
        assert!(!listed.title.is_empty());
        assert!(all[at + 1..].iter().all(|it| it.name != listed.name), "{}", listed.name);
        for field in listed.fields {
            let is_new = COMMON.iter().all(|it| it.name != field.name) && field.name != "provider";
            assert!(is_new, "{}.{}", listed.name, field.name);
        }
    }
}

#[test]
fn limits_have_defaults() {
    let url = json!({"url": "http://user:secret@a.example/x?y=z"});
    let (gateway, common) = built("webhook", &url).unwrap();

    assert_eq!((common.timeout.as_secs(), common.in_flight.get()), (10, 50));
    assert_eq!(common.max_per_second, None);
    assert_eq!((common.price, common.daily_budget), Default::default());
    assert!(gateway.deduplicates());
    let (_, common) = built("console", &json!({})).unwrap();
    assert_eq!(common.timeout.as_secs(), 1);
    let limits = json!({"timeout": 3, "in_flight": 7, "max_per_second": 9});
    let (_, common) = built("console", &limits).unwrap();
    assert_eq!((common.timeout.as_secs(), common.in_flight.get()), (3, 7));
    assert_eq!(common.max_per_second, NonZeroU32::new(9));
}

#[test]
fn console_refuses_what_only_a_call_uses() {
    for field in ["keep_alive", "ca"] {
        let problems = built("console", &json!({field: "0"})).unwrap_err();
        let expected = format!("{field} is not for the console, which calls nothing");
        assert!(problems.contains(&expected), "{problems:?}");
    }
}

#[test]
fn params_of_a_route_are_those_that_a_provider_reads() {
    let reads = |name: &str, key| catalogue().find(|it| it.name == name).unwrap().reads(key);

    assert!(reads("vonage", "dlt_entity_id") && !reads("vonage", "dlt_template_category"));
    assert!(reads("smpp", "tlv_1400") && !reads("smpp", "tlv1400"));
    assert!(reads("http", "anything") && !reads("webhook", "anything"));
}

#[test]
fn all_problems_are_reported_at_once_and_without_values() {
    let bad = json!({
        "url": "sesame", "timeout": 0, "in_flight": "many", "max_per_second": 0, "urls": "sesame",
        "keep_alive": -1, "max_segments": 256, "price": {"Russia": 1}, "daily_budget": -5,
        "ca": "/nowhere/ca.pem",
    });

    let problems = built("webhook", &bad).unwrap_err();

    let fields: Vec<&str> =
        problems.iter().filter_map(|it| it.split_once(' ')).map(|(name, _)| name).collect();
    let expected = [
        "urls",
        "url",
        "timeout",
        "in_flight",
        "max_per_second",
        "price",
        "daily_budget",
        "max_segments",
        "keep_alive",
        "ca",
    ];
    assert_eq!(fields, expected, "{problems:?}");
    assert!(problems.iter().all(|it| !it.contains("sesame")), "{problems:?}");
    assert_eq!(built("webhook", &json!({})).unwrap_err(), ["url is missing"]);
    let without_price = built("console", &json!({"daily_budget": 5})).unwrap_err();
    assert_eq!(without_price, ["daily_budget needs price: without it, every call costs nothing"]);
    let unknown = &built("fax", &json!({})).unwrap_err()[0];
    assert!(unknown.starts_with("provider must be one of: console, "), "{unknown}");
}

#[test]
fn gateway_that_does_not_deduplicate_uses_no_connection_again() {
    let forgetful = |keep_alive: u32| {
        let table = json!({
            "url": "http://a.example", "deduplicates": false, "keep_alive": keep_alive,
        });
        built("webhook", &table)
    };

    assert!(!forgetful(0).unwrap().0.deduplicates());
    assert!(forgetful(1).unwrap_err()[0].starts_with("keep_alive must be 0"));
}

#[test]
fn price_and_budget_are_an_amount_or_a_table() {
    let common = |table| built("console", &table).unwrap().1;
    let russia: Region = "RU".parse().unwrap();

    let single = common(json!({"price": 0.05, "daily_budget": "100"}));
    let tables = common(json!({
        "price": {"default": 0.05, "RU": "0.03"},
        "daily_budget": {"total": 100.0, "international": 10, "RU": 20},
    }));

    assert_eq!(single.price, Prices { default: Some(amount("0.05")), ..Prices::default() });
    assert_eq!(single.daily_budget, Budget { total: Some(amount("100")), ..Budget::default() });
    assert_eq!(tables.price.of(Some(russia)), Some(amount("0.03")));
    let budget = tables.daily_budget;
    assert_eq!((budget.total, budget.international), (Some(amount("100")), Some(amount("10"))));
    assert_eq!(budget.by_region, [(russia, amount("20"))].into());
}

#[tokio::test]
async fn text_with_too_many_segments_is_refused_before_the_call() {
    let fake = Fake::scripted([Reply::text(200, "")]).await;
    let (gateway, _) = built("webhook", &json!({"url": fake.url(), "max_segments": 2})).unwrap();
    let with = |text: String| Sms { text, ..sms() };

    let two = gateway.send(&with("a".repeat(306))).await;
    let three = gateway.send(&with("a".repeat(307))).await;

    assert!(two.is_ok(), "{two:?}");
    let refused = "the text takes 3 segments, and max_segments is 2".to_owned();
    assert_eq!(three, Err(SendError::Rejected(refused)));
    assert_eq!(fake.received().len(), 1);
}

#[test]
fn smpp_has_the_settings_of_an_smsc_and_keeps_no_idle_connection() {
    let good = json!({"url": "smpps://smsc.example", "system_id": "me", "password": "sesame"});
    let (gateway, common) = built("smpp", &good).unwrap();
    assert!(!gateway.deduplicates());
    assert_eq!(common.timeout.as_secs(), 10);

    let bad = json!({
        "url": "smpp://smsc.example", "system_id": "me", "keep_alive": 1, "ca": "/nowhere/ca.pem",
    });
    let problems = built("smpp", &bad).unwrap_err();
    let fields: Vec<&str> =
        problems.iter().filter_map(|it| it.split_once(' ')).map(|(name, _)| name).collect();
    assert_eq!(fields, ["password", "ca", "keep_alive"]);
}
