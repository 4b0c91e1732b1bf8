//! API keys in requests.

use std::{fmt, str::FromStr};

use application::{Authorize, AuthorizeError, ports::ApiKeys};
use axum::http::{HeaderMap, header::AUTHORIZATION};
use domain::{ApiKeyId, Scope};
use subtle::ConstantTimeEq;

/// Which callers need an API key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ApiAuth {
    /// No caller.
    #[default]
    None,
    /// Callers of `/v1`.
    V1,
    /// Callers of `/v1` and `/api`.
    All,
}

/// Returns the API key of a request, if the key has the scope.
pub(crate) async fn caller<K: ApiKeys>(
    keys: &Authorize<K>,
    headers: &HeaderMap,
    scope: Scope,
) -> Result<ApiKeyId, AuthorizeError> {
    let text = bearer(headers).ok_or(AuthorizeError::Unknown)?;
    keys.execute(text, scope).await
}

/// The token that a caller of `/metrics` must show. It has 16 to 256 visible ASCII characters.
#[derive(Clone, PartialEq, Eq)]
pub struct MetricsToken(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it must have 16 to 256 characters, visible ones of ASCII")]
pub struct InvalidMetricsToken;

impl FromStr for MetricsToken {
    type Err = InvalidMetricsToken;

    fn from_str(text: &str) -> Result<Self, InvalidMetricsToken> {
        let is_visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        let is_valid = is_visible && (16..=256).contains(&text.len());
        is_valid.then(|| Self(text.to_owned())).ok_or(InvalidMetricsToken)
    }
}

impl MetricsToken {
    /// Returns whether a request shows this token. Compares in constant time, except that the
    /// length of the token may become known.
    pub(crate) fn is_shown(&self, headers: &HeaderMap) -> bool {
        bearer(headers).is_some_and(|shown| self.0.as_bytes().ct_eq(shown.as_bytes()).into())
    }
}

/// Leaves out the token.
impl fmt::Debug for MetricsToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MetricsToken(…)")
    }
}

/// Returns the token of `Authorization: Bearer <token>`, if there is exactly one such header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_of_metrics_is_long_enough_and_fits_into_a_header() {
        let parse = |text: &str| text.parse::<MetricsToken>();

        for good in ["0123456789abcdef", &"~".repeat(256)] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in
            ["", "0123456789abcde", "0123456789 abcdef", "0123456789abcdéf", &"a".repeat(257)]
        {
            assert_eq!(parse(bad), Err(InvalidMetricsToken), "{bad}");
        }
        assert!(!format!("{:?}", parse("0123456789abcdef")).contains("0123"));
    }

    #[test]
    fn token_is_read_from_a_single_bearer_header() {
        #[track_caller]
        fn check(values: &[&str], expected: Option<&str>) {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            assert_eq!(bearer(&headers), expected);
        }

        check(&["Bearer msk_1"], Some("msk_1"));
        check(&["bearer  msk_1 "], Some("msk_1"));
        check(&[], None);
        check(&["msk_1"], None);
        check(&["Basic msk_1"], None);
        check(&["Bearermsk_1"], None);
        check(&["Bearer msk_1", "Bearer msk_1"], None);
    }
}
