//! The pieces that requests to providers are made of.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE},
    uri::{Authority, PathAndQuery, Scheme},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use crate::client::has_good_port;

/// All but the unreserved characters of RFC 3986 §2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The base URL of a provider: scheme, host, port and perhaps the beginning of the path.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct BaseUrl {
    scheme: Scheme,
    authority: Authority,
    /// Without a slash at its end.
    path: String,
}

impl BaseUrl {
    /// Parses a URL with `http://` or `https://` and a host, without credentials and query.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let parts = text.parse::<Uri>().ok()?.into_parts();
        let scheme = parts.scheme.filter(|it| [Scheme::HTTP, Scheme::HTTPS].contains(it))?;
        let authority = parts.authority?;
        let is_good = !authority.host().is_empty()
            && !authority.as_str().contains('@')
            && has_good_port(&authority);
        let path = parts.path_and_query.unwrap_or(PathAndQuery::from_static("/"));
        if !is_good || path.query().is_some() {
            return None;
        }
        Some(Self { scheme, authority, path: path.path().trim_end_matches('/').to_owned() })
    }

    /// Returns the URL of a path, which begins with a slash and is percent-encoded.
    ///
    /// A path from a text that is not a constant must be encoded with [`encoded`].
    pub(crate) fn at(&self, path: &str) -> Uri {
        let whole = format!("{}{path}", self.path);
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(whole)
            .build()
            .expect("the parts are checked, and the path is encoded")
    }

    /// Returns the URL of a path with a query.
    pub(crate) fn with_query(&self, path: &str, pairs: &[(&str, &str)]) -> Uri {
        self.at(&format!("{path}?{}", form(pairs)))
    }

    /// Returns the host and the port, if it has one.
    pub(crate) fn authority(&self) -> &str {
        self.authority.as_str()
    }
}

/// Leaves out the path, which may contain a key.
impl fmt::Debug for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

/// Percent-encodes a text for a segment of a path, or for a value of a query.
pub(crate) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Encodes pairs as `application/x-www-form-urlencoded`, for a body or a query.
pub(crate) fn form(pairs: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

/// Makes a request that posts JSON.
pub(crate) fn post_json(url: Uri, body: &impl Serialize) -> Request<Bytes> {
    let body = serde_json::to_vec(body).expect("texts and numbers are JSON");
    with_body(url, HeaderValue::from_static("application/json"), body.into())
}

/// Makes a request that posts a form.
pub(crate) fn post_form(url: Uri, pairs: &[(&str, &str)]) -> Request<Bytes> {
    let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
    with_body(url, form_type, form(pairs).into())
}

/// Makes a request with the method GET.
pub(crate) fn get(url: Uri) -> Request<Bytes> {
    let mut request = Request::new(Bytes::new());
    *request.uri_mut() = url;
    request
}

fn with_body(url: Uri, content_type: HeaderValue, body: Bytes) -> Request<Bytes> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = url;
    request.headers_mut().insert(CONTENT_TYPE, content_type);
    request
}

/// Adds `Authorization` to a request.
pub(crate) fn authorized(mut request: Request<Bytes>, value: HeaderValue) -> Request<Bytes> {
    request.headers_mut().insert(AUTHORIZATION, value);
    request
}

/// Makes the value of `Authorization: Basic`.
pub(crate) fn basic(user: &str, password: &str) -> HeaderValue {
    sensitive(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

/// Makes the value of `Authorization: Bearer`.
pub(crate) fn bearer(token: &str) -> HeaderValue {
    sensitive(&format!("Bearer {token}"))
}

/// Makes a header value that contains a secret, which is not shown and not indexed.
///
/// The text must have no control characters, as every text that `Fields` reads.
pub(crate) fn sensitive(text: &str) -> HeaderValue {
    let mut value =
        HeaderValue::from_bytes(text.as_bytes()).expect("Fields refuses control characters");
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn path_follows_the_path_of_the_base_url() {
        for (base, expected) in [
            ("https://api.example", "https://api.example/v1/send"),
            ("http://api.example:81/", "http://api.example:81/v1/send"),
            ("https://proxy.example/sms/", "https://proxy.example/sms/v1/send"),
            ("HTTPS://[::1]:8443/a//", "https://[::1]:8443/a/v1/send"),
        ] {
            assert_eq!(BaseUrl::parse(base).unwrap().at("/v1/send").to_string(), expected);
        }
    }

    #[test]
    fn base_url_needs_a_scheme_and_a_host_and_has_no_query() {
        for text in [
            "",
            "api.example",
            "/v1",
            "ftp://a.example",
            "https://",
            "https://u:p@a.example",
            "https://a.example?key=k",
            "https://a.example:/x",
            "https://a.example:99999",
            "https://a.example:0",
        ] {
            assert!(BaseUrl::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn debug_of_a_base_url_hides_the_path() {
        let url = BaseUrl::parse("https://a.example:81/key").unwrap();

        assert_eq!(format!("{url:?}"), "https://a.example:81");
        assert_eq!(url.authority(), "a.example:81");
    }

    #[test]
    fn query_and_form_are_encoded() {
        let base = BaseUrl::parse("https://a.example").unwrap();
        let pairs = [("to", "+7"), ("text", "a&b=ы \n")];

        let url = base.with_query("/send", &pairs);
        let request = post_form(base.at("/send"), &pairs);

        let expected = "to=%2B7&text=a%26b%3D%D1%8B+%0A";
        assert_eq!(url.query(), Some(expected));
        assert_eq!(request.body(), expected);
        assert_eq!(request.headers()[CONTENT_TYPE], "application/x-www-form-urlencoded");
        assert_eq!(encoded("a/b ы~"), "a%2Fb%20%D1%8B~");
        assert_eq!(get(url).method(), Method::GET);
    }

    #[test]
    fn credentials_are_sensitive() {
        let url = BaseUrl::parse("https://a.example").unwrap().at("/");
        let request = authorized(post_json(url, &json!({"a": 1})), basic("us:er", "pé"));

        assert_eq!(request.headers()[AUTHORIZATION], "Basic dXM6ZXI6cMOp");
        assert_eq!(request.headers()[CONTENT_TYPE], "application/json");
        assert_eq!(request.body().as_ref(), br#"{"a":1}"#);
        assert!(!format!("{request:?}").contains("dXM6"), "{request:?}");
        assert_eq!(bearer("t"), "Bearer t");
    }
}
