//! The description as a page.

use axum::Router;

use crate::page::serve;

const DOCS: &str = include_str!("docs.html");

/// The API's reference, at `/docs`: what `/openapi.json` says, made readable in the browser.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/docs", serve(DOCS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::tests::check;

    #[tokio::test]
    async fn is_whole_in_itself_and_held_to_that() {
        check(router(), "/docs").await;
    }
}
