//! `POST /v1/verifications/{id}/cancel`

use application::CancelError;
use axum::http::StatusCode;
use domain::{Scope, VerificationStatus};

use super::{
    endpoint::{Endpoint, Method},
    handler::{V1Handler, V1Request},
    problem::{Problem, ProblemKind},
    reply::Reply,
    verification::{VERIFICATION, shown},
};

pub(super) static ENDPOINT: Endpoint = Endpoint {
    operation_id: "cancelVerification",
    method: Method::Post,
    route: "/v1/verifications/{id}/cancel",
    scope: Scope::Send,
    takes_idempotency_key: false,
    success: StatusCode::OK,
    tag: "verifications",
    summary: "Cancel a verification",
    description: "Invalidates the code. Safe to repeat.",
    success_description: "The verification is canceled",
    request: None,
    answer: Some(&VERIFICATION),
    problems: &[ProblemKind::NotFound, ProblemKind::AlreadyApproved, ProblemKind::Gone],
    links: &[],
    handle: |v1, request| Box::pin(cancel(v1, request)),
};

async fn cancel(v1: &V1Handler, request: &V1Request<'_>) -> Result<Reply, Problem> {
    match v1.use_cases.cancel(request.id()?).await {
        Ok(history) => Ok(shown(v1, StatusCode::OK, &history, request)),
        Err(CancelError::Unknown) => Err(ProblemKind::NotFound.into()),
        Err(CancelError::AlreadyApproved) => Err(ProblemKind::AlreadyApproved.into()),
        Err(CancelError::Expired) => Err(Problem::gone(VerificationStatus::Expired)),
        Err(error @ (CancelError::Full | CancelError::Unavailable(_))) => {
            Err(v1.unavailable(&error))
        }
    }
}
