//! Who asks, and whether it may.

use application::{Authorize, AuthorizeError, ports::ApiKeys};
use axum::http::{HeaderMap, header::AUTHORIZATION};
use domain::{ApiKeyId, Scope};

/// Who must show an API key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ApiAuth {
    /// Nobody.
    #[default]
    None,
    /// Callers of `/v1`.
    V1,
    /// Callers of `/api` too.
    All,
}

/// Whose key `headers` show, if it is good for `scope`.
pub(crate) async fn caller<K: ApiKeys>(
    keys: &Authorize<K>,
    headers: &HeaderMap,
    scope: Scope,
) -> Result<ApiKeyId, AuthorizeError> {
    let text = bearer(headers).ok_or(AuthorizeError::Unknown)?;
    keys.execute(text, scope).await
}

/// The token of `Authorization: Bearer <token>`, if there is one such header and no other.
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
    fn a_token_stands_alone_in_one_header() {
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
