//! Models of the protocol, small enough to check every state.
//!
//! There are three models. [`publishing`] has accept, relays and a consumer that takes messages over. It
//! meets at the topic with [`delivering`], which has lease, epoch, ledger and gateway. [`failover`] has
//! two gateways in place of topic and offset. Everything that can happen next is an action. A slow,
//! paused or crashed process is one whose actions do not happen. Faults have a budget, so every run
//! ends, and time passes when no other action is left.
//!
//! Each model takes a flaw, which removes one safeguard. A test for each flaw names the property that
//! fails without the safeguard. It shows the purpose of the safeguard, and that the model detects its
//! absence.
//!
//! The models do not have several partitions, the order in a lane, or the expiry of codes, apart from a
//! cancel in [`publishing`]. The state machine in `pipeline.rs` covers these with the code itself.

mod delivering;
mod failover;
mod publishing;

use std::{fmt::Debug, hash::Hash};

use stateright::{Checker, HasDiscoveries, Model};

/// Visits all states and expects every property to hold in each. States with the same
/// `representative` are visited once.
#[track_caller]
fn assert_holds<M>(name: &str, model: M, representative: fn(&M::State) -> M::State)
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Debug + Clone + PartialEq + Send + Sync + 'static,
    M::Action: Debug + Clone + PartialEq,
{
    let checker = model.checker().symmetry_fn(representative).spawn_dfs().join();

    println!("{name}: {} states", checker.unique_state_count());
    if let Some((property, path)) = checker.discoveries().into_iter().next() {
        let end = path.last_state().clone();
        panic!("{name}: not so: {property}\n{:#?}\n{end:#?}", path.into_actions());
    }
    assert!(checker.is_done());
}

/// Expects a run that violates `property`.
#[track_caller]
fn assert_refuted<M>(name: &str, model: M, property: &'static str)
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Debug + Clone + PartialEq + Send + Sync + 'static,
    M::Action: Debug + Clone + PartialEq,
{
    let only = HasDiscoveries::AllOf([property].into());
    let checker = model.checker().finish_when(only).spawn_bfs().join();

    let states = checker.unique_state_count();
    let path = checker.discovery(property);
    let path = path.unwrap_or_else(|| panic!("{name}: {property}, in all {states} states"));
    println!("{name}: not so, found in {states} states: {property}\n{:?}", path.into_actions());
}
