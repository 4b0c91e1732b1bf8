//! The answer to a request that exceeds a limit: `Retry-After`, and `RateLimit` and
//! `RateLimit-Policy` as in draft-ietf-httpapi-ratelimit-headers-11.

use application::{Caller, ports::Violation};
use axum::http::{HeaderName, HeaderValue, header::RETRY_AFTER};
use domain::{Policy, SendLimits};
use serde_json::json;

use super::problem::{Problem, ProblemKind};
use crate::error::{retry_after, seconds};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Returns the policies that may count a send of this caller.
pub(super) fn send_policies(limits: &SendLimits, caller: &Caller) -> Vec<Policy> {
    let ip = caller.ip.map(|_| limits.ip.policies("ip"));
    let key = caller.api_key.map(|_| limits.key.policies("key"));
    let custom = caller.custom.iter().filter_map(|(name, _)| {
        limits.custom.get(name).map(|windows| windows.policies(name.as_str()))
    });
    let always = [
        limits.phone.policies("phone"),
        limits.prefix.policies("prefix"),
        limits.region.policies("region"),
    ];
    always.into_iter().chain(ip).chain(key).chain(custom).flatten().collect()
}

/// Returns the problem for violated limits.
///
/// `policies` are all that counted the request. Violated policies are added if they are missing.
pub(super) fn exceeded(violations: &[Violation], mut policies: Vec<Policy>) -> Problem {
    for Violation { policy, .. } in violations {
        if !policies.iter().any(|known| known.name == policy.name) {
            policies.push(policy.clone());
        }
    }
    let policies = policies.iter().map(|Policy { name, window }| {
        format!("\"{}\";q={};w={}", name.as_str(), window.quota, seconds(window.period))
    });
    let states = violations.iter().map(|Violation { policy, retry_after }| {
        format!("\"{}\";r=0;t={}", policy.name.as_str(), seconds(*retry_after))
    });
    let names: Vec<&str> = violations.iter().map(|it| it.policy.name.as_str()).collect();
    let retry_after = retry_after(violations);
    Problem::new(ProblemKind::QuotaExceeded)
        .with("violated-policies", json!(names))
        .with("retry_after", json!(retry_after))
        .with_header(RETRY_AFTER, HeaderValue::from(retry_after))
        .with_header(RATE_LIMIT_POLICY, list(policies))
        .with_header(RATE_LIMIT, list(states))
}

fn list(items: impl Iterator<Item = String>) -> HeaderValue {
    let items: Vec<String> = items.collect();
    HeaderValue::try_from(items.join(", ")).expect("names of policies are ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn send_policies_are_the_limits_that_apply_to_the_caller() {
        let device = "device".parse::<domain::CustomLimit>().unwrap();
        let off = "off".parse::<domain::CustomLimit>().unwrap();
        let limits = SendLimits {
            prefix: "100/1m".parse().unwrap(),
            key: "1000/1d".parse().unwrap(),
            custom: [(device.clone(), "3/1h".parse().unwrap())].into(),
            ..SendLimits::default()
        };
        let names = |caller: &Caller| -> Vec<String> {
            let policies = send_policies(&limits, caller).into_iter();
            policies.map(|policy| policy.name.as_str().to_owned()).collect()
        };

        assert_eq!(names(&Caller::default()), ["phone-1h", "phone-1d", "prefix-1m"]);
        let known = Caller {
            ip: "203.0.113.7".parse().ok(),
            custom: vec![(device, "a1".to_owned()), (off, "b2".to_owned())],
            api_key: "6f2c1a529d3f4f0e8a550d2f6f3b9c00".parse().ok(),
            ..Caller::default()
        };
        let expected =
            ["phone-1h", "phone-1d", "prefix-1m", "ip-1h", "ip-1d", "key-1d", "device-1h"];
        assert_eq!(names(&known), expected);
    }
}
