//! The gateways of a process: how the settings become a router, and how that follows the settings and
//! the operator.

mod changes;
mod channels;
mod health;
mod shared;

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use adapters_gateway::Gateway;
use adapters_http::recipient;
use adapters_persistence::SqlGateways;
use application::{
    AfterAmbiguous, GatewayLimits, Preference, ReceiptsInTime, Route, RoutedGateway, Router,
    RoutingTable, Tariff,
};
use domain::{GatewayName, PhoneNumber, Region};

pub(crate) use self::changes::gateways;
pub(super) use self::{channels::Channels, health::judge, shared::share};
use crate::{
    Process,
    config::{Ambiguous, GatewayConfig, GatewaysConfig, RouteConfig, callback},
};

/// The time after which a call counts as without an outcome, beyond the limit that the gateway keeps
/// itself.
const SPARE: Duration = Duration::from_secs(2);

/// The tariff of each gateway.
pub(crate) type Tariffs = Vec<(GatewayName, Tariff)>;

/// Makes the gateways, and the routes to them. Messages to other regions than `home` are international.
pub(super) fn table(
    config: &GatewaysConfig,
    home: Option<Region>,
) -> anyhow::Result<(RoutingTable<Gateway>, Tariffs)> {
    let gateways = config.gateways.iter().map(gateway).collect::<anyhow::Result<Vec<_>>>()?;
    let after_ambiguous = match config.ambiguous {
        Ambiguous::Same => AfterAmbiguous::Same,
        Ambiguous::Next => AfterAmbiguous::Next,
    };
    let receipts = config.no_receipt_within.map(|within| receipts(config, &gateways, within));
    let table = RoutingTable { gateways, routes: routes(config), after_ambiguous, receipts };
    Ok((table, tariffs(config, home)))
}

pub(super) fn routes(config: &GatewaysConfig) -> Vec<Route> {
    config.routes.iter().map(route).collect()
}

/// Returns the tariffs, also of gateways whose secrets are missing.
pub(crate) fn tariffs(config: &GatewaysConfig, home: Option<Region>) -> Tariffs {
    let tariff = |gateway: &GatewayConfig| {
        let (prices, budget) = gateway.costs();
        (gateway.name.clone(), Tariff { prices, budget, home })
    };
    config.gateways.iter().map(tariff).collect()
}

/// Awaits the receipts of the gateways that report any.
fn receipts(
    config: &GatewaysConfig,
    gateways: &[RoutedGateway<Gateway>],
    within: Duration,
) -> ReceiptsInTime {
    let reports = |it: &&RoutedGateway<Gateway>| {
        let callback = config.public_url.as_deref().map(|url| callback(url, &it.name));
        it.gateway.reports_receipts(callback.as_deref())
    };
    let of = gateways.iter().filter(reports).map(|it| it.name.clone()).collect();
    ReceiptsInTime { within, of }
}

/// Puts changed gateways into `router`, each time after `prepare` has seen them and `store` has their
/// channels.
pub(super) fn follow(
    process: &mut Process,
    router: Router<Gateway>,
    prepare: impl Fn(&[RoutedGateway<Gateway>]) + Send + 'static,
    store: SqlGateways,
) {
    let home = process.config.numbers.default_region;
    let mut gateways = gateways(process);
    let stop = process.stop.clone();
    process.spawn(async move {
        while let Some(Ok(())) = stop.run_until_cancelled(gateways.changed()).await {
            let changed = Arc::clone(&gateways.borrow_and_update());
            match table(&changed, home) {
                Ok((table, tariffs)) => {
                    prepare(&table.gateways);
                    let channels = Channels::of(&table.gateways);
                    if stop.run_until_cancelled(channels.store(&store)).await.is_none() {
                        break;
                    }
                    router.set_tariffs(tariffs);
                    router.replace(table);
                }
                Err(error) => tracing::error!(
                    error = format!("{error:#}"),
                    "the changed gateways cannot be made, and those from before stay in force"
                ),
            }
        }
        stop.cancelled().await;
        Ok(())
    });
}

fn gateway(config: &GatewayConfig) -> anyhow::Result<RoutedGateway<Gateway>> {
    let (gateway, common) = config.build()?;
    // The console answers at once.
    let in_flight = (!config.is_console()).then_some(common.in_flight);
    let limits = GatewayLimits {
        call_limit: common.timeout + SPARE,
        in_flight: in_flight.and_then(|limit| NonZeroUsize::try_from(limit).ok()),
        in_process: gateway.window(),
        per_second: common.max_per_second,
    };
    Ok(RoutedGateway { name: config.name.clone(), gateway: Arc::new(gateway), limits })
}

fn route(config: &RouteConfig) -> Route {
    let RouteConfig { regions, prefixes, gateways, sender, params } = config;
    let weighted = gateways.iter().map(|(name, weight)| Some((name.clone(), (*weight)?.get())));
    let gateways = match weighted.collect::<Option<Vec<_>>>() {
        Some(weights) => Preference::ByWeight(weights),
        None => Preference::InOrder(gateways.iter().map(|(name, _)| name.clone()).collect()),
    };
    Route {
        regions: regions.iter().copied().collect(),
        prefixes: prefixes.iter().cloned().collect(),
        gateways,
        sender: sender.clone(),
        params: Arc::clone(params),
    }
}

/// Returns the region of a number, which decides its route.
pub(super) fn region_of(phone: &PhoneNumber) -> Option<Region> {
    recipient(phone, None).region()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::GatewaysFile;

    #[test]
    fn file_becomes_the_table_of_a_router() {
        let folder = std::env::temp_dir().join(format!("gateways-table-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("gateways.toml");
        let text = "[gateway.hook]\nprovider = \"http\"\nurl = \"http://a.example/\"\n\
                    timeout = 3\nin_flight = 7\nmax_per_second = 9\n\
                    price = { default = 0.05, RU = 0.03 }\ndaily_budget = 100.0\n\
                    [gateway.screen]\nprovider = \"console\"\n\
                    [[route]]\nregions = [\"RU\"]\nprefixes = [\"44\"]\nsender = \"SHOP\"\n\
                    params = { a = \"b\" }\ngateways = [\"screen\", \"hook\"]\n\
                    [[route]]\ngateways = { hook = 3, screen = 1 }\n\
                    [failover]\nambiguous = \"next\"\n";
        std::fs::write(&path, text).unwrap();
        let file = GatewaysFile::read(Path::new(&path), &|_| None);
        std::fs::remove_dir_all(&folder).unwrap();

        let home = "RU".parse().ok();
        let (table, tariffs) = table(&file.gateways.unwrap(), home).unwrap();

        let [hook, screen] = table.gateways.as_slice() else { panic!("two gateways") };
        let expected = GatewayLimits {
            call_limit: Duration::from_secs(5),
            in_flight: NonZeroUsize::new(7),
            in_process: None,
            per_second: std::num::NonZeroU32::new(9),
        };
        assert_eq!((hook.name.as_str(), hook.limits), ("hook", expected));
        assert_eq!((screen.name.as_str(), screen.limits.in_flight), ("screen", None));
        let tariff = &tariffs[0].1;
        assert_eq!(tariffs[0].0, hook.name);
        assert_eq!(tariff.prices.of(home).map(|it| it.to_string()).as_deref(), Some("0.03"));
        assert_eq!(tariff.budget.total.map(|it| it.to_string()).as_deref(), Some("100"));
        assert_eq!((tariff.home, &tariffs[1].1.budget), (home, &domain::Budget::default()));
        let [first, second] = table.routes.as_slice() else { panic!("two routes") };
        let names = [&screen.name, &hook.name].map(Clone::clone);
        assert_eq!(first.gateways, Preference::InOrder(names.into()));
        assert!(first.regions.contains(&"RU".parse().unwrap()) && first.prefixes.contains("44"));
        assert_eq!((first.sender.as_deref(), &*first.params["a"]), (Some("SHOP"), "b"));
        let weights = vec![(hook.name.clone(), 3), (screen.name.clone(), 1)];
        assert_eq!(second.gateways, Preference::ByWeight(weights));
        assert_eq!(table.after_ambiguous, AfterAmbiguous::Next);
    }

    #[test]
    fn region_of_a_number_is_that_of_its_numbering_plan() {
        let region = |phone: &str| region_of(&phone.parse().unwrap());

        assert_eq!(region("79991234567"), "RU".parse().ok());
        assert_eq!(region("77011234567"), "KZ".parse().ok());
        assert_eq!(region("0000000"), None);
    }
}
