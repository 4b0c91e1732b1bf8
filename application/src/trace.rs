use std::{fmt, str::FromStr};

use rand_core::Rng;

/// The trace of a message. It connects the log lines of all processes.
///
/// It is the value of a `traceparent` header (W3C Trace Context, version 00):
/// `00-<32 hex digits>-<16 hex digits>-<2 hex digits>`, in lower case. Neither id is all zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceParent(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent of version 00")]
pub struct InvalidTraceParent;

impl TraceParent {
    /// Starts a new trace, for a request without one.
    pub fn generate(rng: &mut impl Rng) -> Self {
        let trace = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64() | 1);
        let span = rng.next_u64() | 1;
        Self(format!("00-{trace:032x}-{span:016x}-01"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TraceParent {
    type Err = InvalidTraceParent;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fields: Vec<&str> = text.split('-').collect();
        let [version, trace, span, flags] = fields[..] else { return Err(InvalidTraceParent) };
        let id = |field: &str, length| is_hex(field, length) && field.bytes().any(|b| b != b'0');
        if version == "00" && id(trace, 32) && id(span, 16) && is_hex(flags, 2) {
            Ok(Self(text.to_owned()))
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
    fn only_traceparents_of_version_00_parse() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(good.parse::<TraceParent>().unwrap().as_str(), good);

        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
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

        assert_eq!(trace.as_str().parse(), Ok(trace));
    }
}
