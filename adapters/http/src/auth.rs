//! API keys in requests.

use std::{fmt, str::FromStr};

use application::{Authorize, AuthorizeError, ports::ApiKeys};
use axum::http::{HeaderMap, header::AUTHORIZATION};
use base64::{Engine, engine::general_purpose::STANDARD};
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

/// The password of the operator's page. It has 16 to 256 visible ASCII characters.
#[derive(Clone, PartialEq, Eq)]
pub struct OperatorPassword(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it must have 16 to 256 characters, visible ones of ASCII")]
pub struct InvalidToken;

impl FromStr for MetricsToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        checked(text).map(Self)
    }
}

impl FromStr for OperatorPassword {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        checked(text).map(Self)
    }
}

fn checked(text: &str) -> Result<String, InvalidToken> {
    let is_visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    let is_valid = is_visible && (16..=256).contains(&text.len());
    is_valid.then(|| text.to_owned()).ok_or(InvalidToken)
}

impl MetricsToken {
    /// Returns whether a request shows this token. Compares in constant time, except that the
    /// length of the token may become known.
    pub(crate) fn is_shown(&self, headers: &HeaderMap) -> bool {
        bearer(headers).is_some_and(|shown| self.0.as_bytes().ct_eq(shown.as_bytes()).into())
    }
}

impl OperatorPassword {
    /// Compares in constant time, except that the length of the password may become known.
    pub(crate) fn is(&self, shown: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(shown).into()
    }
}

/// Leaves out the token.
impl fmt::Debug for MetricsToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MetricsToken(…)")
    }
}

/// Leaves out the password.
impl fmt::Debug for OperatorPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OperatorPassword(…)")
    }
}

/// Returns the password of `Authorization: Basic`, if there is exactly one such header. The user
/// name does not matter.
pub(crate) fn basic_password(headers: &HeaderMap) -> Option<Vec<u8>> {
    let mut decoded = STANDARD.decode(authorization(headers, "basic")?).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some(decoded.split_off(colon + 1))
}

/// Returns the token of `Authorization: Bearer <token>`, if there is exactly one such header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    authorization(headers, "bearer")
}

/// Returns what follows the scheme in the only header `Authorization`.
fn authorization<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case(wanted).then(|| token.trim())
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
            assert_eq!(parse(bad), Err(InvalidToken), "{bad}");
        }
        assert!(!format!("{:?}", parse("0123456789abcdef")).contains("0123"));
    }

    #[test]
    fn password_is_what_follows_the_first_colon() {
        #[track_caller]
        fn check(values: &[&str], expected: Option<&str>) {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            assert_eq!(basic_password(&headers).as_deref(), expected.map(str::as_bytes));
        }
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));

        check(&[&basic("me:secret")], Some("secret"));
        check(&[&basic("me:a:b").replace("Basic", "basic")], Some("a:b"));
        check(&[&basic(":secret")], Some("secret"));
        check(&[&basic("me:")], Some(""));
        for bad in ["Basic", "Basic !", "Bearer bWU6YQ==", &basic("secret")] {
            check(&[bad], None);
        }
        check(&[], None);
        check(&[&basic("me:secret"), &basic("me:secret")], None);
    }

    #[test]
    fn password_of_the_operator_is_long_enough_and_not_shown() {
        let password: OperatorPassword = "0123456789abcdef".parse().unwrap();

        assert!(password.is(b"0123456789abcdef"));
        for wrong in ["", "0123456789abcdeF", "0123456789abcde", "0123456789abcdef0"] {
            assert!(!password.is(wrong.as_bytes()), "{wrong}");
        }
        assert_eq!("0123456789abcde".parse::<OperatorPassword>(), Err(InvalidToken));
        assert!(!format!("{password:?}").contains("0123"));
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
