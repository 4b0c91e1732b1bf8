use super::TraceParent;

/// Decides which traces are recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// The part of the traces that are recorded, from 0 to 1.
    pub ratio: f64,
    /// Whether the sender of a trace decides: it is recorded here if the sender recorded it.
    pub follows_parent: bool,
}

impl Default for Sampler {
    fn default() -> Self {
        Self { ratio: 1.0, follows_parent: true }
    }
}

impl Sampler {
    /// Whether to record a trace that begins here.
    pub(super) fn samples_new(&self, trace_id: u128) -> bool {
        self.is_below(trace_id)
    }

    /// Whether to record a trace that came from elsewhere.
    pub(super) fn samples(&self, parent: &TraceParent) -> bool {
        if self.follows_parent {
            return parent.is_sampled();
        }
        self.is_below(parent.trace_number())
    }

    /// The rule of the OpenTelemetry SDKs, so that all processes choose the same traces.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "the low 64 bits count, and a ratio is from 0 to 1"
    )]
    fn is_below(&self, trace_id: u128) -> bool {
        const RANGE: u64 = 1 << 63;
        trace_id as u64 >> 1 < (self.ratio * RANGE as f64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

    fn samples(ratio: f64, follows_parent: bool, parent: &str) -> bool {
        Sampler { ratio, follows_parent }.samples(&parent.parse().unwrap())
    }

    #[test]
    fn the_sender_decides_only_if_the_sampler_follows_it() {
        assert!(samples(0.0, true, SAMPLED));
        assert!(!samples(1.0, true, UNSAMPLED));
        assert!(!samples(0.0, false, SAMPLED));
        assert!(samples(1.0, false, UNSAMPLED));
    }

    #[test]
    fn ratio_is_the_part_of_the_ids_that_are_sampled() {
        // The low 64 bits of this id are 0.5163 of their range.
        assert!(!samples(0.516, false, SAMPLED));
        assert!(samples(0.517, false, SAMPLED));

        let all = Sampler { ratio: 1.0, follows_parent: true };
        let none = Sampler { ratio: 0.0, follows_parent: true };
        for id in [1, u128::MAX] {
            assert!(all.samples_new(id));
            assert!(!none.samples_new(id));
        }
    }
}
