//! The page for trying the service, and how pages are served.

use axum::{
    Router,
    http::{
        HeaderMap, HeaderName, HeaderValue,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    routing::{MethodRouter, get},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};

use crate::error::ApiError;

const PAGE: &str = include_str!("page.html");

/// The page for trying the service, at `/`: it verifies a number and shows each request.
///
/// It is served by the embedded default only. The page itself needs no API key. It asks for one if
/// the API needs one.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/", serve(PAGE, &policy(PAGE)))
}

/// Serves a page under a Content-Security-Policy.
pub(crate) fn serve<S: Clone + Send + Sync + 'static>(
    html: &'static str,
    policy: &str,
) -> MethodRouter<S> {
    let headers = headers(policy);
    get(async move || (headers.clone(), html)).fallback(async || ApiError::MethodNotAllowed)
}

fn headers(policy: &str) -> HeaderMap {
    let policy = HeaderValue::try_from(policy).expect("a policy is ASCII");
    let headers: [(HeaderName, HeaderValue); 5] = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        // After an upgrade, an old page would talk to a new API.
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    HeaderMap::from_iter(headers)
}

/// Lets the page run the script and the style in `html`, talk to this server, and nothing else.
/// `data:` images are its icon.
fn policy(html: &str) -> String {
    let (script, style) = (hash(html, "script"), hash(html, "style"));
    format!(
        "default-src 'none'; script-src '{script}'; style-src '{style}'; img-src data:; \
         connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
}

/// Returns the hash of the content of the only element `<tag>`, as a policy names it.
pub(crate) fn hash(html: &str, tag: &str) -> String {
    let (begin, end) = (format!("<{tag}>"), format!("</{tag}>"));
    let content = html
        .split_once(&begin)
        .and_then(|(_, rest)| rest.split_once(&end))
        .map(|(content, _)| content)
        .expect("our pages have the element once");
    hash_of(content)
}

/// Returns the hash of a script or a style, as a policy names it.
pub(crate) fn hash_of(content: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(content)))
}

#[cfg(test)]
pub(crate) mod tests {
    use axum::{
        body::{Body, Bytes},
        http::{
            Method, Request, StatusCode,
            header::{ACCEPT_ENCODING, ALLOW},
        },
    };
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    pub(crate) async fn ask(
        router: Router,
        method: Method,
        path: &str,
    ) -> (StatusCode, HeaderMap, String) {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let (status, headers, body) = answer(router, request).await;
        (status, headers, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Gets a file with this `Accept-Encoding`.
    pub(crate) async fn ask_with(
        router: Router,
        path: &str,
        accepted: &str,
    ) -> (StatusCode, HeaderMap, Bytes) {
        let request = Request::get(path).header(ACCEPT_ENCODING, accepted);
        answer(router, request.body(Body::empty()).unwrap()).await
    }

    async fn answer(router: Router, request: Request<Body>) -> (StatusCode, HeaderMap, Bytes) {
        let (head, body) = router.oneshot(request).await.unwrap().into_parts();
        (head.status, head.headers, body.collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn page_is_self_contained_and_its_policy_enforces_it() {
        let (router, path) = (router(), "/");
        let (status, headers, html) = ask(router.clone(), Method::GET, path).await;

        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers[CONTENT_TYPE], "text/html; charset=utf-8");
        assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(headers[REFERRER_POLICY], "no-referrer");
        let policy = headers[CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        for tag in ["script", "style"] {
            let (_, rest) = html.split_once(&format!("<{tag}>\n")).unwrap();
            let (content, after) = rest.split_once(&format!("</{tag}>")).unwrap();
            let digest = STANDARD.encode(Sha256::digest(format!("\n{content}")));
            assert!(policy.contains(&format!("{tag}-src 'sha256-{digest}';")), "{policy}");
            assert!(!after.contains(&format!("<{tag}")), "a second {tag}");
        }
        assert_self_contained(&html);

        let (status, headers, body) = ask(router.clone(), Method::HEAD, path).await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, ""));
        assert!(headers.contains_key(CONTENT_SECURITY_POLICY));
        let (status, headers, _) = ask(router, Method::POST, path).await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(headers[ALLOW], "GET,HEAD");
    }

    /// Asserts that the page names no other host and needs nothing that the policy forbids.
    #[track_caller]
    fn assert_self_contained(html: &str) {
        // The name of the icon's XML namespace. No client requests this address.
        let html = html.replace("xmlns='http://www.w3.org/2000/svg'", "").replace("curl(", "");
        for forbidden in [
            "http:",
            "https:",
            "ws:",
            "wss:",
            "\"//",
            "'//",
            "url(",
            "@import",
            " src=",
            " style=",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
        ] {
            assert!(!html.contains(forbidden), "{forbidden}");
        }
        let handlers = [" onclick=", " onload=", " onerror=", " onsubmit=", " oninput="];
        assert!(handlers.iter().all(|handler| !html.contains(handler)));
    }

    #[tokio::test]
    async fn page_is_at_the_root_only() {
        let (status, _, _) = ask(router(), Method::GET, "/index.html").await;

        assert_eq!(status, StatusCode::NOT_FOUND);
    }

    #[test]
    fn changed_script_has_another_hash() {
        let changed = PAGE.replacen("'use strict';", "'use strict'; ", 1);

        assert_ne!(hash(PAGE, "script"), hash(&changed, "script"));
        assert_eq!(hash(PAGE, "style"), hash(&changed, "style"));
        // Of the empty text, as everybody knows it.
        let empty = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        assert_eq!(hash("<style></style>", "style"), empty);
    }
}
