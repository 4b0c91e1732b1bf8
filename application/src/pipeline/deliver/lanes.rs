use std::collections::{BTreeMap, HashMap, VecDeque};

use domain::{Message, PhoneNumber};

use crate::{TraceParent, ports::Past};

/// The messages in hand, in a lane for each phone. A lane makes one call at a time, and lanes are
/// independent.
///
/// While the first message of a lane waits for a retry or for a gateway, the lane is *parked*: its
/// messages leave memory and come back from the ledger, oldest first, when they are due. Messages that
/// arrive in the meantime are parked behind them, so the messages of a phone keep their order.
///
/// Lanes that are ready queue by route, so that those of a route without room stop no other.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    by_phone: HashMap<PhoneNumber, Lane>,
    /// Phones whose first message may be sent now, in order. No queue is empty.
    ready: BTreeMap<RoutePlace, VecDeque<PhoneNumber>>,
    waiting: usize,
    calling: usize,
    parked: usize,
}

/// The place of a route in the table. `None` stands for numbers without a route.
pub(super) type RoutePlace = Option<usize>;

#[derive(Debug, Default)]
struct Lane {
    queue: VecDeque<QueuedMessage>,
    calling: bool,
    /// The number of open entries of this phone that are only in the ledger.
    parked: usize,
    /// The route of the latest message. It only decides the queue.
    route: RoutePlace,
}

/// A message that waits in its lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueuedMessage {
    pub(super) message: Message,
    pub(super) trace: Option<TraceParent>,
    pub(super) past: Past,
    /// Whether a call began under another lease and its outcome was not recorded in time.
    pub(super) interrupted: bool,
    /// Whether the ledger has found the message to be expired.
    pub(super) expired: bool,
}

/// The maximum number of messages of one phone in memory. A phone with many messages must not fill the
/// memory.
const QUEUE: usize = 8;

impl QueuedMessage {
    /// A message for which no call was made.
    pub(super) fn new(message: Message, trace: Option<TraceParent>) -> Self {
        Self { message, trace, past: Past::default(), interrupted: false, expired: false }
    }
}

impl Lane {
    fn in_hand(&self) -> usize {
        self.queue.len() + usize::from(self.calling)
    }
}

impl Lanes {
    /// Returns the number of messages in memory whose call has not begun.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Returns the number of messages that are only in the ledger and must be looked up there.
    pub(super) fn parked(&self) -> usize {
        self.parked
    }

    /// Returns the number of phones with open messages. They take memory even if their messages do not.
    pub(super) fn phones(&self) -> usize {
        self.by_phone.len()
    }

    /// Returns the routes of phones whose first message may be sent now, and the number of these phones.
    pub(super) fn ready(&self) -> impl Iterator<Item = (RoutePlace, usize)> {
        self.ready.iter().map(|(route, phones)| (*route, phones.len()))
    }

    /// Whether a phone has no open message.
    pub(super) fn is_free(&self, phone: &PhoneNumber) -> bool {
        !self.by_phone.contains_key(phone)
    }

    /// Records a call for a message that did not wait. Its phone must be free.
    pub(super) fn begin(&mut self, phone: &PhoneNumber, route: RoutePlace) {
        let lane = self.by_phone.entry(phone.clone()).or_default();
        (lane.calling, lane.route) = (true, route);
        self.calling += 1;
    }

    /// Adopts the ledger's number of open entries for each phone. Entries that are not in memory are
    /// parked.
    ///
    /// This is necessary at the start, when the entries are those of another consumer, and at
    /// intervals, because that consumer may still end some of them.
    pub(super) fn sync(&mut self, open: Vec<(PhoneNumber, usize)>) {
        for lane in self.by_phone.values_mut() {
            lane.parked = 0;
        }
        for (phone, entries) in open {
            let lane = self.by_phone.entry(phone).or_default();
            lane.parked = entries.saturating_sub(lane.in_hand());
        }
        self.parked = self.by_phone.values().map(|lane| lane.parked).sum();
        self.by_phone.retain(|_, lane| lane.in_hand() + lane.parked > 0);
    }

    /// Whether a phone has no message in memory.
    pub(super) fn is_idle(&self, phone: &PhoneNumber) -> bool {
        self.by_phone.get(phone).is_none_or(|lane| lane.in_hand() == 0)
    }

    /// Adds a message that has just arrived.
    pub(super) fn push(&mut self, waiting: QueuedMessage, route: RoutePlace) {
        let phone = waiting.message.phone.clone();
        let lane = self.by_phone.entry(phone.clone()).or_default();
        lane.route = route;
        if lane.parked > 0 || lane.queue.len() == QUEUE {
            lane.parked += 1;
            self.parked += 1;
            return;
        }
        if lane.queue.is_empty() && !lane.calling {
            self.ready.entry(route).or_default().push_back(phone);
        }
        lane.queue.push_back(waiting);
        self.waiting += 1;
    }

    /// Brings back a parked message. It must be the oldest of its phone, and the phone must be idle.
    pub(super) fn resume(&mut self, waiting: QueuedMessage, route: RoutePlace) {
        let phone = waiting.message.phone.clone();
        let lane = self.by_phone.entry(phone.clone()).or_default();
        lane.route = route;
        if lane.parked > 0 {
            lane.parked -= 1;
            self.parked -= 1;
        }
        lane.queue.push_back(waiting);
        self.ready.entry(route).or_default().push_back(phone);
        self.waiting += 1;
    }

    /// Whether a phone is idle and has parked messages.
    pub(super) fn is_waiting_in_ledger(&self, phone: &PhoneNumber) -> bool {
        self.by_phone.get(phone).is_some_and(|lane| lane.in_hand() == 0 && lane.parked > 0)
    }

    /// Returns the first message of a ready lane, by the lane's place in the queue of its route.
    pub(super) fn first(&self, route: RoutePlace, place: usize) -> Option<&QueuedMessage> {
        let phone = self.ready.get(&route)?.get(place)?;
        self.by_phone.get(phone)?.queue.front()
    }

    /// Takes that message. Its lane is calling from now on.
    pub(super) fn take(&mut self, route: RoutePlace, place: usize) -> Option<QueuedMessage> {
        let phones = self.ready.get_mut(&route)?;
        let phone = phones.remove(place)?;
        if phones.is_empty() {
            self.ready.remove(&route);
        }
        let lane = self.by_phone.get_mut(&phone).expect("a ready phone has a lane");
        let first = lane.queue.pop_front().expect("a ready lane has a message");
        lane.calling = true;
        self.waiting -= 1;
        self.calling += 1;
        Some(first)
    }

    /// Puts a message back that was taken, as the first of its lane, and its lane first in its queue.
    pub(super) fn put_back(&mut self, taken: QueuedMessage) {
        let phone = taken.message.phone.clone();
        let lane = self.by_phone.get_mut(&phone).expect("a calling phone has a lane");
        lane.calling = false;
        lane.queue.push_front(taken);
        self.ready.entry(lane.route).or_default().push_front(phone);
        self.waiting += 1;
        self.calling -= 1;
    }

    /// Ends the call of a phone whose message has ended. The next message may be sent.
    pub(super) fn done(&mut self, phone: &PhoneNumber) {
        let Some(lane) = self.by_phone.get_mut(phone).filter(|lane| lane.calling) else { return };
        lane.calling = false;
        self.calling -= 1;
        if !lane.queue.is_empty() {
            self.ready.entry(lane.route).or_default().push_back(phone.clone());
        } else if lane.parked == 0 {
            self.by_phone.remove(phone);
        }
    }

    /// Ends the call of a phone whose message must wait. Later messages wait behind it.
    pub(super) fn park(&mut self, phone: &PhoneNumber) {
        let Some(lane) = self.by_phone.get_mut(phone).filter(|lane| lane.calling) else { return };
        lane.calling = false;
        self.calling -= 1;
        let behind = lane.queue.len();
        // The memory of a queue that once was long is given back.
        lane.queue = VecDeque::new();
        lane.parked += 1 + behind;
        self.parked += 1 + behind;
        self.waiting -= behind;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use domain::MessageId;
    use proptest::prelude::*;

    use super::*;

    fn waiting(phone: u8, number: i64) -> QueuedMessage {
        let message = Message {
            id: MessageId::of_record("t", 0, number, 0),
            phone: format!("799900000{phone:02}").parse().unwrap(),
            code: "123456".parse().unwrap(),
        };
        QueuedMessage::new(message, None)
    }

    const ROUTE: RoutePlace = Some(0);

    fn take(lanes: &mut Lanes, limit: usize) -> Vec<QueuedMessage> {
        (0..limit).map_while(|_| lanes.take(ROUTE, 0)).collect()
    }

    #[test]
    fn a_phone_has_one_call_at_a_time_and_phones_are_independent() {
        let mut lanes = Lanes::default();
        for (phone, number) in [(1, 1), (1, 2), (2, 3)] {
            lanes.push(waiting(phone, number), ROUTE);
        }

        assert_eq!(take(&mut lanes, 10), [waiting(1, 1), waiting(2, 3)]);
        assert_eq!(take(&mut lanes, 10), []);

        lanes.done(&waiting(1, 1).message.phone);
        assert_eq!(take(&mut lanes, 10), [waiting(1, 2)]);
    }

    #[test]
    fn later_messages_wait_behind_a_parked_message() {
        let mut lanes = Lanes::default();
        lanes.push(waiting(1, 1), ROUTE);
        lanes.push(waiting(1, 2), ROUTE);
        take(&mut lanes, 1);

        lanes.park(&waiting(1, 1).message.phone);
        lanes.push(waiting(1, 3), ROUTE);

        assert_eq!(take(&mut lanes, 10), []);
        assert_eq!(lanes.waiting(), 0);
        assert_eq!(lanes.parked(), 3);

        lanes.resume(waiting(1, 1), ROUTE);
        assert_eq!(take(&mut lanes, 10), [waiting(1, 1)]);
    }

    #[test]
    fn many_messages_to_one_phone_do_not_delay_other_phones() {
        let mut lanes = Lanes::default();
        for number in 0..2_000 {
            lanes.push(waiting(1, number), ROUTE);
        }
        lanes.push(waiting(2, 2_000), ROUTE);

        assert!(lanes.waiting() < 20, "{} waiting", lanes.waiting());
        assert_eq!(take(&mut lanes, 10), [waiting(1, 0), waiting(2, 2_000)]);
    }

    #[test]
    fn messages_that_were_put_back_are_first_again() {
        let mut lanes = Lanes::default();
        for number in 1..=3 {
            lanes.push(waiting(u8::try_from(number).unwrap(), number), ROUTE);
        }

        let taken = take(&mut lanes, 2);
        taken.into_iter().rev().for_each(|message| lanes.put_back(message));

        assert_eq!(take(&mut lanes, 10), [waiting(1, 1), waiting(2, 2), waiting(3, 3)]);
    }

    #[test]
    fn a_message_that_goes_on_is_the_first_of_its_phone() {
        let mut lanes = Lanes::default();
        for (phone, number) in [(1, 1), (1, 2), (2, 3)] {
            lanes.push(waiting(phone, number), ROUTE);
        }
        let first = lanes.take(ROUTE, 0).unwrap();

        lanes.put_back(first);

        assert_eq!(take(&mut lanes, 10), [waiting(1, 1), waiting(2, 3)]);
    }

    #[test]
    fn phones_queue_by_route() {
        let mut lanes = Lanes::default();
        lanes.push(waiting(1, 1), Some(1));
        lanes.push(waiting(2, 2), None);
        lanes.push(waiting(1, 3), Some(1));
        assert_eq!(lanes.ready().collect::<Vec<_>>(), [(None, 1), (Some(1), 1)]);

        assert_eq!(lanes.take(Some(0), 0), None);
        assert_eq!(lanes.take(None, 0), Some(waiting(2, 2)));
        assert_eq!(lanes.ready().collect::<Vec<_>>(), [(Some(1), 1)]);

        lanes.take(Some(1), 0).unwrap();
        lanes.done(&waiting(1, 1).message.phone);
        assert_eq!(lanes.first(Some(1), 0), Some(&waiting(1, 3)));
    }

    #[test]
    fn a_lane_is_taken_from_the_middle_of_its_queue() {
        let mut lanes = Lanes::default();
        (1..=3).for_each(|phone| lanes.push(waiting(phone, phone.into()), ROUTE));

        assert_eq!(lanes.first(ROUTE, 1), Some(&waiting(2, 2)));
        assert_eq!(lanes.take(ROUTE, 1), Some(waiting(2, 2)));
        assert_eq!(lanes.first(ROUTE, 2), None);
        assert_eq!(take(&mut lanes, 10), [waiting(1, 1), waiting(3, 3)]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(u8),
        Begin(u8),
        Take(usize),
        Done(usize),
        Park(usize),
        Resume(u8),
        Sync,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_u8..4).prop_map(Step::Push),
            (0_u8..4).prop_map(Step::Begin),
            (1_usize..4).prop_map(Step::Take),
            (0_usize..4).prop_map(Step::Done),
            (0_usize..4).prop_map(Step::Park),
            (0_u8..4).prop_map(Step::Resume),
            Just(Step::Sync),
        ]
    }

    proptest! {
        /// Compares the lanes with a ledger that is a list of open entries for each phone.
        #[test]
        fn every_phone_keeps_its_order(steps in prop::collection::vec(step(), 1..120)) {
            let mut lanes = Lanes::default();
            let mut open: HashMap<u8, VecDeque<i64>> = HashMap::new();
            let mut calls: Vec<(u8, i64)> = Vec::new();
            let mut number = 0;

            for step in steps {
                match step {
                    Step::Push(phone) => {
                        number += 1;
                        open.entry(phone).or_default().push_back(number);
                        lanes.push(waiting(phone, number), ROUTE);
                    }
                    Step::Begin(phone) if lanes.is_free(&waiting(phone, 0).message.phone) => {
                        prop_assert!(open.get(&phone).is_none_or(VecDeque::is_empty), "not free");
                        number += 1;
                        open.entry(phone).or_default().push_back(number);
                        lanes.begin(&waiting(phone, number).message.phone, ROUTE);
                        calls.push((phone, number));
                    }
                    Step::Take(limit) => {
                        for taken in take(&mut lanes, limit) {
                            let phone = (0..4).find(|p| waiting(*p, 0).message.phone == taken.message.phone).unwrap();
                            let oldest = open[&phone][0];
                            prop_assert_eq!(&taken, &waiting(phone, oldest), "not the oldest");
                            prop_assert!(calls.iter().all(|(p, _)| *p != phone), "two calls");
                            calls.push((phone, oldest));
                        }
                    }
                    Step::Done(at) if at < calls.len() => {
                        let (phone, _) = calls.swap_remove(at);
                        open.get_mut(&phone).unwrap().pop_front();
                        lanes.done(&waiting(phone, 0).message.phone);
                    }
                    Step::Park(at) if at < calls.len() => {
                        let (phone, _) = calls.swap_remove(at);
                        lanes.park(&waiting(phone, 0).message.phone);
                    }
                    Step::Resume(phone) => {
                        let oldest = open.get(&phone).and_then(|open| open.front());
                        if let Some(oldest) = oldest
                            && lanes.is_idle(&waiting(phone, 0).message.phone)
                        {
                            lanes.resume(waiting(phone, *oldest), ROUTE);
                        }
                    }
                    Step::Sync => lanes.sync(
                        open.iter()
                            .filter(|(_, open)| !open.is_empty())
                            .map(|(phone, open)| (waiting(*phone, 0).message.phone, open.len()))
                            .collect(),
                    ),
                    Step::Begin(_) | Step::Done(_) | Step::Park(_) => {}
                }
                prop_assert_eq!(lanes.calling, calls.len());
                let parked: usize = lanes.by_phone.values().map(|lane| lane.parked).sum();
                prop_assert_eq!(lanes.parked(), parked);
            }
        }
    }
}
