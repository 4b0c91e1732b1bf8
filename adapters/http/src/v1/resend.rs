//! `POST /v1/verifications/{id}/resend`

use application::{Caller, ResendError};
use axum::http::StatusCode;
use domain::Scope;

use super::{
    endpoint::{Endpoint, Method},
    handler::{V1Handler, V1Request},
    limits::send_policies,
    problem::{Problem, ProblemKind},
    reply::Reply,
    verification::{VERIFICATION, shown},
};

pub(super) static ENDPOINT: Endpoint = Endpoint {
    operation_id: "resendVerification",
    method: Method::Post,
    route: "/v1/verifications/{id}/resend",
    scope: Scope::Send,
    takes_idempotency_key: true,
    success: StatusCode::ACCEPTED,
    tag: "verifications",
    summary: "Resend the code",
    description: "Sends the same code again, unless the service is configured to send a new one.",
    success_description: "The code will be sent",
    request: None,
    answer: Some(&VERIFICATION),
    problems: &[
        ProblemKind::NotFound,
        ProblemKind::AlreadyApproved,
        ProblemKind::Gone,
        ProblemKind::AbnormalUsage,
        ProblemKind::BudgetExhausted,
        ProblemKind::QuotaExceeded,
    ],
    links: &[],
    handle: |v1, request| Box::pin(resend(v1, request)),
};

async fn resend(v1: &V1Handler, request: &V1Request<'_>) -> Result<Reply, Problem> {
    let id = request.id()?;
    let caller = Caller {
        api_key: request.api_key,
        trace: request.trace.clone(),
        claim: request.claim.clone(),
        ..Caller::default()
    };
    match v1.use_cases.resend(id, &caller).await {
        Ok(history) => Ok(shown(v1, StatusCode::ACCEPTED, &history, request)),
        Err(ResendError::Unknown) => Err(ProblemKind::NotFound.into()),
        Err(ResendError::AlreadyApproved) => Err(ProblemKind::AlreadyApproved.into()),
        Err(ResendError::Gone(status)) => Err(Problem::gone(status)),
        Err(ResendError::Limited(violations)) => {
            Err(v1.limited(&violations, send_policies(&v1.settings.limits, &caller)))
        }
        Err(ResendError::BudgetExhausted) => Err(ProblemKind::BudgetExhausted.into()),
        Err(ResendError::Blocked) => Err(ProblemKind::AbnormalUsage.into()),
        Err(error @ (ResendError::Full | ResendError::Unavailable(_))) => {
            Err(v1.unavailable(&error))
        }
    }
}
