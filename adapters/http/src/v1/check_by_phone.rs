//! `POST /v1/verifications/check`

use application::CodeOf;
use axum::http::StatusCode;
use domain::{Code, PhoneNumber, Scope};
use utoipa::openapi::{Object, ObjectBuilder};

use super::{
    body::{Faults, code, members, phone_text},
    check::{CheckMembers, try_code, valid},
    endpoint::{Endpoint, Method, Model},
    handler::{V1Handler, V1Request},
    openapi::schema::{self, said, string},
    problem::{Problem, ProblemKind},
    reply::Reply,
    settings::V1Settings,
};
use crate::numbering;

pub(super) static ENDPOINT: Endpoint = Endpoint {
    operation_id: "checkCodeByPhone",
    method: Method::Post,
    route: "/v1/verifications/check",
    scope: Scope::Check,
    takes_idempotency_key: true,
    success: StatusCode::OK,
    tag: "checks",
    summary: "Check a code by phone number",
    description: "Checks a code against the newest verification of a phone, for callers that do \
                  not store ids. A wrong code and an unknown phone get the same answer.",
    success_description: "Whether the code is right",
    request: Some(&Model { name: "CheckByPhone", schema: request_schema, parts: &[] }),
    answer: Some(&Model { name: "CheckedByPhone", schema: |_| answer_schema(), parts: &[] }),
    problems: &[ProblemKind::QuotaExceeded],
    links: &[],
    handle: |v1, request| Box::pin(check_by_phone(v1, request)),
};

async fn check_by_phone(v1: &V1Handler, request: &V1Request<'_>) -> Result<Reply, Problem> {
    let (phone, code) = parse(request.json()?, &v1.settings)?;
    try_code(v1, request, CodeOf::Phone(phone), &code).await
}

fn parse(body: &[u8], settings: &V1Settings) -> Result<(PhoneNumber, Code), Problem> {
    let members: CheckMembers = members(body)?;
    let mut faults = Faults::default();
    let phone = faults.required("/phone", members.phone, |value| {
        let text = phone_text(value)?;
        if let Some((phone, _)) = settings.test_number(numbering::as_written(&text)) {
            return Ok(phone.clone());
        }
        numbering::sent_to(&text, settings.default_region).map_err(numbering::InvalidNumber::detail)
    });
    let code = faults.required("/code", members.code, code);
    phone.zip(code).ok_or_else(|| faults.problem())
}

fn request_schema(settings: &V1Settings) -> Object {
    ObjectBuilder::new()
        .property("phone", schema::phone(settings))
        .property("code", schema::code())
        .required("phone")
        .required("code")
        .build()
}

fn answer_schema() -> Object {
    ObjectBuilder::new()
        .property("valid", valid())
        .property("status", said(string(), "approved if the code is right, and absent otherwise."))
        .required("valid")
        .build()
}
