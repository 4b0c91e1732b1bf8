//! `POST /v1/verifications/{id}/checks`

use application::{CheckError, Checked, CodeOf};
use axum::http::StatusCode;
use domain::{Code, Scope, VerificationStatus};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::openapi::{Object, ObjectBuilder};

use super::{
    body::{Faults, code, members},
    endpoint::{Endpoint, Method, Model},
    handler::{V1Handler, V1Request},
    openapi::schema::{self, boolean, count, known, said},
    problem::{Problem, ProblemKind},
    reply::Reply,
};

pub(super) static ENDPOINT: Endpoint = Endpoint {
    operation_id: "checkCode",
    method: Method::Post,
    route: "/v1/verifications/{id}/checks",
    scope: Scope::Check,
    takes_idempotency_key: true,
    success: StatusCode::OK,
    tag: "checks",
    summary: "Check a code",
    description: "Every check uses up an attempt. A code can be approved only once.",
    success_description: "Whether the code is right",
    request: Some(&Model { name: "Check", schema: |_| request_schema(), parts: &[] }),
    answer: Some(&Model { name: "Checked", schema: |_| answer_schema(), parts: &[] }),
    problems: &[
        ProblemKind::NotFound,
        ProblemKind::AlreadyApproved,
        ProblemKind::Gone,
        ProblemKind::QuotaExceeded,
    ],
    links: &[],
    handle: |v1, request| Box::pin(check(v1, request)),
};

/// The members of both checks. A check by id ignores `phone`, but refuses a duplicate.
#[derive(Deserialize)]
pub(super) struct CheckMembers {
    pub(super) phone: Option<Value>,
    pub(super) code: Option<Value>,
}

#[derive(Serialize)]
struct CheckView {
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts_left: Option<u8>,
}

async fn check(v1: &V1Handler, request: &V1Request<'_>) -> Result<Reply, Problem> {
    let id = request.id()?;
    let code = parse(request.json()?)?;
    try_code(v1, request, CodeOf::Verification(id), &code).await
}

/// Checks a code against a verification or a phone, and answers.
pub(super) async fn try_code(
    v1: &V1Handler,
    request: &V1Request<'_>,
    of: CodeOf,
    code: &Code,
) -> Result<Reply, Problem> {
    match v1.use_cases.check(of, code, request.claim.as_ref()).await {
        Ok(checked) => {
            v1.metrics.checked(checked);
            Ok(Reply::json(StatusCode::OK, &CheckView::of(checked)))
        }
        Err(CheckError::Unknown) => Err(ProblemKind::NotFound.into()),
        Err(CheckError::AlreadyApproved) => Err(ProblemKind::AlreadyApproved.into()),
        Err(CheckError::Gone(status)) => Err(Problem::gone(status)),
        Err(CheckError::Limited(violations)) => {
            Err(v1.limited(&violations, v1.settings.limits.check.policies("check")))
        }
        Err(error @ (CheckError::Full | CheckError::Unavailable(_))) => Err(v1.unavailable(&error)),
    }
}

impl CheckView {
    fn of(checked: Checked) -> Self {
        match checked {
            Checked::Approved(_) => {
                let status = Some(VerificationStatus::Approved.as_str());
                Self { valid: true, status, attempts_left: None }
            }
            // A check by phone has no count: the answer must not reveal whether there is a
            // verification.
            Checked::Wrong { attempts_left } => {
                let status = attempts_left.map(|_| VerificationStatus::Pending.as_str());
                Self { valid: false, status, attempts_left }
            }
        }
    }
}

pub(super) fn parse(body: &[u8]) -> Result<Code, Problem> {
    let members: CheckMembers = members(body)?;
    let mut faults = Faults::default();
    faults.required("/code", members.code, code).ok_or_else(|| faults.problem())
}

fn request_schema() -> Object {
    ObjectBuilder::new().property("code", schema::code()).required("code").build()
}

/// One schema for right and wrong codes: client generators cannot tell two schemas apart by the
/// value of `valid`.
fn answer_schema() -> Object {
    ObjectBuilder::new()
        .property("valid", valid())
        .property("status", known(&["approved", "pending"]))
        .property("attempts_left", said(count(), "Only if the code is wrong."))
        .required("valid")
        .required("status")
        .build()
}

pub(super) fn valid() -> Object {
    said(boolean(), "Whether the code is right.")
}
