//! `GET /v1/verifications/{id}`

use axum::http::StatusCode;
use domain::Scope;

use super::{
    endpoint::{Endpoint, Method},
    handler::{V1Handler, V1Request},
    problem::{Problem, ProblemKind},
    reply::Reply,
    verification::{VERIFICATION, shown},
};

pub(super) static ENDPOINT: Endpoint = Endpoint {
    operation_id: "getVerification",
    method: Method::Get,
    route: "/v1/verifications/{id}",
    scope: Scope::Read,
    takes_idempotency_key: false,
    success: StatusCode::OK,
    tag: "verifications",
    summary: "Get a verification and its events",
    description: "Events are in chronological order.",
    success_description: "The verification",
    request: None,
    answer: Some(&VERIFICATION),
    problems: &[ProblemKind::NotFound],
    links: &[],
    handle: |v1, request| Box::pin(find(v1, request)),
};

async fn find(v1: &V1Handler, request: &V1Request<'_>) -> Result<Reply, Problem> {
    match v1.use_cases.find(request.id()?).await {
        Ok(Some(history)) => Ok(shown(v1, StatusCode::OK, &history, request)),
        Ok(None) => Err(ProblemKind::NotFound.into()),
        Err(error) => Err(v1.unavailable(&error)),
    }
}
