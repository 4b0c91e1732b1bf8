use std::time::Duration;

use autometrics::autometrics;

use crate::ports::{Lease, PartitionLeases, StoreError};

/// Takes this consumer's share of the partitions, and gives up what is more than that.
#[derive(Debug)]
pub struct SharePartitions<L> {
    leases: L,
    settings: ShareSettings,
}

#[derive(Debug, Clone, Copy)]
pub struct ShareSettings {
    /// How long a consumer that died keeps its partitions.
    pub ttl: Duration,
}

/// What one round changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shared {
    /// Ours from now on.
    pub taken: Vec<Lease>,
    /// To be let go of: another consumer has them already, or is to have them.
    pub dropped: Vec<i32>,
}

impl<L: PartitionLeases> SharePartitions<L> {
    pub fn new(leases: L, settings: ShareSettings) -> Self {
        Self { leases, settings }
    }

    /// Renews `held`, then takes or gives up partitions until this consumer has its fair share:
    /// the partitions divided by the living consumers, rounded up.
    ///
    /// `known` are the partitions that the topic has, empty if that is not known now. With
    /// `only_renew`, nothing new is taken: after the database was out of reach every lease looks
    /// abandoned, and its owner deserves a moment to come back.
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
        let mut shared = Shared { taken: Vec::new(), dropped: lost };
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
    async fn alone_takes_everything() {
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
    async fn gives_up_what_is_more_than_its_share() {
        let share = share(leases(vec![0, 1, 2, 3], 3));
        let held: Vec<_> = (0..4).map(lease).collect();

        let shared = share.execute(&held, &[], false).await.unwrap();

        assert_eq!(shared, Shared { taken: vec![], dropped: vec![2, 3] });
    }

    #[tokio::test]
    async fn drops_what_another_consumer_took() {
        let mut leases = leases(vec![1], 2);
        leases.expect_acquire().returning(|_, _| Ok(vec![]));

        let shared = share(leases).execute(&[lease(0), lease(1)], &[], false).await.unwrap();

        assert_eq!(shared.dropped, [0]);
    }

    #[tokio::test]
    async fn takes_nothing_when_told_only_to_renew() {
        let mut leases = leases(vec![], 1);
        leases.expect_acquire().never();

        let shared = share(leases).execute(&[], &[], true).await.unwrap();

        assert_eq!(shared, Shared::default());
    }

    #[tokio::test]
    async fn makes_the_partitions_of_the_topic_known() {
        let mut leases = leases(vec![], 1);
        leases.expect_register().withf(|known| known == [0, 1]).once().returning(|_| Ok(()));
        leases.expect_acquire().returning(|_, _| Ok(vec![]));

        share(leases).execute(&[], &[0, 1], false).await.unwrap();
    }
}
