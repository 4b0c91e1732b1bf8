use std::time::Duration;

use sea_orm::ConnectionTrait;

use super::on_both_databases;
use crate::{Database, GatewayReport, SqlGateways, SqlHousekeeping};

on_both_databases!(
    drained_gateway_stays_drained_until_it_is_undrained,
    report_of_a_process_replaces_its_last_one,
    old_reports_are_not_shown_and_are_deleted,
);

const MINUTE: Duration = Duration::from_secs(60);

fn report(gateway: &str, state: &str) -> GatewayReport {
    GatewayReport {
        gateway: gateway.parse().unwrap(),
        provider: "twilio".to_owned(),
        state: state.to_owned(),
        reason: String::new(),
        in_flight: 3,
        accepted: 2,
        refused: 1,
        unclear: 0,
    }
}

async fn drained_gateway_stays_drained_until_it_is_undrained(database: Database) {
    let gateways = SqlGateways::new(database);
    let [main, local] = ["main", "local"].map(|name| name.parse().unwrap());

    assert!(gateways.drain(&main).await.unwrap());
    assert!(!gateways.drain(&main).await.unwrap(), "it was drained already");
    assert!(gateways.drain(&local).await.unwrap());
    assert!(gateways.undrain(&local).await.unwrap());
    assert!(!gateways.undrain(&local).await.unwrap());

    assert_eq!(gateways.drained().await.unwrap(), [main].into());
}

async fn report_of_a_process_replaces_its_last_one(database: Database) {
    let gateways = SqlGateways::new(database);
    gateways.report("b", &[report("main", "closed"), report("local", "closed")]).await.unwrap();
    gateways.report("a", &[report("main", "closed")]).await.unwrap();

    gateways.report("a", &[report("main", "open")]).await.unwrap();
    gateways.report("a", &[]).await.unwrap();

    let reported = gateways.reported(MINUTE).await.unwrap();
    let shown: Vec<_> =
        reported.iter().map(|it| (it.report.gateway.as_str(), &*it.process)).collect();
    assert_eq!(shown, [("local", "b"), ("main", "a"), ("main", "b")]);
    assert_eq!(reported[1].report, report("main", "open"));
    assert!(reported.iter().all(|it| it.age < MINUTE));

    gateways.withdraw("b").await.unwrap();
    assert_eq!(gateways.reported(MINUTE).await.unwrap().len(), 1);
}

async fn old_reports_are_not_shown_and_are_deleted(database: Database) {
    let gateways = SqlGateways::new(database.clone());
    gateways.report("a", &[report("main", "closed")]).await.unwrap();
    let age = async |minutes: u32| {
        let sql = if database.is_postgres() {
            format!("UPDATE gateway_state SET reported_at = now() - interval '{minutes} minutes'")
        } else {
            format!(
                "UPDATE gateway_state
                SET reported_at = unixepoch('subsec') * 1000 - {minutes} * 60000"
            )
        };
        database.connection().execute_unprepared(&sql).await.unwrap();
    };
    let housekeeping = SqlHousekeeping::new(database.clone());

    age(2).await;
    assert_eq!(gateways.reported(MINUTE).await.unwrap(), []);
    assert_eq!(housekeeping.prune(MINUTE).await.unwrap(), 0);

    age(61).await;
    assert_eq!(housekeeping.prune(MINUTE).await.unwrap(), 1);
    assert_eq!(gateways.reported(100 * MINUTE).await.unwrap(), []);
}
