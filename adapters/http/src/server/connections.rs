//! The table of connections: it knows the phase of each request, and chooses the connection that
//! makes room for a new one.
//!
//! This is one file, because the phases of a connection exist only for the choice that the table
//! makes.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, task::yield_now, time::Instant};
use tokio_util::sync::CancellationToken;

use super::ServerLimits;
use crate::ConnectionMetrics;

#[cfg(test)]
mod tests;

/// The pause between two log lines about refused and dropped connections, and the pause between two
/// connections that are told to end with their next answer.
const LOG_PAUSE: Duration = Duration::from_secs(10);
const ASK_PAUSE: Duration = Duration::from_millis(10);

/// The pause after a search that found nothing to drop. A search examines every connection.
const SEARCH_PAUSE: Duration = Duration::from_millis(1);

/// A client: an IPv4 address, or the /64 of an IPv6 address, which usually belongs to one customer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Peer {
    V4(Ipv4Addr),
    V6(u64),
    /// A connection of a trusted proxy, with its number. The clients behind the proxy are not one
    /// client, so each of its connections counts as one.
    Proxied(IpAddr, u64),
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::V4(address) => address.fmt(f),
            Self::Proxied(address, _) => address.to_canonical().fmt(f),
            Self::V6(prefix) => {
                write!(f, "{}/64", std::net::Ipv6Addr::from_bits(u128::from(*prefix) << 64))
            }
        }
    }
}

/// The phase of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// No byte of a request has arrived. There may be a TLS handshake.
    New,
    /// A part of a head has arrived.
    Head,
    /// The head has arrived, and a handler waits for the body.
    Body,
    /// The request is complete, and its handler runs.
    Running,
    /// The answer is being written.
    Answering,
    /// The client does not read the answer.
    Unread,
    /// The answer is written, and the next request has not begun.
    Idle,
}

impl Phase {
    /// All phases in the order of their numbers, which fit into [`PHASE_BITS`].
    const ALL: [Self; 7] = [
        Self::New,
        Self::Head,
        Self::Body,
        Self::Running,
        Self::Answering,
        Self::Unread,
        Self::Idle,
    ];

    /// Returns whether the server must act next.
    fn is_ours(self) -> bool {
        matches!(self, Self::Running | Self::Answering)
    }
}

/// An order to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Order {
    Stay,
    /// End as soon as it is idle.
    Finish,
    /// End at once, unless a handler runs for it.
    Go,
}

/// One connection. Its task and the table of all connections share this value.
#[derive(Debug)]
pub(super) struct Link {
    peer: Peer,
    /// The number of connections of the peer.
    held: Arc<AtomicU32>,
    opened: Instant,
    /// Milliseconds from `opened` to the last time from which the peer had to act, with the phase
    /// in the lowest bits.
    state: AtomicU64,
    /// Milliseconds from `opened` to the time when the connection was told to end with its next
    /// answer.
    told: AtomicU64,
    order: AtomicU8,
    called: Notify,
    /// Another connection has taken its place.
    is_leaving: AtomicBool,
}

const UNTOLD: u64 = u64::MAX;
const PHASE_BITS: u64 = 3;

impl Link {
    fn new(peer: Peer, held: Arc<AtomicU32>, now: Instant) -> Self {
        Self {
            peer,
            held,
            opened: now,
            state: AtomicU64::new(Phase::New as u64),
            told: AtomicU64::new(UNTOLD),
            order: AtomicU8::new(Order::Stay as u8),
            called: Notify::new(),
            is_leaving: AtomicBool::new(false),
        }
    }

    fn state(&self) -> (u64, Phase) {
        let state = self.state.load(Ordering::Relaxed);
        let number = (state & ((1 << PHASE_BITS) - 1)) as usize;
        (state >> PHASE_BITS, Phase::ALL[number])
    }

    pub(super) fn phase(&self) -> Phase {
        self.state().1
    }

    /// Starts a phase in which the peer must act.
    fn begin(&self, phase: Phase) {
        let now = milliseconds(self.opened.elapsed());
        self.state.store(now << PHASE_BITS | phase as u64, Ordering::Relaxed);
    }

    /// Changes the phase without restarting the peer's time.
    fn go_on(&self, phase: Phase) {
        self.state.store(self.state().0 << PHASE_BITS | phase as u64, Ordering::Relaxed);
    }

    /// Notes that bytes have arrived.
    pub(super) fn read(&self) {
        if matches!(self.phase(), Phase::New | Phase::Idle) {
            self.begin(Phase::Head);
        }
    }

    /// Notes a complete head. The time for the body begins at the first byte of the head.
    pub(super) fn asked(&self, has_body: bool) {
        self.go_on(if has_body { Phase::Body } else { Phase::Running });
    }

    /// Notes that the handler has read the body, or needs no more of it.
    pub(super) fn body_ended(&self) {
        if self.phase() == Phase::Body {
            self.go_on(Phase::Running);
        }
    }

    pub(super) fn answered(&self) {
        self.go_on(Phase::Answering);
    }

    /// Notes that the client does not read the answer.
    pub(super) fn blocked(&self) {
        if self.phase() == Phase::Answering {
            self.begin(Phase::Unread);
        }
    }

    /// Notes that everything has been written.
    pub(super) fn flushed(&self) {
        if matches!(self.phase(), Phase::Answering | Phase::Unread) {
            self.begin(Phase::Idle);
        }
    }

    /// Returns how long the server has waited for the peer.
    fn waited(&self, now: Instant) -> Option<(Phase, Duration)> {
        let (since, phase) = self.state();
        let waited = (now - self.opened).saturating_sub(Duration::from_millis(since));
        (!phase.is_ours()).then_some((phase, waited))
    }

    /// Returns whether the next answer must tell the client to close.
    pub(super) fn is_told(&self) -> bool {
        self.told.load(Ordering::Relaxed) != UNTOLD
    }

    fn tell(&self, now: Instant) {
        self.told.store(milliseconds(now - self.opened), Ordering::Relaxed);
    }

    fn order(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::Relaxed);
        self.called.notify_one();
    }

    /// Makes [`Self::called`] return once more, if there was an order.
    pub(super) fn repeat_order(&self) {
        if self.order.load(Ordering::Relaxed) != Order::Stay as u8 {
            self.called.notify_one();
        }
    }

    /// Waits for an order.
    ///
    /// Bytes that arrived before the order are read before the task obeys it, because the runtime
    /// polls the system before it returns to a task that yields.
    pub(super) async fn called(&self) {
        self.called.notified().await;
        yield_now().await;
    }

    /// Returns whether the connection must be dropped.
    pub(super) fn is_to_go(&self) -> bool {
        self.order.load(Ordering::Relaxed) == Order::Go as u8 && !self.phase().is_ours()
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// All connections of a server.
#[derive(Debug)]
pub(super) struct Connections {
    limits: ServerLimits,
    metrics: ConnectionMetrics,
    stop: CancellationToken,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    links: Vec<Option<Arc<Link>>>,
    free: Vec<usize>,
    /// Connections that are not leaving.
    open: usize,
    peers: HashMap<Peer, Arc<AtomicU32>>,
    closing: bool,
    /// The last failed search: its time, the peer whose connections it examined, and the number of
    /// connections of the new connection's peer. A peer with as many or more would also find
    /// nothing.
    searched: Option<(Instant, Option<Peer>, u32)>,
    asked: Option<Instant>,
    logged: Option<Instant>,
    refused: u64,
    dropped: u64,
}

/// A connection's place in the table. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) link: Arc<Link>,
    connections: Arc<Connections>,
    index: usize,
}

impl Connections {
    pub(super) fn new(
        limits: ServerLimits,
        metrics: ConnectionMetrics,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self { limits, metrics, stop, table: Mutex::default() })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a place for a connection of `peer`: a free place, or the place of a connection
    /// without progress.
    ///
    /// If there is no place, returns `None`, and the longest open connection ends with its next
    /// answer.
    pub(super) fn admit(self: &Arc<Self>, peer: Peer) -> Option<Entry> {
        let limits = &self.limits;
        let now = Instant::now();
        let mut table = self.table();
        let held = table.peers.get(&peer).map_or(0, |held| held.load(Ordering::Relaxed));
        let has_all_of_its_own = held as usize >= limits.max_per_peer;
        if has_all_of_its_own || table.open >= limits.max_connections {
            let only = has_all_of_its_own.then_some(peer);
            // A connection that makes room holds its descriptor until it has ended.
            let may_send_away = table.leaving() < limits.max_leaving();
            let found = may_send_away.then(|| table.search(limits, held, only, now)).flatten();
            let Some(index) = found else {
                self.metrics.refused.inc();
                table.refused += 1;
                table.ask(only, now);
                table.log(now);
                return None;
            };
            self.metrics.dropped.inc();
            table.dropped += 1;
            table.send_away(index);
            table.log(now);
        }
        let (link, index) = table.insert(peer, now);
        Some(Entry { link, connections: Arc::clone(self), index })
    }

    /// Returns whether answers tell their clients to close.
    pub(super) fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Drops connections whose deadline has passed.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let table = self.table();
        for link in table.links.iter().flatten() {
            if link.is_overdue(&self.limits, table.closing, now) {
                link.order(Order::Go);
            }
        }
    }

    /// Ends all connections at once. A connection with a request in flight ends after its answer.
    pub(super) fn close(&self) {
        let mut table = self.table();
        table.closing = true;
        for link in table.links.iter().flatten() {
            link.order(Order::Finish);
        }
    }

    /// Returns the number of connections.
    pub(super) fn len(&self) -> usize {
        self.table().links.iter().flatten().count()
    }
}

impl Link {
    fn is_overdue(&self, limits: &ServerLimits, closing: bool, now: Instant) -> bool {
        let Some((phase, waited)) = self.waited(now) else { return false };
        let told = self.told.load(Ordering::Relaxed);
        if told != UNTOLD
            && (now - self.opened).saturating_sub(Duration::from_millis(told)) > limits.last_answer
        {
            return true;
        }
        let limit = match phase {
            _ if closing => limits.patience,
            Phase::New => limits.first_byte_timeout,
            Phase::Head => limits.head_timeout,
            Phase::Idle => limits.idle_timeout,
            Phase::Unread => limits.write_timeout,
            // Handlers have their own deadline for the body, and answer.
            Phase::Body | Phase::Running | Phase::Answering => return false,
        };
        waited > limit
    }
}

impl Table {
    /// Finds the connection that makes room for a peer with `held` connections.
    ///
    /// Connections without a complete request come first, then connections of the peer with the
    /// most connections, then the connection that is longest without progress. A peer with more
    /// connections than the new connection's peer gets less time.
    fn search(
        &mut self,
        limits: &ServerLimits,
        held: u32,
        only: Option<Peer>,
        now: Instant,
    ) -> Option<usize> {
        let failed = |(at, among, least)| now - at < SEARCH_PAUSE && among == only && held >= least;
        if self.searched.is_some_and(failed) {
            return None;
        }
        let worst = self.links.iter().enumerate().filter_map(|(index, link)| {
            let link = link.as_ref()?;
            if only.is_some_and(|peer| peer != link.peer) || link.leaves() {
                return None;
            }
            let (phase, waited) = link.waited(now)?;
            let theirs = link.held.load(Ordering::Relaxed);
            let patience = match phase {
                Phase::Idle => limits.idle_patience,
                _ => limits.patience,
            };
            let patience = if theirs > held + 1 { patience / 4 } else { patience };
            (waited >= patience).then_some((phase != Phase::Idle, theirs, waited, index))
        });
        let worst = worst.max().map(|(.., index)| index);
        self.searched = worst.is_none().then_some((now, only, held));
        worst
    }

    /// Tells the longest open connection to end with its next answer, unless another connection was
    /// told a moment ago.
    fn ask(&mut self, only: Option<Peer>, now: Instant) {
        if self.asked.is_some_and(|asked| now - asked <= ASK_PAUSE) {
            return;
        }
        let links = self.links.iter().flatten().filter(|link| !link.is_told() && !link.leaves());
        let links = links.filter(|link| only.is_none_or(|peer| peer == link.peer));
        if let Some(oldest) = links.min_by_key(|link| link.opened) {
            oldest.tell(now);
            self.asked = Some(now);
        }
    }

    fn log(&mut self, now: Instant) {
        if self.logged.is_some_and(|logged| now - logged <= LOG_PAUSE) {
            return;
        }
        self.logged = Some(now);
        let held = |link: &&Arc<Link>| link.held.load(Ordering::Relaxed);
        let Some(most) = self.links.iter().flatten().max_by_key(held) else { return };
        tracing::warn!(
            refused = std::mem::take(&mut self.refused),
            dropped = std::mem::take(&mut self.dropped),
            peer = %most.peer,
            peer_connections = held(&most),
            "all connections are taken; connections without progress are dropped to make room, and \
             new ones get 503 if there are none; raise MAX_CONNECTIONS or check the client in peer"
        );
    }

    fn insert(&mut self, peer: Peer, now: Instant) -> (Arc<Link>, usize) {
        let held = Arc::clone(self.peers.entry(peer).or_default());
        held.fetch_add(1, Ordering::Relaxed);
        self.open += 1;
        let link = Arc::new(Link::new(peer, held, now));
        let index = self.free.pop().unwrap_or_else(|| {
            self.links.push(None);
            self.links.len() - 1
        });
        self.links[index] = Some(Arc::clone(&link));
        (link, index)
    }

    /// Returns the number of connections that make room and have not ended.
    fn leaving(&self) -> usize {
        self.links.len() - self.free.len() - self.open
    }

    /// Gives the place of the connection to a new one. It stays in the table until it has ended.
    fn send_away(&mut self, index: usize) {
        let Some(link) = self.links[index].clone() else { return };
        if !link.is_leaving.swap(true, Ordering::Relaxed) {
            self.leave(&link);
        }
        link.tell(Instant::now());
        link.order(Order::Go);
    }

    fn leave(&mut self, link: &Link) {
        self.open -= 1;
        if link.held.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.peers.remove(&link.peer);
        }
    }
}

impl Link {
    /// Returns whether a part of a request has arrived, if the connection makes room before its
    /// request is complete. Returns `None` for any other connection.
    pub(super) fn asks_in_vain(&self) -> Option<bool> {
        match self.phase() {
            Phase::New if self.leaves() => Some(false),
            Phase::Head if self.leaves() => Some(true),
            _ => None,
        }
    }

    fn leaves(&self) -> bool {
        self.is_leaving.load(Ordering::Relaxed)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut table = self.connections.table();
        table.links[self.index] = None;
        table.free.push(self.index);
        if !self.link.leaves() {
            table.leave(&self.link);
        }
    }
}
