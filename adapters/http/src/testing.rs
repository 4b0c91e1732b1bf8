use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use application::{Budgets, Preference, Route, Tariff};
use domain::{Budget, GatewayName, Prices};
use tracing::subscriber::DefaultGuard;

/// The log of the current thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Captures the log until the guard is dropped.
    pub(crate) fn capture() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

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
