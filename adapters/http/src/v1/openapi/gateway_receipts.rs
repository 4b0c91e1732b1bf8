//! `/v1/receipts/{gateway}` in the `OpenAPI` document.

use utoipa::openapi::{
    ContentBuilder, HttpMethod, ObjectBuilder, Required, ResponseBuilder,
    path::{Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn},
    request_body::RequestBodyBuilder,
};

use super::{
    super::{gateway_receipts::TOKEN, problem::ProblemKind},
    parts::{JSON, header},
    problems::responses,
    schema::{constant, string},
};

/// The operations, each with its method.
pub(super) fn operations() -> [(HttpMethod, Operation); 2] {
    let post = operation("takeReceipt").request_body(Some(
        RequestBodyBuilder::new()
            .description(Some("What the provider sends, in any media type."))
            .required(Some(Required::False))
            .content(JSON, ContentBuilder::new().schema(Some(ObjectBuilder::new())).build())
            .build(),
    ));
    let get = operation("takeReceiptInQuery");
    [(HttpMethod::Post, post.build()), (HttpMethod::Get, get.build())]
}

fn operation(id: &str) -> OperationBuilder {
    let no_store = || header(constant("no-store"), "Caches must not store the answer.");
    let text = ContentBuilder::new().schema(Some(string())).build();
    let answered = ResponseBuilder::new()
        .description("The receipts are stored. The body is what the provider expects.")
        .header("Cache-Control", no_store())
        .content("text/plain", text);
    let stored = ResponseBuilder::new()
        .description("The receipts are stored, or are of no message of this service")
        .header("Cache-Control", no_store());
    let operation = OperationBuilder::new()
        .operation_id(Some(id))
        .tag("receipts")
        .summary(Some("Take delivery receipts from the provider of a gateway"))
        .description(Some(
            "For providers, and not for clients: the query and the body are those of the provider. It \
             needs no API key. The provider signs the request, or calls the URL that the service gives \
             it, which has a token. The service answers once the receipts are stored. Safe to repeat.",
        ))
        .parameter(path_parameter())
        .parameter(query_parameter(TOKEN, "The token of the gateway, if the provider does not sign."))
        .parameter(query_parameter("id", "The id of the message, if the provider repeats it here."))
        .response("200", answered.build())
        .response("204", stored.build());
    responses(operation, &problems())
}

fn problems() -> [ProblemKind; 8] {
    use ProblemKind as P;
    [
        P::UnreadableReceipt,
        P::UnverifiedReceipt,
        P::NotFound,
        P::MethodNotAllowed,
        P::RequestTimeout,
        P::TooLarge,
        P::Internal,
        P::ReducedCapacity,
    ]
}

fn path_parameter() -> Parameter {
    ParameterBuilder::new()
        .name("gateway")
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some("The name of the gateway in the settings."))
        .schema(Some(string()))
        .build()
}

fn query_parameter(name: &str, says: &str) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some(says))
        .schema(Some(string()))
        .build()
}
