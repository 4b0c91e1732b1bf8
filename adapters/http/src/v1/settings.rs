use std::{collections::HashMap, sync::Arc, time::Duration};

use domain::{Code, CodeLength, Pacing, PhoneNumber, Region, SendLimits, Templates};

use crate::auth::ApiAuth;

/// What holds on `/v1`. Limits and pacing are told to clients here; the use cases hold to them.
#[derive(Debug, Clone)]
pub struct V1Settings {
    /// Whose numbers may be written as they are dialled there.
    pub default_region: Option<Region>,
    pub auth: ApiAuth,
    pub limits: SendLimits,
    /// Whether a start must name the end user's address.
    pub require_ip: bool,
    pub templates: Arc<Templates>,
    /// Of a verification that says none.
    pub code_length: CodeLength,
    /// Of a verification that says none.
    pub ttl: Duration,
    pub pacing: Pacing,
    pub test_numbers: HashMap<PhoneNumber, Code>,
    /// How long a request's body may take to arrive.
    pub body_timeout: Duration,
}
