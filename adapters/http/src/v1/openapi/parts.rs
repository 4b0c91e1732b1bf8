//! Bodies, headers and security of an operation.

use utoipa::openapi::{
    Content, ContentBuilder, Header, Object, Ref, Required, SecurityRequirement,
    header::HeaderBuilder,
    request_body::{RequestBody, RequestBodyBuilder},
};

pub(super) const JSON: &str = "application/json";

/// The name of the security scheme.
pub(super) const BEARER: &str = "bearer";

/// Allows a key even where none is needed: another server may require one.
pub(super) fn security(is_needed: bool) -> Vec<SecurityRequirement> {
    let none = (!is_needed).then(SecurityRequirement::default);
    none.into_iter().chain([SecurityRequirement::new::<_, [&str; 0], &str>(BEARER, [])]).collect()
}

pub(super) fn body(schema: &str) -> RequestBody {
    RequestBodyBuilder::new().required(Some(Required::True)).content(JSON, content(schema)).build()
}

pub(super) fn content(schema: &str) -> Content {
    ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build()
}

pub(super) fn header(schema: Object, description: &str) -> Header {
    HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build()
}
