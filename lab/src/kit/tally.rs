//! A record of a few bytes for each message: an overload has millions of them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;

use super::{
    clock::micros,
    phones::Numbered,
    recorder::{Call, Recorder, Reply, Request},
};

/// The record of one message. Times are in microseconds since the tally began, at most 71
/// minutes; 0 means that it has not happened.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    answered: u32,
    called: u32,
    /// A hash of the message's id.
    id: u32,
    calls: u8,
    /// Calls with another id than the first.
    others: u8,
    reply: Reply,
}

/// A record of a run in which each message has a phone of its own, whose number is the message's.
#[derive(Debug, Clone)]
pub struct Tally(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    begun: Instant,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    entries: Vec<Entry>,
    /// The ids of the messages in calls for slow phones, by phone.
    slow: BTreeMap<u64, Vec<String>>,
    /// Calls for phones that no client asked for.
    strangers: u64,
    /// Messages with at least one call.
    called: usize,
    accepted: usize,
    /// Some of the answers that the API must not give.
    samples: Vec<String>,
}

/// The sums of a tally.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Account {
    pub replies: BTreeMap<Reply, usize>,
    pub accepted: usize,
    /// Accepted, and the gateway was never called.
    pub lost: usize,
    /// The gateway was called more than once.
    pub repeated: usize,
    /// The gateway was called for two messages although a client asked for one.
    pub doubled: usize,
    /// Called though the answer was not 200.
    pub unasked: usize,
    /// Calls for phones that no client asked for.
    pub strangers: u64,
    pub samples: Vec<String>,
    pub latency: Latency,
}

/// From the answer's arrival to the call's, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Latency {
    pub count: usize,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Default for Tally {
    fn default() -> Self {
        Self(Arc::new(Inner { begun: Instant::now(), record: Mutex::default() }))
    }
}

impl Tally {
    /// Begins a message. Returns the phone for it.
    pub fn new_phone(&self) -> String {
        let entries = &mut self.record().entries;
        entries.push(Entry::default());
        Numbered::Quick(entries.len() as u64 - 1).to_string()
    }

    /// Records how the request for the message to this phone ended.
    pub fn answer(&self, phone: &str, reply: Reply) {
        let at = self.micros();
        let mut record = self.record();
        let Some(Numbered::Quick(number)) = Numbered::parse(phone) else { return };
        if let Some(entry) = record.entry(number) {
            (entry.answered, entry.reply) = (at, reply);
        }
        record.accepted += usize::from(reply == Reply::Accepted);
    }

    fn call(&self, phone: &str, id: &str) {
        let at = self.micros();
        let hash = fnv_1a(id);
        let mut record = self.record();
        match Numbered::parse(phone) {
            Some(Numbered::Slow(number)) => {
                record.slow.entry(number).or_default().push(id.to_owned());
            }
            Some(Numbered::Quick(number)) if record.entry(number).is_some() => {
                let Some(entry) = record.entry(number) else { return };
                if entry.calls == 0 {
                    (entry.called, entry.id) = (at, hash);
                } else if entry.id != hash {
                    entry.others += 1;
                }
                entry.calls = entry.calls.saturating_add(1);
                let is_first = entry.calls == 1;
                record.called += usize::from(is_first);
            }
            _ => record.strangers += 1,
        }
    }

    /// Returns how many messages were called for, and how many were accepted.
    pub fn progress(&self) -> (usize, usize) {
        let record = self.record();
        (record.called, record.accepted)
    }

    /// Returns how many first calls came since `from`, a time since the tally began.
    pub fn called_since(&self, from: Duration) -> usize {
        let from = micros(from);
        self.record().entries.iter().filter(|entry| entry.called > from).count()
    }

    pub fn elapsed(&self) -> Duration {
        self.0.begun.elapsed()
    }

    /// Returns the ids that the gateway was called with, by slow phone.
    pub fn slow_calls(&self) -> BTreeMap<u64, Vec<String>> {
        self.record().slow.clone()
    }

    pub fn account(&self) -> Account {
        let record = self.record();
        let mut account = Account {
            strangers: record.strangers,
            samples: record.samples.clone(),
            ..Account::default()
        };
        let mut waits = Vec::new();
        for entry in &record.entries {
            *account.replies.entry(entry.reply).or_default() += 1;
            let accepted = entry.reply == Reply::Accepted;
            account.accepted += usize::from(accepted);
            account.lost += usize::from(accepted && entry.calls == 0);
            account.repeated += usize::from(entry.calls > 1);
            account.doubled += usize::from(entry.others > 0);
            account.unasked += usize::from(!accepted && entry.calls > 0);
            waits.extend(entry.wait());
        }
        account.latency = Latency::of(waits);
        account
    }

    /// Returns the latency of the messages answered since `from`, a time since the tally began.
    pub fn latency_since(&self, from: Duration) -> Latency {
        Latency::of(self.waits_since(from))
    }

    /// Returns how long each message answered since then waited for its call, in microseconds.
    pub fn waits_since(&self, from: Duration) -> Vec<u32> {
        let from = micros(from);
        let record = self.record();
        let late = record.entries.iter().filter(|entry| entry.answered >= from);
        late.filter_map(Entry::wait).collect()
    }

    /// Returns the messages that waited longest: phone, wait and time of the answer in
    /// milliseconds.
    pub fn longest(&self, count: usize) -> Vec<(String, u32, u32)> {
        let record = self.record();
        let mut waits: Vec<(u32, u64, u32)> = record
            .entries
            .iter()
            .zip(0..)
            .filter_map(|(entry, number)| {
                Some((entry.wait()? / 1_000, number, entry.answered / 1_000))
            })
            .collect();
        waits.sort_unstable_by(|left, right| right.cmp(left));
        let shown = waits.into_iter().take(count);
        shown.map(|(wait, number, at)| (Numbered::Quick(number).to_string(), wait, at)).collect()
    }

    /// Keeps an answer that the API must not give, to be shown.
    fn sample(&self, text: &str) {
        let samples = &mut self.record().samples;
        if samples.len() < 10 {
            samples.push(text.to_owned());
        }
    }

    fn micros(&self) -> u32 {
        micros(self.0.begun.elapsed()).max(1)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.0.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorder for Tally {
    fn answered(&self, request: &Request<'_>) {
        if let Some(detail) = request.detail {
            self.sample(detail);
        }
        self.answer(request.phone, request.reply);
    }

    fn called(&self, call: &Call<'_>) -> usize {
        self.call(call.phone, call.id);
        0
    }

    fn call_ended(&self, _number: usize, _is_whole: bool) {}
}

impl Record {
    fn entry(&mut self, number: u64) -> Option<&mut Entry> {
        self.entries.get_mut(usize::try_from(number).ok()?)
    }
}

impl Entry {
    /// Returns the time from the answer to the call, if both came.
    fn wait(&self) -> Option<u32> {
        let came = self.reply == Reply::Accepted && self.calls > 0;
        // The gateway may be faster than the client.
        came.then(|| self.called.saturating_sub(self.answered))
    }
}

impl Account {
    pub fn of(&self, reply: Reply) -> usize {
        self.replies.get(&reply).copied().unwrap_or(0)
    }

    /// Counts the requests that got neither 200 nor 503, without those whose client went away.
    pub fn unclean(&self) -> usize {
        let clean = [Reply::Accepted, Reply::Refused, Reply::Left];
        self.replies.iter().filter(|(reply, _)| !clean.contains(reply)).map(|(_, n)| n).sum()
    }
}

impl Latency {
    /// Takes waits in microseconds.
    pub fn of(mut waits: Vec<u32>) -> Self {
        waits.sort_unstable();
        let at = |thousandths: usize| {
            let place = (waits.len() * thousandths).div_ceil(1_000).max(1) - 1;
            waits.get(place).map_or(0.0, |wait| f64::from(*wait) / 1_000.0)
        };
        Self { count: waits.len(), p50: at(500), p99: at(990), max: at(1_000) }
    }
}

impl std::fmt::Display for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { count, p50, p99, max } = self;
        write!(f, "p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms of {count}")
    }
}

fn fnv_1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_repeated_and_doubled_messages_are_counted() {
        let tally = Tally::default();
        for calls in [&[][..], &["a"], &["a", "a"], &["a", "b"]] {
            let phone = tally.new_phone();
            tally.answer(&phone, Reply::Accepted);
            for id in calls {
                tally.call(&phone, id);
            }
        }
        tally.call("79990000000", "a");

        let account = tally.account();

        assert_eq!((account.accepted, account.lost), (4, 1));
        assert_eq!((account.repeated, account.doubled, account.strangers), (2, 1, 1));
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let latency = Latency::of((1..=100).map(|wait| wait * 1_000).collect());

        let found = [latency.p50, latency.p99, latency.max].map(|found| found.to_string());

        assert_eq!(found, ["50", "99", "100"]);
    }
}
