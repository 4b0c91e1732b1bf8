//! Decides who may see the operator's page, and restricts what browsers do with it.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN, REFERRER_POLICY,
            RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
        },
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use tokio::time::Instant;

use super::html::{SCRIPT, STYLE};
use crate::{
    OperatorPassword,
    auth::basic_password,
    page::hash_of,
    server::{Caller, NoCredentials, Peer},
};

/// The wrong passwords that a caller may send within [`PERIOD`]. After that, no password of the
/// caller is compared until the period is over.
const WRONG: u32 = 10;
const PERIOD: Duration = Duration::from_secs(60);

/// The maximum number of callers with wrong passwords that are remembered. At the limit, the
/// password of no further caller is compared.
const CALLERS: usize = 1_024;

/// The password, and the callers that sent wrong ones.
#[derive(Debug)]
pub(super) struct Access {
    password: OperatorPassword,
    wrong: Mutex<HashMap<Peer, Wrong>>,
}

/// The wrong passwords of a caller.
#[derive(Debug, Clone, Copy)]
struct Wrong {
    count: u32,
    since: Instant,
}

/// The reason why a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// No password was shown. A browser asks for it.
    NoPassword,
    WrongPassword,
    /// The caller has sent too many wrong passwords.
    TooManyWrong,
    /// The request may come from another site.
    ForeignPage,
}

/// Serves a request with the password, and adds the headers of the page to each answer.
pub(super) async fn guard(
    State(access): State<Arc<Access>>,
    request: Request,
    next: Next,
) -> Response {
    let mut answer = match access.admit(&request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    answer.headers_mut().extend(HEADERS.clone());
    answer
}

impl Access {
    pub(super) fn new(password: OperatorPassword) -> Self {
        Self { password, wrong: Mutex::default() }
    }

    fn admit(&self, request: &Request) -> Result<(), Refusal> {
        // A test without a server has no caller.
        let caller = Caller::of(request).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let shown = basic_password(request.headers()).ok_or(Refusal::NoPassword)?;
        self.compare(caller.into(), &shown)?;
        let reads = [Method::GET, Method::HEAD].contains(request.method());
        if reads || is_of_this_page(request.headers()) { Ok(()) } else { Err(Refusal::ForeignPage) }
    }

    /// Compares and counts under one lock, so that concurrent guesses are counted, too.
    fn compare(&self, caller: Peer, shown: &[u8]) -> Result<(), Refusal> {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.retain(|_, it| it.since.elapsed() < PERIOD);
        let before = wrong.get(&caller).map_or(0, |it| it.count);
        if before >= WRONG || (before == 0 && wrong.len() >= CALLERS) {
            return Err(Refusal::TooManyWrong);
        }
        if self.password.is(shown) {
            return Ok(());
        }
        let first = Wrong { count: 0, since: Instant::now() };
        let entry = wrong.entry(caller).or_insert(first);
        entry.count += 1;
        if entry.count == WRONG {
            tracing::warn!(
                client.address = %caller,
                "{WRONG} wrong passwords for the operator's page came from this address; no \
                 more passwords from it are checked for the rest of the minute"
            );
        }
        Err(Refusal::WrongPassword)
    }
}

/// Returns whether a form of this page sent the request. Browsers report where a request comes
/// from in `Sec-Fetch-Site`, except over HTTP to another machine, and in `Origin`.
fn is_of_this_page(headers: &HeaderMap) -> bool {
    static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
    if let Some(site) = headers.get(&SEC_FETCH_SITE) {
        return site == "same-origin";
    }
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let origin = text(&ORIGIN).and_then(|origin| origin.split_once("://")).map(|it| it.1);
    origin.is_some_and(|origin| text(&HOST).is_some_and(|host| host.eq_ignore_ascii_case(origin)))
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (code, text) = match self {
            Self::NoPassword | Self::WrongPassword => {
                (StatusCode::UNAUTHORIZED, "the password in OPERATOR_PASSWORD is required\n")
            }
            Self::TooManyWrong => {
                (StatusCode::TOO_MANY_REQUESTS, "too many wrong passwords: wait a minute\n")
            }
            Self::ForeignPage => {
                (StatusCode::FORBIDDEN, "the request does not come from a form of this page\n")
            }
        };
        let mut answer =
            (code, [(CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response();
        let headers = answer.headers_mut();
        match self {
            Self::NoPassword | Self::WrongPassword => {
                let asks = "Basic realm=\"messager operator\", charset=\"UTF-8\"";
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(asks));
            }
            Self::TooManyWrong => {
                headers.insert(RETRY_AFTER, HeaderValue::from(PERIOD.as_secs()));
            }
            Self::ForeignPage => {}
        }
        if self == Self::NoPassword {
            // A browser begins every visit without a password, so the log does not warn of it.
            answer.extensions_mut().insert(NoCredentials);
        }
        answer
    }
}

/// The page may run only its own script and style, and may connect only to this server. It may not
/// be cached or framed.
static HEADERS: LazyLock<HeaderMap> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; connect-src 'self'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        hash_of(SCRIPT),
        hash_of(STYLE)
    );
    let policy = HeaderValue::try_from(policy).expect("a policy is ASCII");
    let headers: [(HeaderName, HeaderValue); 6] = [
        (CONTENT_SECURITY_POLICY, policy),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        // Not `no-referrer`: with that, a browser sends `Origin: null` with a form.
        (REFERRER_POLICY, HeaderValue::from_static("same-origin")),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            HeaderValue::from_static("same-origin"),
        ),
    ];
    HeaderMap::from_iter(headers)
});

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::testing::Log;

    const PASSWORD: &str = "operator-password-1";

    fn access() -> Access {
        Access::new(PASSWORD.parse().unwrap())
    }

    fn peer(last: u8) -> Peer {
        IpAddr::from([10, 0, 0, last]).into()
    }

    #[tokio::test(start_paused = true)]
    async fn caller_with_ten_wrong_passwords_waits_and_others_do_not() {
        let access = access();
        for _ in 0..WRONG {
            assert_eq!(access.compare(peer(1), b"wrong"), Err(Refusal::WrongPassword));
        }

        assert_eq!(access.compare(peer(1), PASSWORD.as_bytes()), Err(Refusal::TooManyWrong));
        assert_eq!(access.compare(peer(2), PASSWORD.as_bytes()), Ok(()));

        advance(PERIOD).await;
        assert_eq!(access.compare(peer(1), PASSWORD.as_bytes()), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn right_password_allows_no_further_guesses() {
        let access = access();
        for _ in 1..WRONG {
            let _ = access.compare(peer(1), b"wrong");
        }
        assert_eq!(access.compare(peer(1), PASSWORD.as_bytes()), Ok(()));

        assert_eq!(access.compare(peer(1), b"wrong"), Err(Refusal::WrongPassword));
        assert_eq!(access.compare(peer(1), b"wrong"), Err(Refusal::TooManyWrong));
    }

    #[tokio::test(start_paused = true)]
    async fn log_warns_once_of_a_caller_with_ten_wrong_passwords() {
        let (log, _guard) = Log::capture();
        let access = access();
        let warnings = || log.text().matches("wrong passwords for the operator's page").count();

        for _ in 1..WRONG {
            let _ = access.compare(peer(1), b"wrong");
        }
        assert_eq!(warnings(), 0);
        for _ in 0..WRONG {
            let _ = access.compare(peer(1), b"wrong");
        }
        assert_eq!(warnings(), 1);
        assert!(log.text().contains("client.address=10.0.0.1"), "{}", log.text());
        assert!(!log.text().contains("operator-password"), "{}", log.text());

        advance(PERIOD).await;
        for _ in 0..WRONG {
            let _ = access.compare(peer(1), b"wrong");
        }
        assert_eq!(warnings(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_for_callers_with_wrong_passwords_is_bounded() {
        let access = access();
        for number in 0..2 * CALLERS {
            let address = IpAddr::from(u32::try_from(number).unwrap().to_be_bytes());
            let _ = access.compare(address.into(), b"wrong");
        }

        assert_eq!(access.wrong.lock().unwrap().len(), CALLERS);
        let new = access.compare(IpAddr::from([10, 0, 0, 1]).into(), PASSWORD.as_bytes());
        assert_eq!(new, Err(Refusal::TooManyWrong));
    }

    #[test]
    fn request_is_of_this_page_if_the_browser_says_so() {
        #[track_caller]
        fn check(headers: &[(&str, &str)], expected: bool) {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
            }
            assert_eq!(is_of_this_page(&map), expected, "{headers:?}");
        }
        let (host, own) = (("host", "sms.example:8082"), ("origin", "http://sms.example:8082"));

        check(&[host, own], true);
        check(&[host, ("origin", "https://SMS.example:8082")], true);
        check(&[host, ("sec-fetch-site", "same-origin")], true);
        check(&[host, own, ("sec-fetch-site", "cross-site")], false);
        check(&[host, own, ("sec-fetch-site", "same-site")], false);
        check(&[host, own, ("sec-fetch-site", "none")], false);
        for bad in ["null", "http://sms.example", "http://evil.example:8082", "sms.example:8082"] {
            check(&[host, ("origin", bad)], false);
        }
        check(&[host], false);
        check(&[own], false);
    }
}
