//! The API reference at `/docs`: Swagger UI over `/openapi.json`.
//!
//! `docs/README.md` says where the files come from, and ADR 49 why it is Swagger UI.

use std::{io::Read, sync::LazyLock};

use axum::{
    Router,
    body::Bytes,
    http::{
        HeaderMap, HeaderValue,
        header::{
            ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, VARY,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use flate2::read::GzDecoder;

use crate::{
    error::ApiError,
    page::{hash, serve},
};

const PAGE: &str = include_str!("docs/index.html");

/// The version is in the paths, so that browsers may keep the files for ever.
static FILES: [File; 2] = [
    File {
        path: "/docs/swagger-ui-5.35.0.js",
        content_type: "text/javascript; charset=utf-8",
        gzipped: include_bytes!("docs/swagger-ui-bundle.js.gz"),
        plain: LazyLock::new(|| unpack(include_bytes!("docs/swagger-ui-bundle.js.gz"))),
    },
    File {
        path: "/docs/swagger-ui-5.35.0.css",
        content_type: "text/css; charset=utf-8",
        gzipped: include_bytes!("docs/swagger-ui.css.gz"),
        plain: LazyLock::new(|| unpack(include_bytes!("docs/swagger-ui.css.gz"))),
    },
];

struct File {
    path: &'static str,
    content_type: &'static str,
    gzipped: &'static [u8],
    /// For clients that do not accept gzip.
    plain: LazyLock<Bytes>,
}

/// The API reference, at `/docs`.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let router = Router::new().route("/docs", serve(PAGE, &policy()));
    FILES.iter().fold(router, |router, file| router.route(file.path, file.serve()))
}

/// Lets the page run the files of this server and its own script, talk to this server, and nothing
/// else. `data:` images are icons.
fn policy() -> String {
    let script = hash(PAGE, "script");
    format!(
        "default-src 'none'; script-src 'self' '{script}'; style-src 'self'; img-src data:; \
         connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
}

impl File {
    fn serve<S: Clone + Send + Sync + 'static>(&'static self) -> MethodRouter<S> {
        get(async move |headers: HeaderMap| self.answer(&headers))
            .fallback(async || ApiError::MethodNotAllowed)
    }

    fn answer(&'static self, request: &HeaderMap) -> Response {
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static(self.content_type)),
            (CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable")),
            (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (VARY, HeaderValue::from_static("accept-encoding")),
        ];
        if accepts_gzip(request) {
            (headers, [(CONTENT_ENCODING, "gzip")], self.gzipped).into_response()
        } else {
            (headers, self.plain.clone()).into_response()
        }
    }
}

fn unpack(gzipped: &[u8]) -> Bytes {
    let mut plain = Vec::new();
    GzDecoder::new(gzipped).read_to_end(&mut plain).expect("our own file is gzip");
    plain.into()
}

/// Whether `Accept-Encoding` names gzip, and not with a weight of zero.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let is_gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok());
        is_gzip && weight.is_none_or(|weight| weight > 0.0)
    })
}

#[cfg(test)]
mod tests {
    use axum::http::{
        Method, StatusCode,
        header::{ALLOW, CONTENT_SECURITY_POLICY},
    };
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::page::tests::{ask, ask_with};

    #[tokio::test]
    async fn page_runs_its_own_script_and_files_of_this_server_only() {
        let (status, headers, html) = ask(router(), Method::GET, "/docs").await;

        assert_eq!((status, html.as_str()), (StatusCode::OK, PAGE));
        assert_eq!(headers[CONTENT_TYPE], "text/html; charset=utf-8");
        assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff");
        let policy = headers[CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self' 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        assert_eq!(html.matches("<script>").count(), 1);
        let addresses = html.split(['"', '\'']).filter(|text| text.contains("//"));
        let outside: Vec<&str> =
            addresses.filter(|text| *text != "http://www.w3.org/2000/svg").collect();
        assert!(outside.is_empty(), "{outside:?}");
        for file in &FILES {
            assert!(html.contains(&format!("\"{}\"", file.path)), "{}", file.path);
        }
        let (status, headers, _) = ask(router(), Method::POST, "/docs").await;
        assert_eq!(
            (status, &headers[ALLOW]),
            (StatusCode::METHOD_NOT_ALLOWED, &"GET,HEAD".parse().unwrap())
        );
    }

    /// The sums are those of `docs/README.md`.
    #[test]
    fn files_match_the_release() {
        let readme = include_str!("docs/README.md");
        for file in &FILES {
            let sum = Sha256::digest(&*file.plain)
                .iter()
                .fold(String::new(), |sum, byte| format!("{sum}{byte:02x}"));
            assert!(readme.contains(&sum), "{}: {sum}", file.path);
        }
        let size: usize = FILES.iter().map(|file| file.gzipped.len()).sum();
        assert!(size < 1024 * 1024, "{size} bytes are embedded");
    }

    #[tokio::test]
    async fn files_are_sent_compressed_to_clients_that_accept_gzip() {
        for file in &FILES {
            for accepted in ["gzip", "br;q=1.0, GZIP;q=0.8", "deflate, gzip"] {
                let (status, headers, body) = ask_with(router(), file.path, accepted).await;
                assert_eq!(status, StatusCode::OK);
                assert_eq!(headers[CONTENT_ENCODING], "gzip");
                assert_eq!(headers[VARY], "accept-encoding");
                assert_eq!(body, file.gzipped);
            }
            for accepted in ["", "br", "gzip;q=0", "gzip; q=0.000"] {
                let (status, headers, body) = ask_with(router(), file.path, accepted).await;
                assert_eq!(status, StatusCode::OK);
                assert!(!headers.contains_key(CONTENT_ENCODING), "{accepted}");
                assert_eq!(body, *file.plain);
            }
        }
    }
}
