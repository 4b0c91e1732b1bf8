//! The `OpenAPI` 3.1 document, made from the list of endpoints, the problems and the settings.
//!
//! Clients are generated from it and outlive it. So only descriptions depend on this server's
//! settings, and answers are open to new members, values and greater numbers: a client that is
//! generated today has to read them (ADR 47).

use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, HttpMethod, InfoBuilder, LicenseBuilder, ObjectBuilder,
    OpenApi, OpenApiBuilder, Paths, Required, Response, ResponseBuilder, Tag,
    link::LinkBuilder,
    path::{Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn},
    security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};

use self::{
    parts::{BEARER, JSON, body, content, header, security},
    problems::{PROBLEM, problem, responses},
    schema::{constant, pattern, string},
};
use super::{
    endpoint::{Endpoint, Method, Model},
    idempotency::{IDEMPOTENCY_KEY, MAX_KEY},
    problem::ProblemKind,
    settings::V1Settings,
};
use crate::auth::ApiAuth;

mod api;
mod gateway_receipts;
mod parts;
mod problems;
pub(super) mod schema;

/// Returns the document as JSON.
pub(super) fn text(endpoints: &[&Endpoint], settings: &V1Settings) -> String {
    document(endpoints, settings).to_json().expect("the document is JSON")
}

fn document(endpoints: &[&Endpoint], settings: &V1Settings) -> OpenApi {
    let mut paths = Paths::new();
    for endpoint in endpoints {
        let method = match endpoint.method {
            Method::Get => HttpMethod::Get,
            Method::Post => HttpMethod::Post,
        };
        paths.add_path_operation(endpoint.route, vec![method], operation(endpoint, settings));
    }
    for (path, id) in api::PATHS {
        paths.add_path_operation(path, vec![HttpMethod::Post], api::operation(id, settings));
    }
    for (method, operation) in gateway_receipts::operations() {
        paths.add_path_operation(super::gateway_receipts::ROUTE, vec![method], operation);
    }
    paths.add_path_operation("/openapi.json", vec![HttpMethod::Get], describing());
    let info = InfoBuilder::new()
        .title("Messager")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Sends verification codes by SMS and checks them.\n\nTimes are RFC 3339 in UTC. Unknown \
             members of a request are ignored. Every error of /v1 is application/problem+json. \
             Distinguish errors by type. If the server has no free connection, it answers every \
             path with 503 {\"error\":\"too many connections\"}, as application/json and with \
             Retry-After.\n\nFuture versions may add members to answers, and values where a \
             description lists the known ones. Clients must ignore unknown members and accept \
             unknown values.",
        ))
        .license(Some(LicenseBuilder::new().name("MIT").identifier(Some("MIT")).build()));
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("msk_<32 hexadecimal digits>_<43 of base64url>")
        .description(Some(
            "An API key with the scope that the operation requires, or with the scope admin.",
        ));
    OpenApiBuilder::new()
        .info(info.build())
        .tags(Some([
            tag("verifications", "Start, get, resend and cancel verifications."),
            tag("checks", "Check codes."),
            tag("receipts", "Delivery receipts from gateways."),
            tag("messages", "The API of the Go predecessor."),
            tag("description", "This document."),
        ]))
        .paths(paths)
        .components(Some(
            components(endpoints, settings)
                .security_scheme(BEARER, SecurityScheme::Http(bearer.build()))
                .build(),
        ))
        .build()
}

fn tag(name: &str, description: &str) -> Tag {
    let mut tag = Tag::new(name);
    tag.description = Some(description.to_owned());
    tag
}

fn operation(endpoint: &Endpoint, settings: &V1Settings) -> Operation {
    let mut operation = OperationBuilder::new()
        .operation_id(Some(endpoint.operation_id))
        .tag(endpoint.tag)
        .summary(Some(endpoint.summary))
        .description(Some(format!(
            "{} The API key needs the scope {}.",
            endpoint.description,
            endpoint.scope.as_str()
        )))
        .securities(Some(security(settings.auth != ApiAuth::None)));
    if endpoint.has_id() {
        operation = operation.parameter(id_parameter());
    }
    if endpoint.takes_idempotency_key {
        operation = operation.parameter(idempotency_key());
    }
    operation = operation
        .request_body(endpoint.request.map(|model| body(model.name)))
        .response(endpoint.success.as_str(), success(endpoint));
    responses(operation, &problems_of(endpoint)).build()
}

/// Returns every problem that the operation may answer, in the order of [`ProblemKind`].
fn problems_of(endpoint: &Endpoint) -> Vec<ProblemKind> {
    use ProblemKind as P;
    let always =
        [P::Unauthorized, P::Forbidden, P::MethodNotAllowed, P::Internal, P::ReducedCapacity];
    let of_bodies: &[P] = if endpoint.method.has_body() {
        &[P::MalformedBody, P::RequestTimeout, P::TooLarge]
    } else {
        &[]
    };
    let of_json: &[P] =
        if endpoint.request.is_some() { &[P::UnsupportedMediaType, P::Invalid] } else { &[] };
    let of_keys: &[P] = if endpoint.takes_idempotency_key {
        &[P::Invalid, P::IdempotencyRunning, P::IdempotencyMismatch]
    } else {
        &[]
    };
    let mut problems = [&always[..], of_bodies, of_json, of_keys, endpoint.problems].concat();
    problems.sort();
    problems.dedup();
    problems
}

fn id_parameter() -> Parameter {
    ParameterBuilder::new()
        .name("id")
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some("The id of the verification, from the answer to its start."))
        .schema(Some(string()))
        .build()
}

fn idempotency_key() -> Parameter {
    ParameterBuilder::new()
        .name(canonical(IDEMPOTENCY_KEY))
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(
            "Makes a retry safe. A request with the same key and the same body within 24 hours gets \
             the first answer again, and nothing is done twice. Answers 403, 415, 429 and 5xx are \
             not stored. After a 5xx, the key is refused with a different body.",
        ))
        .schema(Some(
            ObjectBuilder::from(pattern("^[!-~]+$")).min_length(Some(1)).max_length(Some(MAX_KEY)),
        ))
        .build()
}

/// Writes a header name in its usual case: `Idempotency-Key`.
fn canonical(name: &str) -> String {
    let part = |part: &str| part[..1].to_ascii_uppercase() + &part[1..];
    name.split('-').map(part).collect::<Vec<_>>().join("-")
}

fn success(endpoint: &Endpoint) -> Response {
    let mut response = ResponseBuilder::new()
        .description(endpoint.success_description)
        .header("Cache-Control", header(constant("no-store"), "Caches must not store the answer."));
    if let Some(answer) = endpoint.answer {
        response = response.content(JSON, content(answer.name));
    }
    if endpoint.takes_idempotency_key {
        let replayed =
            header(constant("true"), "Present if the answer is a replay for an Idempotency-Key.");
        response = response.header("Idempotent-Replayed", replayed);
    }
    if !endpoint.links.is_empty() {
        let location = pattern("^/v1/verifications/ver_[0-9a-f]{30}00$");
        response = response.header("Location", header(location, "The path of the verification."));
    }
    for next in endpoint.links {
        let link = LinkBuilder::new()
            .operation_id(next.operation_id)
            .parameter("id", "$response.body#/id")
            .description(next.summary);
        response = response.link(next.operation_id, link.build());
    }
    response.build()
}

/// `GET /openapi.json`
fn describing() -> Operation {
    let object = ContentBuilder::new().schema(Some(ObjectBuilder::new())).build();
    let found =
        ResponseBuilder::new().description("The OpenAPI 3.1 document").content(JSON, object);
    OperationBuilder::new()
        .operation_id(Some("getDescription"))
        .tag("description")
        .summary(Some("Get this document"))
        .response("200", found.build())
        .response("405", problem(&[ProblemKind::MethodNotAllowed]))
        .build()
}

fn components(endpoints: &[&Endpoint], settings: &V1Settings) -> ComponentsBuilder {
    let of_endpoints = endpoints.iter().flat_map(|it| it.request.into_iter().chain(it.answer));
    let models = of_endpoints.chain(api::MODELS).chain([&PROBLEM]);
    models.fold(ComponentsBuilder::new(), |components, model| add(components, model, settings))
}

fn add(components: ComponentsBuilder, model: &Model, settings: &V1Settings) -> ComponentsBuilder {
    let components = components.schema(model.name, (model.schema)(settings));
    model.parts.iter().fold(components, |components, part| add(components, part, settings))
}
