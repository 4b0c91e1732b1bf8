//! The trace of a message, and the spans that are recorded in it.

mod messages;
mod sampler;
mod tracer;

use std::{fmt, str::FromStr};

use rand_core::Rng;

pub use self::{
    messages::{Messaging, TracedMessages},
    sampler::Sampler,
    tracer::{Attribute, OpenSpan, Span, SpanKind, Spans, Tracer},
};

/// The trace of a message. It goes with the message through all processes.
///
/// It is the value of a `traceparent` header (W3C Trace Context, version 00):
/// `00-<32 hex digits>-<16 hex digits>-<2 hex digits>`, in lower case. Neither id is all zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceParent(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent")]
pub struct InvalidTraceParent;

/// The flag that says that spans of the trace are recorded.
const SAMPLED: u8 = 1;

impl TraceParent {
    /// Starts a new trace that is not recorded, for a request without one.
    pub fn generate(rng: &mut impl Rng) -> Self {
        let trace = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64() | 1);
        Self::of(trace, rng.next_u64() | 1, 0)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of the trace, in hex digits.
    pub fn trace_id(&self) -> &str {
        &self.0[3..35]
    }

    /// The id of the span, in hex digits.
    pub fn span_id(&self) -> &str {
        &self.0[36..52]
    }

    /// The id of the trace as a number, which is never 0.
    pub fn trace_number(&self) -> u128 {
        u128::from_str_radix(self.trace_id(), 16).expect("a trace id is 32 hex digits")
    }

    /// The id of the span as a number, which is never 0.
    pub fn span_number(&self) -> u64 {
        u64::from_str_radix(self.span_id(), 16).expect("a span id is 16 hex digits")
    }

    /// Whether the sender may have recorded spans of the trace.
    pub fn is_sampled(&self) -> bool {
        self.flags() & SAMPLED != 0
    }

    fn flags(&self) -> u8 {
        u8::from_str_radix(&self.0[53..55], 16).expect("flags are two hex digits")
    }

    fn of(trace: u128, span: u64, flags: u8) -> Self {
        Self(format!("00-{trace:032x}-{span:016x}-{flags:02x}"))
    }

    /// Returns a recorded span of the same trace.
    fn child(&self, span: u64) -> Self {
        Self(format!("{}{span:016x}-{:02x}", &self.0[..36], self.flags() | SAMPLED))
    }

    /// Returns the same span, marked as not recorded.
    fn unsampled(&self) -> Self {
        Self(format!("{}{:02x}", &self.0[..53], self.flags() & !SAMPLED))
    }
}

impl FromStr for TraceParent {
    type Err = InvalidTraceParent;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut fields = text.split('-');
        let mut field = || fields.next().unwrap_or_default();
        let (version, trace, span, flags) = (field(), field(), field(), field());
        let id = |field: &str, length| is_hex(field, length) && field.bytes().any(|b| b != b'0');
        let (is_known, is_first) = (is_hex(version, 2) && version != "ff", version == "00");
        // A later version may have more fields. Those of version 00 are used, as the standard asks.
        let has_more = is_first && fields.next().is_some();
        if is_known && id(trace, 32) && id(span, 16) && is_hex(flags, 2) && !has_more {
            Ok(Self(if is_first { text.to_owned() } else { format!("00-{trace}-{span}-{flags}") }))
        } else {
            Err(InvalidTraceParent)
        }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_hex(field: &str, length: usize) -> bool {
    field.len() == length && field.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn only_valid_traceparents_parse() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        for later in ["00", "01", "fe-what"] {
            let (version, rest) = later.split_once('-').unwrap_or((later, ""));
            let more = if rest.is_empty() { String::new() } else { format!("-{rest}") };
            let text = format!("{version}{}{more}", &good[2..]);
            assert_eq!(text.parse::<TraceParent>().unwrap().as_str(), good, "{text}");
        }

        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01what",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what",
        ] {
            assert_eq!(bad.parse::<TraceParent>(), Err(InvalidTraceParent), "{bad}");
        }
    }

    #[test]
    fn a_generated_trace_is_valid() {
        let trace = TraceParent::generate(&mut StdRng::seed_from_u64(3));

        assert!(!trace.is_sampled());
        assert_eq!(trace.as_str().parse(), Ok(trace));
    }

    #[test]
    fn parts_are_those_of_the_text() {
        let trace: TraceParent =
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03".parse().unwrap();

        assert_eq!(trace.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(trace.span_id(), "b7ad6b7169203331");
        assert_eq!(trace.trace_number(), 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!(trace.span_number(), 0xb7ad_6b71_6920_3331);
        assert!(trace.is_sampled());
        let unsampled = trace.unsampled();
        assert_eq!(unsampled.as_str(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02");
        assert_eq!(
            unsampled.child(9).as_str(),
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000009-03"
        );
    }
}
