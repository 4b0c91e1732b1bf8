//! The hosts of PostgreSQL, and which of them is used.

use std::{
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
};

/// An address of PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresHost {
    /// A name, an address, or the folder of a local socket.
    pub name: String,
    pub port: u16,
}

impl fmt::Display for PostgresHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.port)
    }
}

/// The hosts in the order of the settings. All connections of a pool go to the current one.
#[derive(Debug)]
pub(crate) struct Hosts {
    all: Vec<PostgresHost>,
    current: AtomicUsize,
    /// The host that the latest session was opened at.
    used: AtomicUsize,
}

impl Hosts {
    /// Begins with the first of `all`, which must not be empty.
    pub(crate) fn new(all: Vec<PostgresHost>) -> Self {
        Self { all, current: AtomicUsize::new(0), used: AtomicUsize::new(0) }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Returns the current host, and its number.
    pub(super) fn current(&self) -> (usize, &PostgresHost) {
        let index = self.current.load(Ordering::Relaxed);
        (index, &self.all[index])
    }

    pub(super) fn at(&self, index: usize) -> &PostgresHost {
        &self.all[index]
    }

    /// Makes the host behind this one the current one, unless another caller has done so already.
    pub(super) fn pass_over(&self, index: usize) {
        let next = (index + 1) % self.all.len();
        // A failure means that the current host is another one now.
        let _ = self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Notes that a session was opened at this host. Returns whether the one before was opened at
    /// another host.
    pub(super) fn note_used(&self, index: usize) -> bool {
        self.used.swap(index, Ordering::Relaxed) != index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_tried_in_turn_and_two_failures_at_one_host_count_once() {
        let host = |name: &str| PostgresHost { name: name.to_owned(), port: 5432 };
        let hosts = Hosts::new(vec![host("a"), host("b"), host("c")]);
        assert_eq!(hosts.current().1.to_string(), "a:5432");

        hosts.pass_over(0);
        hosts.pass_over(0);
        assert_eq!(hosts.current().1.name, "b");
        assert!(hosts.note_used(1) && !hosts.note_used(1));

        hosts.pass_over(1);
        hosts.pass_over(2);
        assert_eq!(hosts.current(), (0, &host("a")));
    }
}
