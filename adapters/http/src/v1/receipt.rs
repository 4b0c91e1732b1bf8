//! `POST /v1/receipts`

use application::ports::Receipt;
use axum::http::StatusCode;
use domain::{MessageId, Scope};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::openapi::{Object, ObjectBuilder, schema::SchemaFormat};

use super::{
    body::{Faults, members, text},
    endpoint::{Endpoint, Method, Model},
    handler::{V1Handler, V1Request},
    openapi::schema::{enumerated, string},
    problem::{Problem, ProblemKind},
    reply::Reply,
};

pub(super) static ENDPOINT: Endpoint = Endpoint {
    operation_id: "noteReceipt",
    method: Method::Post,
    route: "/v1/receipts",
    scope: Scope::Send,
    takes_idempotency_key: false,
    success: StatusCode::NO_CONTENT,
    tag: "receipts",
    summary: "Report whether a message was delivered",
    description: "Records a delivery receipt of the gateway as the event delivered or failed. The \
                  service answers once the receipt is stored. Safe to repeat. An undelivered \
                  receipt after a delivered one is ignored.",
    success_description: "The receipt is stored",
    request: Some(&Model { name: "Receipt", schema: |_| schema(), parts: &[] }),
    answer: None,
    problems: &[ProblemKind::NotFound],
    links: &[],
    handle: |v1, request| Box::pin(note_receipt(v1, request)),
};

#[derive(Deserialize)]
struct ReceiptMembers {
    id: Option<Value>,
    status: Option<Value>,
}

async fn note_receipt(v1: &V1Handler, request: &V1Request<'_>) -> Result<Reply, Problem> {
    let (message, receipt) = parse(request.json()?)?;
    match v1.use_cases.note_receipt(message, receipt, request.trace.clone()).await {
        Ok(true) => Ok(Reply::empty()),
        Ok(false) => Err(ProblemKind::NotFound.into()),
        Err(error) => Err(v1.unavailable(&error)),
    }
}

fn parse(body: &[u8]) -> Result<(MessageId, Receipt), Problem> {
    let members: ReceiptMembers = members(body)?;
    let mut faults = Faults::default();
    let message = faults.required("/id", members.id, |id| {
        text(id).and_then(|id| id.parse().ok()).ok_or("must be the id of a message (a UUID)")
    });
    let receipt = faults.required("/status", members.status, |status| {
        let receipt = text(status).and_then(|text| text.parse().ok());
        receipt.ok_or("must be delivered or undelivered")
    });
    message.zip(receipt).ok_or_else(|| faults.problem())
}

fn schema() -> Object {
    let id = ObjectBuilder::from(string())
        .format(Some(SchemaFormat::Custom("uuid".to_owned())))
        .description(Some("The id of the message, as the gateway received it."));
    let statuses = Receipt::ALL.map(|receipt| json!(receipt.as_str()));
    ObjectBuilder::new()
        .property("id", id)
        .property("status", enumerated(statuses.into()))
        .required("id")
        .required("status")
        .build()
}
