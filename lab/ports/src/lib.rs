//! Free TCP ports for the servers that tests and trials start.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    sync::{Mutex, PoisonError},
};

/// The first port that is given. All lie below the ports that Linux gives to outgoing connections
/// and to port 0: those may be taken between the search and the start of the server, or while a
/// server restarts. `scripts/services` takes its ports from above the last one.
const FIRST: u16 = 10_000;
/// Ports in a block.
const BLOCK: u16 = 200;
const BLOCKS: u16 = 100;

/// A row of ports that no other program takes from while this one lives.
#[derive(Debug)]
struct Block {
    next: u16,
    end: u16,
    /// The first port of the block, bound for UDP, whose ports are others than those of TCP.
    _reservation: UdpSocket,
}

impl Block {
    fn reserve() -> Option<Self> {
        (0..BLOCKS).map(|block| FIRST + block * BLOCK).find_map(|first| {
            let reservation = UdpSocket::bind((Ipv4Addr::LOCALHOST, first)).ok()?;
            Some(Self { next: first, end: first + BLOCK, _reservation: reservation })
        })
    }
}

/// Returns a TCP port that nothing listens at. This program gets it once, and no other program that
/// asks this function gets it before this one ends.
///
/// # Panics
///
/// Panics if no port is left.
pub fn free_port() -> u16 {
    static BLOCKS: Mutex<Vec<Block>> = Mutex::new(Vec::new());
    let mut blocks = BLOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        match blocks.last_mut() {
            Some(block) if block.next < block.end => {
                let port = block.next;
                block.next += 1;
                if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
                    return port;
                }
            }
            _ => blocks.push(Block::reserve().expect("a block of free ports is left")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn port_is_given_once_over_several_blocks() {
        let count = usize::from(BLOCK) + 10;

        let ports: HashSet<u16> = std::iter::repeat_with(free_port).take(count).collect();

        assert_eq!(ports.len(), count);
    }

    #[test]
    fn port_with_a_listener_is_not_given() {
        let next = free_port() + 1;
        let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, next));

        let ports: Vec<u16> = std::iter::repeat_with(free_port).take(10).collect();

        assert!(!ports.contains(&next));
    }

    #[test]
    fn reserved_block_is_not_reserved_again() {
        let [one, other] = [Block::reserve().unwrap(), Block::reserve().unwrap()];

        assert_ne!(one.next, other.next);
    }
}
