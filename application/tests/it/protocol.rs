//! The protocol, small enough for a machine to walk through all of it.
//!
//! Two models, which meet at the topic: [`publishing`] is accept, relays, sweep and a consumer
//! that takes over; [`delivering`] is lease, epoch, ledger and gateway. Whatever can happen next
//! is an action: a process that is slow, paused or gone is one whose actions do not come. Faults
//! have a budget, so that every run has an end, and time passes where nothing else is left to do.
//!
//! Each model takes a flaw, which leaves one safeguard out. A test of each flaw says which
//! property does not hold without it: that shows what the safeguard is for, and that the model
//! would notice.
//!
//! What is not in the models: the expiry of codes, several partitions, the order in a lane. The
//! state machine in `pipeline.rs` has these, on the code itself.

mod delivering;
mod publishing;

use std::{fmt::Debug, hash::Hash};

use stateright::{Checker, HasDiscoveries, Model};

/// Walks through all states and expects every property to hold in each. States of which
/// `representative` makes the same are visited once.
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

/// Expects a run after which `property` does not hold.
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
