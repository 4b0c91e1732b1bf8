//! How an SMSC spells in receipts the ids that it gave.
//!
//! SMPP 3.4 does not say that both spellings are the same, and some SMSCs write one in hexadecimal and
//! one in decimal digits. With short ids in sequence, the other spelling of an id is often the id of
//! another message: the decimal 16 is the 10 of a hexadecimal spelling. So the id as it is written
//! wins if it is known, and another spelling counts only after receipts have shown that the SMSC uses
//! it.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::receipt::{ReceiptIds, canonical};

#[cfg(test)]
mod tests;

/// The spelling that the settings name, or that receipts have shown.
#[derive(Debug)]
pub(super) struct Spelling {
    ids: ReceiptIds,
    shown: Mutex<Shown>,
}

/// How many receipts have shown which spelling, in the order of [`SPELLINGS`].
#[derive(Debug, Default)]
struct Shown {
    weights: [u32; SPELLINGS.len()],
    /// The ids that have counted. A receipt that the SMSC repeats shows nothing new.
    counted: HashSet<String>,
}

const SPELLINGS: [ReceiptIds; 3] = [ReceiptIds::Same, ReceiptIds::Decimal, ReceiptIds::Hexadecimal];

/// The weight that decides. A receipt with a short id has the weight 1.
const ENOUGH: u32 = 3;

/// The length from which one receipt is enough. The other spelling of such an id is so much larger or
/// smaller that no other message has it, unless the SMSC gives tens of thousands of ids in three days.
const LONG: usize = 5;

/// How much heavier than all others together the spelling must be.
const RATIO: u32 = 4;

/// The weight at which all weights are halved, so that a change at the SMSC is noticed.
const MOST: u32 = 300;

/// How many ids are remembered as counted.
const COUNTED: usize = 1_000;

impl Spelling {
    pub(super) fn new(ids: ReceiptIds) -> Self {
        Self { ids, shown: Mutex::default() }
    }

    /// Returns the references that a message may have whose receipt has this id. The one that is
    /// spelt as in the receipt comes first.
    pub(super) fn references(id: &str) -> Vec<String> {
        let mut references = Vec::new();
        for reference in SPELLINGS.map(|ids| ids.reference(id)) {
            if !references.contains(&reference) {
                references.push(reference);
            }
        }
        references
    }

    /// Returns the reference of the message whose receipt has this id. `None` if it may have several
    /// and receipts have not shown which.
    pub(super) fn reference(&self, id: &str) -> Option<String> {
        if self.is_set() || Self::references(id).len() == 1 {
            return Some(self.ids.reference(id));
        }
        Some(self.shown().spelling()?.reference(id))
    }

    /// Whether the settings name the spelling.
    pub(super) fn is_set(&self) -> bool {
        self.ids != ReceiptIds::Any
    }

    /// Takes note of a receipt of which these references are known. If several are, it shows nothing.
    pub(super) fn learn(&self, id: &str, known: &[String]) {
        let [reference] = known else { return };
        let spelt = SPELLINGS.iter().position(|ids| ids.reference(id) == *reference);
        if let Some(place) = spelt {
            self.shown().add(place, canonical(id));
        }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shown {
    fn spelling(&self) -> Option<ReceiptIds> {
        let all: u32 = self.weights.iter().sum();
        let decided = |weight: u32| weight >= ENOUGH && weight >= RATIO * (all - weight);
        SPELLINGS.into_iter().zip(self.weights).find(|it| decided(it.1)).map(|it| it.0)
    }

    fn add(&mut self, place: usize, id: String) {
        if self.counted.len() >= COUNTED {
            self.counted.clear();
        }
        let weight = if id.len() < LONG { 1 } else { ENOUGH };
        if self.counted.insert(id) {
            self.weights[place] += weight;
        }
        if self.weights[place] > MOST {
            self.weights = self.weights.map(|weight| weight / 2);
        }
    }
}
