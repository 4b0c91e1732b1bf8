use std::{
    fmt::{self, Display},
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
    state: Mutex<Standing>,
}

/// The state of a dependency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    Starting,
    Up,
    Down(String),
}

impl Readiness {
    /// Creates the checks. The process is ready once [`set_up`](Self::set_up) was called for each.
    pub fn new(names: &[&'static str]) -> Self {
        let check = |&name| Check { name, state: Mutex::new(Standing::Starting) };
        Self { checks: names.iter().map(check).collect() }
    }

    /// Reports that a dependency is up.
    pub fn set_up(&self, name: &str) {
        let Some(check) = self.check(name) else { return };
        let mut state = check.state();
        match *state {
            Standing::Up => return,
            Standing::Starting => tracing::info!(check = check.name, "check is up"),
            Standing::Down(_) => tracing::info!(check = check.name, "check is up again"),
        }
        *state = Standing::Up;
    }

    /// Reports that a dependency is down or does not work. Operators see `reason`.
    pub fn set_down(&self, name: &str, reason: impl Display) {
        let Some(check) = self.check(name) else { return };
        let reason = reason.to_string();
        let mut state = check.state();
        if !matches!(*state, Standing::Down(_)) {
            tracing::warn!(check = check.name, %reason, "check is down");
        }
        *state = Standing::Down(reason);
    }

    /// Whether every dependency is up.
    pub fn is_ready(&self) -> bool {
        self.checks.iter().all(|check| *check.state() == Standing::Up)
    }

    /// Returns the state of each dependency.
    pub(crate) fn standings(&self) -> impl Iterator<Item = (&'static str, Standing)> + '_ {
        self.checks.iter().map(|check| (check.name, check.state().clone()))
    }

    fn check(&self, name: &str) -> Option<&Check> {
        let check = self.checks.iter().find(|check| check.name == name);
        debug_assert!(check.is_some(), "no check has the name {name}");
        check
    }
}

impl Check {
    fn state(&self) -> MutexGuard<'_, Standing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::Up => f.write_str("up"),
            Self::Down(reason) => write!(f, "down: {reason}"),
        }
    }
}

/// As `{"database":"up","broker":"down: connection refused"}`.
impl Serialize for Readiness {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let states = self.checks.iter().map(|check| (check.name, check.state().to_string()));
        serializer.collect_map(states)
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
