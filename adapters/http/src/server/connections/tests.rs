use std::net::Ipv6Addr;

use prometheus::Registry;
use tokio::time::advance;

use super::*;

const FAST: Duration = Duration::from_millis(250);
const SLOW: Duration = Duration::from_secs(2);

fn limits(max_connections: usize) -> ServerLimits {
    ServerLimits { max_connections, patience: FAST, idle_patience: SLOW, ..ServerLimits::default() }
}

fn connections(limits: ServerLimits) -> Arc<Connections> {
    let metrics = ConnectionMetrics::register(&Registry::new()).unwrap();
    Connections::new(limits, metrics, CancellationToken::new())
}

fn peer(last: u8) -> Peer {
    IpAddr::from([192, 0, 2, last]).into()
}

fn is_told_to_go(entry: &Entry) -> bool {
    entry.link.order.load(Ordering::Relaxed) == Order::Go as u8
}

/// Makes a connection idle between two requests.
fn make_idle(entry: &Entry) {
    entry.link.read();
    entry.link.asked(false);
    entry.link.answered();
    entry.link.flushed();
    assert_eq!(entry.link.phase(), Phase::Idle);
}

#[tokio::test(start_paused = true)]
async fn connection_without_progress_makes_room_after_its_patience() {
    let body = |link: &Link| {
        link.read();
        link.asked(true);
    };
    let unread = |link: &Link| {
        link.read();
        link.asked(false);
        link.answered();
        link.blocked();
    };
    let states: [&dyn Fn(&Link); 4] = [&|_| {}, &Link::read, &body, &unread];
    for proceed in states {
        let connections = connections(limits(1));
        let first = connections.admit(peer(1)).unwrap();
        proceed(&first.link);

        advance(FAST * 99 / 100).await;
        assert!(connections.admit(peer(1)).is_none());
        advance(FAST / 50).await;
        let second = connections.admit(peer(1)).unwrap();

        assert!(is_told_to_go(&first) && first.link.is_to_go());
        assert!(!is_told_to_go(&second));
        assert_eq!((connections.metrics.dropped.get(), connections.metrics.refused.get()), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn head_and_body_share_one_patience() {
    let connections = connections(limits(1));
    let first = connections.admit(peer(1)).unwrap();
    first.link.read();
    advance(FAST / 2).await;
    first.link.read();
    first.link.asked(true);
    advance(FAST / 2).await;

    assert!(connections.admit(peer(1)).is_some());
}

#[tokio::test(start_paused = true)]
async fn running_request_keeps_its_place() {
    let connections = connections(limits(1));
    let first = connections.admit(peer(1)).unwrap();
    first.link.read();
    first.link.asked(true);
    first.link.body_ended();
    advance(SLOW * 100).await;

    assert!(connections.admit(peer(2)).is_none());
    first.link.answered();
    advance(ASK_PAUSE + Duration::from_millis(1)).await;
    assert!(connections.admit(peer(2)).is_none());
    assert!(first.link.is_told());
    connections.sweep();
    assert!(!is_told_to_go(&first));
}

#[tokio::test(start_paused = true)]
async fn connections_without_a_request_make_room_before_idle_ones() {
    let connections = connections(limits(2));
    let idle = connections.admit(peer(1)).unwrap();
    make_idle(&idle);
    advance(SLOW).await;
    let fresh = connections.admit(peer(2)).unwrap();
    advance(FAST).await;

    let _third = connections.admit(peer(3)).unwrap();
    assert!(is_told_to_go(&fresh) && !is_told_to_go(&idle));
    drop(fresh);
    let _fourth = connections.admit(peer(4)).unwrap();
    assert!(is_told_to_go(&idle));
}

#[tokio::test(start_paused = true)]
async fn peer_with_the_most_connections_makes_room_first_and_sooner() {
    let connections = connections(limits(4));
    let alone = connections.admit(peer(1)).unwrap();
    advance(Duration::from_millis(1)).await;
    let many: Vec<_> = (0..3).map(|_| connections.admit(peer(2)).unwrap()).collect();

    assert!(connections.admit(peer(2)).is_none());
    advance(FAST / 4).await;
    assert!(connections.admit(peer(2)).is_none(), "it has no claim on its own");
    let _other = connections.admit(peer(3)).unwrap();

    assert!(!is_told_to_go(&alone));
    assert_eq!(many.iter().filter(|entry| is_told_to_go(entry)).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn peer_has_at_most_its_share_of_connections() {
    let connections = connections(ServerLimits { max_per_peer: 2, ..limits(10) });
    let network = |last: u64| {
        let bits = u128::from(0x2001_0db8_0000_0001_u64) << 64 | u128::from(last);
        Peer::from(IpAddr::from(Ipv6Addr::from_bits(bits)))
    };
    let mut entries: Vec<_> = [1, 2].map(|last| connections.admit(network(last)).unwrap()).into();
    assert!(connections.admit(network(3)).is_none());
    let next = Peer::from(IpAddr::from("2001:db8:0:2::1".parse::<Ipv6Addr>().unwrap()));
    entries.push(connections.admit(next).unwrap());
    let mapped = Peer::from(IpAddr::from("::ffff:192.0.2.1".parse::<Ipv6Addr>().unwrap()));
    entries.extend([mapped, peer(1)].map(|peer| connections.admit(peer).unwrap()));
    assert!(connections.admit(peer(1)).is_none());
    assert_eq!(
        (mapped.to_string(), next.to_string()),
        ("192.0.2.1".into(), "2001:db8:0:2::/64".into())
    );

    // Only its own connections make room.
    advance(FAST).await;
    entries.push(connections.admit(peer(1)).unwrap());
    let gone: Vec<_> = entries.iter().filter(|entry| is_told_to_go(entry)).collect();
    assert_eq!(gone.len(), 1);
    assert_eq!(gone[0].link.peer, peer(1));
}

#[tokio::test(start_paused = true)]
async fn places_are_given_back() {
    let connections = connections(limits(2));
    for _ in 0..3 {
        let first = connections.admit(peer(1)).unwrap();
        let second = connections.admit(peer(2)).unwrap();
        advance(FAST).await;
        let third = connections.admit(peer(3)).unwrap();
        assert_eq!(connections.len(), 3);
        drop((first, second));
        let fourth = connections.admit(peer(3)).unwrap();
        assert!(connections.admit(peer(3)).is_none());
        drop((third, fourth));

        let table = connections.table();
        assert_eq!((table.open, table.peers.len(), table.links.len()), (0, 0, 3));
    }
}

#[tokio::test(start_paused = true)]
async fn crowd_ends_one_connection_at_a_time_the_oldest_first() {
    let connections = connections(limits(2));
    let mut entries = Vec::new();
    for last in [1, 2] {
        let entry = connections.admit(peer(last)).unwrap();
        entry.link.read();
        entry.link.asked(false);
        entries.push(entry);
        advance(Duration::from_millis(1)).await;
    }
    let told = || entries.iter().map(|entry| entry.link.is_told()).collect::<Vec<_>>();

    for _ in 0..2 {
        assert!(connections.admit(peer(3)).is_none());
        assert_eq!(told(), [true, false]);
    }
    advance(ASK_PAUSE + Duration::from_millis(1)).await;
    assert!(connections.admit(peer(3)).is_none());
    assert_eq!(told(), [true, true]);
}

#[tokio::test(start_paused = true)]
async fn each_phase_has_its_own_deadline() {
    let limits = ServerLimits {
        first_byte_timeout: Duration::from_secs(1),
        head_timeout: Duration::from_secs(2),
        idle_timeout: Duration::from_secs(3),
        write_timeout: Duration::from_secs(4),
        ..limits(4)
    };
    let connections = connections(limits);
    let entries = [1, 2, 3, 4].map(|last| connections.admit(peer(last)).unwrap());
    entries[1].link.read();
    make_idle(&entries[2]);
    entries[3].link.asked(false);
    entries[3].link.answered();
    entries[3].link.blocked();

    for cut in 0..4 {
        let gone = || entries.iter().filter(|entry| is_told_to_go(entry)).count();
        connections.sweep();
        assert_eq!(gone(), cut);
        // More bytes of a head do not extend its time.
        entries[1].link.read();
        advance(Duration::from_millis(1001)).await;
        connections.sweep();
        assert_eq!(gone(), cut + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn failed_search_is_not_repeated_at_once_except_for_a_peer_with_fewer() {
    let connections = connections(limits(3));
    let _entries: Vec<_> = [1, 1, 2].map(|last| connections.admit(peer(last)).unwrap()).into();
    let searched = || connections.table().searched;

    assert!(connections.admit(peer(1)).is_none());
    let (first, _, held) = searched().unwrap();
    assert_eq!(held, 2);
    advance(SEARCH_PAUSE / 2).await;
    assert!(connections.admit(peer(1)).is_none());
    assert_eq!(searched().unwrap().0, first);
    assert!(connections.admit(peer(2)).is_none());
    assert_eq!(searched().unwrap().2, 1);
}

#[tokio::test(start_paused = true)]
async fn few_connections_leave_at_a_time() {
    let connections = connections(limits(16));
    let mut entries: Vec<_> = (0..16).map(|_| connections.admit(peer(1)).unwrap()).collect();
    advance(FAST).await;

    entries.extend((0..2).map(|_| connections.admit(peer(1)).unwrap()));
    assert!(connections.admit(peer(1)).is_none());
    entries.retain(|entry| !is_told_to_go(entry));
    entries.extend((0..2).map(|_| connections.admit(peer(1)).unwrap()));
    assert!(connections.admit(peer(1)).is_none());
    assert_eq!(connections.len(), 18);
}
