use std::time::Duration;

use autometrics::autometrics;

use crate::ports::{Lease, PartitionLeases, StoreError};

/// Takes this consumer's share of the partitions, and gives up any more.
#[derive(Debug)]
pub struct SharePartitions<L> {
    leases: L,
    settings: ShareSettings,
}

/// Settings of [`SharePartitions`].
#[derive(Debug, Clone, Copy)]
pub struct ShareSettings {
    /// How long a consumer that crashed keeps its partitions.
    pub ttl: Duration,
}

/// The changes of one round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shared {
    /// Leases that this consumer now holds.
    pub taken: Vec<Lease>,
    /// Partitions to stop reading: another consumer owns them, or will take them.
    pub dropped: Vec<i32>,
    /// The number of living consumers that can have a partition.
    pub consumers: usize,
}

impl<L: PartitionLeases> SharePartitions<L> {
    pub fn new(leases: L, settings: ShareSettings) -> Self {
        Self { leases, settings }
    }

    /// Renews `held`, then takes or gives up partitions until this consumer has its fair share: the
    /// number of partitions divided by the number of living consumers, rounded up.
    ///
    /// `known` are the partitions of the topic, or empty if they are not known now. With `only_renew`,
    /// no partition is taken: after an outage of the database every lease looks abandoned, and its
    /// owner needs a moment to renew it.
    #[autometrics(struct_name = "SharePartitions")]
    pub async fn execute(
        &self,
        held: &[Lease],
        known: &[i32],
        only_renew: bool,
    ) -> Result<Shared, StoreError> {
        if !known.is_empty() {
            self.leases.register(known).await?;
        }
        let renewed = self.leases.renew(held, self.settings.ttl).await?;
        let fair = renewed.partitions.div_ceil(renewed.members.max(1));

        let (ours, lost): (Vec<i32>, Vec<i32>) = held
            .iter()
            .map(|lease| lease.partition)
            .partition(|partition| renewed.held.contains(partition));
        let keeping = ours.len().min(fair);
        let consumers = renewed.members.min(renewed.partitions);
        let mut shared = Shared { taken: Vec::new(), dropped: lost, consumers };
        shared.dropped.extend(&ours[keeping..]);
        if keeping < fair && !only_renew {
            shared.taken = self.leases.acquire(fair - keeping, self.settings.ttl).await?;
        }
        Ok(shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{MockPartitionLeases, Renewed};

    fn lease(partition: i32) -> Lease {
        Lease {
            partition,
            epoch: 1,
            next_offset: Some(0),
            added_later: false,
            first_at: None,
            seen: None,
        }
    }

    fn leases(held: Vec<i32>, members: usize) -> MockPartitionLeases {
        let mut leases = MockPartitionLeases::new();
        leases
            .expect_renew()
            .returning(move |_, _| Ok(Renewed { held: held.clone(), members, partitions: 4 }));
        leases
    }

    fn share(leases: MockPartitionLeases) -> SharePartitions<MockPartitionLeases> {
        SharePartitions::new(leases, ShareSettings { ttl: Duration::from_secs(10) })
    }

    #[tokio::test]
    async fn a_single_consumer_takes_all_partitions() {
        let mut leases = leases(vec![], 1);
        leases
            .expect_acquire()
            .withf(|limit, _| *limit == 4)
            .once()
            .returning(|_, _| Ok((0..4).map(lease).collect()));

        let shared = share(leases).execute(&[], &[], false).await.unwrap();

        assert_eq!(shared.taken.len(), 4);
    }

    #[tokio::test]
    async fn partitions_above_the_fair_share_are_given_up() {
        let share = share(leases(vec![0, 1, 2, 3], 3));
        let held: Vec<_> = (0..4).map(lease).collect();

        let shared = share.execute(&held, &[], false).await.unwrap();

        assert_eq!(shared, Shared { taken: vec![], dropped: vec![2, 3], consumers: 3 });
    }

    #[tokio::test]
    async fn a_partition_that_another_consumer_took_is_dropped() {
        let mut leases = leases(vec![1], 2);
        leases.expect_acquire().returning(|_, _| Ok(vec![]));

        let shared = share(leases).execute(&[lease(0), lease(1)], &[], false).await.unwrap();

        assert_eq!(shared.dropped, [0]);
    }

    #[tokio::test]
    async fn no_partition_is_taken_with_only_renew() {
        let mut leases = leases(vec![], 1);
        leases.expect_acquire().never();

        let shared = share(leases).execute(&[], &[], true).await.unwrap();

        assert_eq!(shared, Shared { consumers: 1, ..Shared::default() });
    }

    #[tokio::test]
    async fn consumers_that_get_no_partition_are_not_counted() {
        let mut leases = leases(vec![], 6);
        leases.expect_acquire().returning(|_, _| Ok(vec![]));

        let shared = share(leases).execute(&[], &[], false).await.unwrap();

        assert_eq!(shared.consumers, 4);
    }

    #[tokio::test]
    async fn the_partitions_of_the_topic_are_registered() {
        let mut leases = leases(vec![], 1);
        leases.expect_register().withf(|known| known == [0, 1]).once().returning(|_| Ok(()));
        leases.expect_acquire().returning(|_, _| Ok(vec![]));

        share(leases).execute(&[], &[0, 1], false).await.unwrap();
    }
}
