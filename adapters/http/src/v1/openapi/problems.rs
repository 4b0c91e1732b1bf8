//! Problems in the `OpenAPI` document.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde_json::{Value, json};
use utoipa::openapi::{
    ContentBuilder, Header, Object, ObjectBuilder, Ref, RefOr, Response, ResponseBuilder,
    example::ExampleBuilder, path::OperationBuilder, schema::ArrayBuilder,
};

use super::{
    super::{
        endpoint::Model,
        problem::{PROBLEM_JSON, ProblemKind},
    },
    parts::header,
    schema::{count, known, said, seconds, string, string_schema},
};

pub(super) static PROBLEM: Model =
    Model { name: "Problem", schema: |_| problem_schema(), parts: &[&FAULT] };

static FAULT: Model = Model { name: "Fault", schema: |_| fault(), parts: &[] };

/// Adds a response for each status of `kinds`.
pub(super) fn responses(operation: OperationBuilder, kinds: &[ProblemKind]) -> OperationBuilder {
    let mut by_status: BTreeMap<StatusCode, Vec<ProblemKind>> = BTreeMap::new();
    for kind in kinds {
        by_status.entry(kind.meaning().status).or_default().push(*kind);
    }
    by_status.into_iter().fold(operation, |operation, (status, kinds)| {
        operation.response(status.as_str(), problem(&kinds))
    })
}

/// Returns one response for all kinds of one status, with an example of each.
pub(super) fn problem(kinds: &[ProblemKind]) -> Response {
    let titles: Vec<&str> = kinds.iter().map(|kind| kind.meaning().title).collect();
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .examples_from_iter(kinds.iter().map(|kind| {
            let example = ExampleBuilder::new().value(Some(problem_example(*kind)));
            (kind.meaning().code, RefOr::from(example.build()))
        }));
    let mut response = ResponseBuilder::new()
        .description(titles.join("; "))
        .content(PROBLEM_JSON, content.build());
    for kind in kinds {
        for (name, value) in problem_headers(*kind) {
            response = response.header(name, value);
        }
    }
    response.build()
}

fn problem_example(kind: ProblemKind) -> Value {
    let meaning = kind.meaning();
    let mut example = json!({
        "type": meaning.uri(),
        "title": meaning.title,
        "status": meaning.status.as_u16(),
        "detail": meaning.detail,
        "instance": "/v1/verifications",
        "code": meaning.code,
    });
    match kind {
        ProblemKind::Invalid => {
            example["errors"] =
                json!([{ "pointer": "/phone", "detail": "must be a phone number" }]);
        }
        ProblemKind::Forbidden => example["scope"] = json!("send"),
        ProblemKind::Gone => example["verification_status"] = json!("expired"),
        ProblemKind::QuotaExceeded => {
            example["violated-policies"] = json!(["phone-1h"]);
            example["retry_after"] = json!(60);
        }
        _ => {}
    }
    example
}

fn problem_headers(kind: ProblemKind) -> Vec<(&'static str, Header)> {
    let seconds = || ("Retry-After", header(seconds(), "Seconds to wait before a retry."));
    let text = |name, says| (name, header(string(), says));
    match kind {
        ProblemKind::Unauthorized => vec![text("WWW-Authenticate", "Bearer")],
        ProblemKind::MethodNotAllowed => vec![text("Allow", "The methods of this path.")],
        ProblemKind::QuotaExceeded => vec![
            seconds(),
            text("RateLimit-Policy", "All rate limits that count the request."),
            text(
                "RateLimit",
                "The exhausted rate limits, each with the seconds until it allows a request.",
            ),
        ],
        ProblemKind::ReducedCapacity => vec![seconds()],
        _ => Vec::new(),
    }
}

fn problem_schema() -> Object {
    let types: Vec<String> = ProblemKind::all().map(|kind| kind.meaning().uri()).collect();
    let codes: Vec<&str> = ProblemKind::all().map(|kind| kind.meaning().code).collect();
    let policies = ArrayBuilder::new()
        .items(RefOr::from(string_schema()))
        .description(Some("The exhausted rate limits. Only in quota-exceeded."));
    let errors = ArrayBuilder::new()
        .items(Ref::from_schema_name("Fault"))
        .description(Some("The invalid values of the request. Only in invalid, region-not-allowed and number-type-not-allowed."));
    ObjectBuilder::new()
        .property(
            "type",
            said(
                known(&types.iter().map(String::as_str).collect::<Vec<_>>()),
                "Identifies the kind of error. Stable.",
            ),
        )
        .property("title", string())
        .property("status", count())
        .property(
            "detail",
            said(string(), "An explanation. It never repeats values of the request."),
        )
        .property("instance", said(string(), "The path of the request."))
        .property("code", said(known(&codes), "The last segment of type. Stable."))
        .property("errors", errors)
        .property("scope", said(string(), "The scope that the API key lacks. Only in forbidden."))
        .property("verification_status", said(string(), "expired or canceled. Only in gone."))
        .property("violated-policies", policies)
        .property("retry_after", seconds())
        .required("type")
        .required("title")
        .required("status")
        .required("detail")
        .required("instance")
        .required("code")
        .build()
}

fn fault() -> Object {
    let fault = ObjectBuilder::new()
        .property(
            "pointer",
            ObjectBuilder::from(string())
                .description(Some("The place of the value in the body, as a JSON pointer.")),
        )
        .property("header", string())
        .property(
            "detail",
            ObjectBuilder::from(string()).description(Some("The rule that the value breaks.")),
        );
    fault.required("detail").build()
}
