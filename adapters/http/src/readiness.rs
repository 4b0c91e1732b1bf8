use std::{
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Serialize, Serializer};

/// Whether the neighbours that a process needs are there, as `/readyz` tells.
///
/// A handle: clones share what they know. Whoever learns something says so, as often as it likes;
/// only a change is logged. A name that was not given to [`new`](Self::new) is a mistake in the
/// program: it panics in a debug build and is ignored in a release.
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
    /// Nothing is ready until [`set_up`](Self::set_up) was called for each of `names`.
    pub fn new(names: &[&'static str]) -> Self {
        let check = |&name| Check { name, state: Mutex::new(State::Starting) };
        Self { checks: names.iter().map(check).collect() }
    }

    /// The neighbour is there.
    pub fn set_up(&self, name: &str) {
        let Some(check) = self.check(name) else { return };
        let mut state = check.state();
        match *state {
            State::Up => return,
            State::Starting => tracing::info!(check = check.name, "up"),
            State::Down(_) => tracing::info!(check = check.name, "up again"),
        }
        *state = State::Up;
    }

    /// The neighbour is not there, or does not do its work. `reason` is shown to operators.
    pub fn set_down(&self, name: &str, reason: impl Display) {
        let Some(check) = self.check(name) else { return };
        let reason = reason.to_string();
        let mut state = check.state();
        if !matches!(*state, State::Down(_)) {
            tracing::warn!(check = check.name, %reason, "down");
        }
        *state = State::Down(reason);
    }

    /// Whether every neighbour is there.
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
    fn is_ready_when_every_check_is_up() {
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
    fn with_nothing_to_check_it_is_ready() {
        assert!(Readiness::new(&[]).is_ready());
    }
}
