use std::{fmt, net::IpAddr};

use domain::{ApiKeyId, CustomLimit};

use crate::{TraceParent, ports::AnswerClaim};

/// What a request says of its caller: what its sends are counted under, and the claim that it holds.
#[derive(Clone, Default)]
pub struct Caller {
    /// The address of the end user.
    pub ip: Option<IpAddr>,
    /// Values of the caller's own limits.
    pub custom: Vec<(CustomLimit, String)>,
    pub api_key: Option<ApiKeyId>,
    pub trace: Option<TraceParent>,
    /// The claim on the `Idempotency-Key` of the request, if it has one.
    pub claim: Option<AnswerClaim>,
}

/// Hides the address and the values of limits: they are personal.
impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("api_key", &self.api_key).finish_non_exhaustive()
    }
}
