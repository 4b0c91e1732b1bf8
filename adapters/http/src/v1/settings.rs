use std::{collections::HashMap, sync::Arc, time::Duration};

use domain::{Code, CodeLength, Pacing, PhoneNumber, Region, SendLimits, Templates};

use crate::auth::ApiAuth;

/// The settings of `/v1`.
///
/// The use cases enforce the limits and the pacing. `/v1` reports them to clients.
#[derive(Debug, Clone)]
pub struct V1Settings {
    /// The region in whose national format a number may be written.
    pub default_region: Option<Region>,
    pub auth: ApiAuth,
    pub limits: SendLimits,
    /// Whether a start must give the end user's IP address.
    pub require_ip: bool,
    pub templates: Arc<Templates>,
    /// Used if a start does not ask for a length.
    pub code_length: CodeLength,
    /// Used if a start does not ask for a time to live.
    pub ttl: Duration,
    pub pacing: Pacing,
    pub test_numbers: HashMap<PhoneNumber, Code>,
    /// How long a request's body may take to arrive.
    pub body_timeout: Duration,
}

impl V1Settings {
    /// Returns the test number and its code, if `phone` is one.
    pub(super) fn test_number(&self, phone: Option<PhoneNumber>) -> Option<(&PhoneNumber, &Code)> {
        self.test_numbers.get_key_value(&phone?)
    }
}
