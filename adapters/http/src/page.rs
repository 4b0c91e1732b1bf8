//! The page to try the service with, and how a page of ours is served.

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

/// The page to try the service with, at `/`: a number, its code, verified, and each request made.
///
/// For the embedded default. It needs no key itself; it asks for one when the API does.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/", serve(PAGE))
}

/// A page that is whole in itself: one script, one style, and nothing of another host.
pub(crate) fn serve<S: Clone + Send + Sync + 'static>(html: &'static str) -> MethodRouter<S> {
    let headers = headers(html);
    get(async move || (headers.clone(), html)).fallback(async || ApiError::MethodNotAllowed)
}

fn headers(html: &str) -> HeaderMap {
    let policy = HeaderValue::try_from(policy(html)).expect("base64 and our own words are ASCII");
    let headers: [(HeaderName, HeaderValue); 5] = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        // After an upgrade the page of before would speak to another API.
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    HeaderMap::from_iter(headers)
}

/// Lets the page run the script and the style that are in `html`, talk to us, and nothing else.
///
/// `data:` images are its icon.
fn policy(html: &str) -> String {
    let (script, style) = (hash(html, "script"), hash(html, "style"));
    format!(
        "default-src 'none'; script-src '{script}'; style-src '{style}'; img-src data:; \
         connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
}

/// The hash of what stands in the only element `tag`, as a policy names it.
fn hash(html: &str, tag: &str) -> String {
    let (begin, end) = (format!("<{tag}>"), format!("</{tag}>"));
    let content = html
        .split_once(&begin)
        .and_then(|(_, rest)| rest.split_once(&end))
        .map(|(content, _)| content)
        .expect("our pages have one script and one style");
    format!("sha256-{}", STANDARD.encode(Sha256::digest(content)))
}

#[cfg(test)]
pub(crate) mod tests {
    use axum::{
        body::Body,
        http::{Method, Request, StatusCode, header::ALLOW},
    };
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn ask(router: Router, method: Method, path: &str) -> (StatusCode, HeaderMap, String) {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let (head, body) = router.oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status, head.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    /// What holds for every page of ours.
    pub(crate) async fn check(router: Router, path: &str) {
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
        needs_nothing_else(&html);

        let (status, headers, body) = ask(router.clone(), Method::HEAD, path).await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, ""));
        assert!(headers.contains_key(CONTENT_SECURITY_POLICY));
        let (status, headers, _) = ask(router, Method::POST, path).await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(headers[ALLOW], "GET,HEAD");
    }

    /// Neither another host, nor what the policy would forbid.
    #[track_caller]
    fn needs_nothing_else(html: &str) {
        // A name of the icon's language, not an address that anybody asks.
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
    async fn is_whole_in_itself_and_held_to_that() {
        check(router(), "/").await;
    }

    #[tokio::test]
    async fn is_at_the_root_only() {
        let (status, _, _) = ask(router(), Method::GET, "/index.html").await;

        assert_eq!(status, StatusCode::NOT_FOUND);
    }

    #[test]
    fn a_changed_script_has_another_hash() {
        let changed = PAGE.replacen("'use strict';", "'use strict'; ", 1);

        assert_ne!(hash(PAGE, "script"), hash(&changed, "script"));
        assert_eq!(hash(PAGE, "style"), hash(&changed, "style"));
        // Of the empty text, as everybody knows it.
        let empty = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        assert_eq!(hash("<style></style>", "style"), empty);
    }
}
