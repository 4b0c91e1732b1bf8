use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use autometrics::autometrics;
use domain::{Comparison, FACTOR_PAUSE, Factor, HealthCounts, Region, RegionalGateway};

use super::RegionOf;
use crate::ports::{
    FactorChange, GatewayHealth, Measured, Minute, SampledMessage, StoreError, StoredFactor,
};

/// Measures what becomes of messages, and gives fewer of them to a gateway that does worse than the
/// others of a region.
pub struct JudgeGateways<H> {
    health: H,
    region: RegionOf,
}

/// The result of a round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judged {
    pub measured: Vec<Measured>,
    pub changed: Vec<FactorChange>,
}

/// Long enough for a receipt and a check after the last message of a minute.
const AFTER: Duration = Duration::from_secs(180);
/// A code that arrives later has been asked for again.
const IN_TIME: Duration = Duration::from_secs(60);
/// How many messages of a minute are looked at.
const LIMIT: u32 = 5_000;

impl<H> JudgeGateways<H> {
    /// The minutes that a gateway is judged by.
    pub const PERIOD: Duration = Duration::from_secs(1_800);
    /// The period whose end includes the latest minute that can have been measured.
    pub const LOOK_BACK: Duration = Self::PERIOD.saturating_add(AFTER);
}

impl<H: GatewayHealth> JudgeGateways<H> {
    /// `region` is that of the router, so that both mean the same numbers.
    pub fn new(health: H, region: RegionOf) -> Self {
        Self { health, region }
    }

    /// Counts what became of the messages of one minute, if no process has claimed it, and changes the
    /// factors of gateways, if `moves`. A crash after the claim loses the counts of that minute.
    #[autometrics(struct_name = "JudgeGateways")]
    pub async fn execute(&self, moves: bool) -> Result<Judged, StoreError> {
        let Some(minute) = self.health.claim(AFTER).await? else { return Ok(Judged::default()) };
        let messages = self.health.sample(minute, IN_TIME, LIMIT).await?;
        let measured = self.count(minute, &messages);
        if !measured.is_empty() {
            self.health.record(&measured).await?;
        }
        let changed = if moves { self.judge().await? } else { Vec::new() };
        Ok(Judged { measured, changed })
    }

    fn count(&self, minute: Minute, messages: &[SampledMessage]) -> Vec<Measured> {
        let mut counts: BTreeMap<RegionalGateway, HealthCounts> = BTreeMap::new();
        for SampledMessage { gateway, phone, reported, in_time, approved } in messages {
            let of = RegionalGateway { gateway: gateway.clone(), region: (self.region)(phone) };
            *counts.entry(of).or_default() += HealthCounts {
                sent: 1,
                reported: u32::from(*reported),
                in_time: u32::from(*in_time),
                approved: u32::from(*approved),
            };
        }
        counts.into_iter().map(|(of, counts)| Measured { minute, of, counts }).collect()
    }

    async fn judge(&self) -> Result<Vec<FactorChange>, StoreError> {
        let measured = self.health.measured(Self::LOOK_BACK).await?;
        let factors = self.health.factors().await?;
        let mut changed = Vec::new();
        for judgement in judge(&measured, &factors) {
            if self.health.change(&judgement.change, FACTOR_PAUSE).await? {
                judgement.log();
                changed.push(judgement.change);
            }
        }
        Ok(changed)
    }
}

/// A change of a factor, and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Judgement {
    change: FactorChange,
    comparison: Comparison,
    own: HealthCounts,
    /// The sum over the other gateways.
    others: HealthCounts,
}

/// Decides how factors change.
///
/// A gateway is compared with the other gateways of a region by the minutes since its factor changed, so
/// that one bad time does not count twice.
fn judge(measured: &[Measured], factors: &[StoredFactor]) -> Vec<Judgement> {
    let factor_of: BTreeMap<_, _> = factors.iter().map(|stored| (&stored.of, stored)).collect();
    let known = measured.iter().map(|it| &it.of).chain(factors.iter().map(|it| &it.of));
    let known: BTreeSet<&RegionalGateway> = known.collect();
    let judge = |of: &RegionalGateway| {
        let stored = factor_of.get(of);
        let since = stored.map_or(Minute(0), |it| it.since);
        let mut counts = counts_of_region(measured, of, since);
        let own = counts.remove(of).unwrap_or_default();
        let others: Vec<HealthCounts> = counts.into_values().collect();
        let comparison = own.compare(&others);
        let from = stored.map_or(Factor::FULL, |it| it.factor);
        let to = from.after(comparison, stored.map(|it| it.age));
        let change = FactorChange { of: of.clone(), from, to };
        let others = others.iter().sum();
        (from != to).then_some(Judgement { change, comparison, own, others })
    };
    known.into_iter().filter_map(judge).collect()
}

/// Returns the counts of all gateways in the region of `of`.
fn counts_of_region<'a>(
    measured: &'a [Measured],
    of: &RegionalGateway,
    since: Minute,
) -> BTreeMap<&'a RegionalGateway, HealthCounts> {
    let mut counts: BTreeMap<_, HealthCounts> = BTreeMap::new();
    for it in measured.iter().filter(|it| it.of.region == of.region && it.minute >= since) {
        *counts.entry(&it.of).or_default() += it.counts;
    }
    counts
}

impl Judgement {
    fn log(&self) {
        let FactorChange { of: RegionalGateway { gateway, region }, from, to } = &self.change;
        let region = region.as_ref().map(Region::as_str);
        let Self { own, others, comparison, .. } = self;
        let lacks = match comparison {
            Comparison::Worse(lack) => Some(lack.as_str()),
            Comparison::NotWorse | Comparison::Unknown => None,
        };
        let words = if to < from {
            "the gateway does worse than the others in this region and gets fewer of its messages; ask the provider"
        } else {
            "the gateway gets more of its messages in this region again"
        };
        tracing::warn!(
            %gateway,
            region,
            lacks,
            from = from.percent(),
            to = to.percent(),
            sent = own.sent,
            reported = own.reported,
            in_time = own.in_time,
            approved = own.approved,
            others.sent,
            others.reported,
            others.in_time,
            others.approved,
            "{words}"
        );
    }
}

impl<H: fmt::Debug> fmt::Debug for JudgeGateways<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JudgeGateways").field("health", &self.health).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
