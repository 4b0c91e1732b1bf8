use std::{
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Serialize, Serializer};

/// Whether the dependencies of a process are up, for `/readyz`.
///
/// Clones share their state. A task may report the same state any number of times; only changes are
/// logged. A name that [`new`](Self::new) did not get is a bug: it panics in a debug build and is
/// ignored in a release build.
#[derive(Debug, Clone)]
pub struct Readiness {
    checks: Arc<[Check]>,
}

#[derive(Debug)]
struct Check {
    name: &'static str,
    state: Mutex<State>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Starting,
    Up,
    Down(String),
}

impl Readiness {
    /// Creates the checks. The process is ready once [`set_up`](Self::set_up) was called for each.
    pub fn new(names: &[&'static str]) -> Self {
        let check = |&name| Check { name, state: Mutex::new(State::Starting) };
        Self { checks: names.iter().map(check).collect() }
    }

    /// Reports that a dependency is up.
    pub fn set_up(&self, name: &str) {
        let Some(check) = self.check(name) else { return };
        let mut state = check.state();
        match *state {
            State::Up => return,
            State::Starting => tracing::info!(check = check.name, "check is up"),
            State::Down(_) => tracing::info!(check = check.name, "check is up again"),
        }
        *state = State::Up;
    }

    /// Reports that a dependency is down or does not work. Operators see `reason`.
    pub fn set_down(&self, name: &str, reason: impl Display) {
        let Some(check) = self.check(name) else { return };
        let reason = reason.to_string();
        let mut state = check.state();
        if !matches!(*state, State::Down(_)) {
            tracing::warn!(check = check.name, %reason, "check is down");
        }
        *state = State::Down(reason);
    }

    /// Whether every dependency is up.
    pub fn is_ready(&self) -> bool {
        self.checks.iter().all(|check| *check.state() == State::Up)
    }

    fn check(&self, name: &str) -> Option<&Check> {
        let check = self.checks.iter().find(|check| check.name == name);
        debug_assert!(check.is_some(), "no check has the name {name}");
        check
    }
}

impl Check {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As `{"database":"up","broker":"down: connection refused"}`.
impl Serialize for Readiness {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.checks.iter().map(|check| {
            let state = match &*check.state() {
                State::Starting => "starting".to_owned(),
                State::Up => "up".to_owned(),
                State::Down(reason) => format!("down: {reason}"),
            };
            (check.name, state)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_ready_if_every_check_is_up() {
        let readiness = Readiness::new(&["database", "broker"]);
        assert!(!readiness.is_ready());

        readiness.clone().set_up("broker");
        assert!(!readiness.is_ready());

        readiness.set_up("database");
        assert!(readiness.is_ready());

        readiness.set_down("broker", "refused");
        readiness.set_down("broker", "timed out");
        assert!(!readiness.is_ready());
        let shown = serde_json::to_string(&readiness).unwrap();
        assert_eq!(shown, r#"{"database":"up","broker":"down: timed out"}"#);
    }

    #[test]
    fn process_without_checks_is_ready() {
        assert!(Readiness::new(&[]).is_ready());
    }
}
