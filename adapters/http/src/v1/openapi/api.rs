//! `/api` in the `OpenAPI` document.

use serde_json::json;
use utoipa::openapi::{
    ContentBuilder, Object, ObjectBuilder, ResponseBuilder,
    path::{Operation, OperationBuilder},
};

use super::{
    super::{endpoint::Model, settings::V1Settings},
    parts::{JSON, body, content, header, security},
    schema::{pattern, seconds, string},
};
use crate::auth::ApiAuth;

/// The phones of `/api`: no `+`, and no fewer digits than the Go predecessor accepted.
const PHONE: &str = "^[0-9]{11,15}$";
pub(super) const PATHS: [(&str, &str); 4] = [
    ("/api", "send"),
    ("/api/", "sendWithSlash"),
    ("/api/send", "sendToSend"),
    ("/api/send/", "sendToSendWithSlash"),
];

pub(super) static MODELS: [&Model; 2] = [
    &Model { name: "Send", schema: |_| send_schema(), parts: &[] },
    &Model { name: "Refusal", schema: |_| refusal_schema(), parts: &[] },
];

/// `POST /api`
pub(super) fn operation(id: &str, settings: &V1Settings) -> Operation {
    let refused =
        |says: &str| ResponseBuilder::new().description(says).content(JSON, content("Refusal"));
    let retry = || header(seconds(), "Seconds to wait before a retry.");
    let sent = ObjectBuilder::from(string()).examples([json!("message successfuly sended")]);
    let sent = ContentBuilder::new().schema(Some(sent)).build();
    let sent = ResponseBuilder::new().description("The code will be sent").content(JSON, sent);
    let operation = OperationBuilder::new()
        .operation_id(Some(id))
        .tag("messages")
        .summary(Some("Send a code to a phone"))
        .description(Some("The code can be checked by phone. An API key needs the scope send."))
        .request_body(Some(body("Send")))
        .response("200", sent)
        .response("400", refused("Invalid request body"))
        .response(
            "401",
            refused("API key required").header("WWW-Authenticate", header(string(), "Bearer")),
        )
        .response(
            "403",
            refused("The API key lacks the scope, or messages to this number are not allowed"),
        )
        .response(
            "405",
            refused("Method not allowed")
                .header("Allow", header(string(), "The methods of this path.")),
        )
        .response("408", refused("Request timeout"))
        .response("429", refused("Rate limit exceeded").header("Retry-After", retry()))
        .response("500", refused("Internal error"))
        .response("503", refused("Temporarily unavailable").header("Retry-After", retry()));
    operation.securities(Some(security(settings.auth == ApiAuth::All))).build()
}

fn send_schema() -> Object {
    ObjectBuilder::new().property("phone", pattern(PHONE)).required("phone").build()
}

fn refusal_schema() -> Object {
    ObjectBuilder::new().property("error", string()).required("error").build()
}
