//! API keys in requests.

use application::{Authorize, AuthorizeError, ports::ApiKeys};
use axum::http::{HeaderMap, header::AUTHORIZATION};
use domain::{ApiKeyId, Scope};

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
