//! The requests of a run: a steady rate, and some phones with several messages.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::{RngExt, rngs::StdRng};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::history::SharedHistory;
use crate::kit::{
    clients::{Clients, Habits},
    load::offer,
    phones::Phones,
    recorder::Reply,
};

/// Clients that ask at a steady rate, however long the answers take.
#[derive(Debug)]
pub struct Traffic {
    clients: Arc<Clients<SharedHistory>>,
    pace: Pace,
    phones: Phones,
    rng: Arc<Mutex<StdRng>>,
}

/// How much the clients ask for.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Phones a second.
    pub rate: u32,
    /// The share of phones that get several messages, one after the other.
    pub sequences: f64,
}

impl Traffic {
    pub fn new(ports: Vec<u16>, pace: Pace, history: SharedHistory, mut rng: StdRng) -> Self {
        let habits = Habits { fresh_every: 0, tries_next: false };
        let clients = Arc::new(Clients::new(ports, habits, history));
        let phones = Phones::new(&mut rng);
        Self { clients, pace, phones, rng: Arc::new(Mutex::new(rng)) }
    }

    /// Asks until `stop`, then waits for the answers.
    pub async fn run(&mut self, stop: &CancellationToken) {
        let Self { clients, pace, phones, rng } = self;
        let request = || {
            let phone = phones.draw();
            let several = |rng: &mut StdRng| rng.random_bool(pace.sequences);
            let messages = draw(rng, |rng| if several(rng) { rng.random_range(2..=5) } else { 1 });
            let (clients, rng, stop) = (Arc::clone(clients), Arc::clone(rng), stop.clone());
            async move {
                if messages == 1 {
                    clients.ask(&phone).await;
                } else {
                    ask_in_turn(&clients, &phone, messages, &rng, &stop).await;
                }
            }
        };
        offer(f64::from(pace.rate.max(1)), stop, request).await;
    }
}

/// Asks for messages to one phone, each after the answer 200 to the one before.
async fn ask_in_turn(
    clients: &Clients<SharedHistory>,
    phone: &str,
    messages: usize,
    rng: &Mutex<StdRng>,
    stop: &CancellationToken,
) {
    clients.recorder().lock().sequences.push(phone.to_owned());
    for _ in 0..messages {
        if clients.ask(phone).await != Reply::Accepted {
            return;
        }
        let pause = Duration::from_millis(draw(rng, |rng| rng.random_range(0..500)));
        if stop.run_until_cancelled(sleep(pause)).await.is_none() {
            return;
        }
    }
}

fn draw<T>(rng: &Mutex<StdRng>, draw: impl FnOnce(&mut StdRng) -> T) -> T {
    draw(&mut rng.lock().unwrap_or_else(PoisonError::into_inner))
}
