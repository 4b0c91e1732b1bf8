//! The description of the API (`OpenAPI` 3.1), made of what the service has: its operations, the
//! problems that they have, and the limits of what requests say.
//!
//! Clients are generated from it and outlive it. So it says nothing of this server's settings but
//! in descriptions, and what an answer may have more of one day (members, values, greater numbers)
//! is open: a client that is generated today has to read it (ADR 47).

use application::ports::{EventKind, Receipt};
use axum::http::{Method, StatusCode};
use domain::CustomLimit;
use serde_json::{Value, json};
use utoipa::openapi::{
    Components, Content, ContentBuilder, Header, HttpMethod, InfoBuilder, LicenseBuilder, Object,
    ObjectBuilder, OpenApi, OpenApiBuilder, Paths, Ref, RefOr, Required, Response, ResponseBuilder,
    Schema, SecurityRequirement, Tag, Type,
    example::ExampleBuilder,
    header::HeaderBuilder,
    link::LinkBuilder,
    path::{Operation as Described, OperationBuilder, Parameter, ParameterBuilder, ParameterIn},
    request_body::{RequestBody, RequestBodyBuilder},
    schema::{ArrayBuilder, KnownFormat, SchemaFormat, SchemaType},
    security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};

use super::{
    Operation,
    body::{
        CODE_LENGTH, MAX_LIMIT_KEY, MAX_LOCALE, MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE,
        MAX_TYPED, TTL,
    },
    idempotency::{IDEMPOTENCY_KEY, MAX_KEY},
    problem::{PROBLEM_JSON, ProblemKind},
    settings::V1Settings,
};
use crate::auth::ApiAuth;

const JSON: &str = "application/json";
const BEARER: &str = "bearer";
/// As `/api` has it: no `+`, and not less than the Go predecessor took.
const API_PHONE: &str = "^[0-9]{11,15}$";
const API_PATHS: [(&str, &str); 4] = [
    ("/api", "send"),
    ("/api/", "sendWithSlash"),
    ("/api/send", "sendToSend"),
    ("/api/send/", "sendToSendWithSlash"),
];

/// The description as JSON.
pub(crate) fn text(settings: &V1Settings) -> String {
    document(settings).to_json().expect("a description is JSON")
}

fn document(settings: &V1Settings) -> OpenApi {
    let mut paths = Paths::new();
    for operation in Operation::ALL {
        let method =
            if operation.method() == Method::GET { HttpMethod::Get } else { HttpMethod::Post };
        paths.add_path_operation(operation.route(), vec![method], described(operation, settings));
    }
    for (path, id) in API_PATHS {
        paths.add_path_operation(path, vec![HttpMethod::Post], sending(id, settings));
    }
    paths.add_path_operation("/openapi.json", vec![HttpMethod::Get], describing());
    let info = InfoBuilder::new()
        .title("Messager")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Sends verification codes by SMS and checks them. Times are RFC 3339 in UTC. Members \
             of a body that are not described are passed over. Every error of /v1 is \
             application/problem+json; tell them apart by type. Only where all connections are \
             taken, the answer on every path is 503 {\"error\":\"too many connections\"}, as \
             application/json and with Retry-After.\n\nAnswers may get new members, and new values \
             where the known ones are listed in a description. A client must ignore members, and \
             accept values, that it does not know.",
        ))
        .license(Some(LicenseBuilder::new().name("MIT").identifier(Some("MIT")).build()));
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("msk_<32 hexadecimal digits>_<43 of base64url>")
        .description(Some("An API key with the scope that the operation names, or with admin."));
    OpenApiBuilder::new()
        .info(info.build())
        .tags(Some([
            tag("verifications", "Begin, resend, look at and cancel verifications."),
            tag("checks", "Try codes."),
            tag("receipts", "For gateways: tell what became of messages."),
            tag("messages", "What the Go predecessor had."),
            tag("description", "This description."),
        ]))
        .paths(paths)
        .components(Some(
            components(settings)
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

impl Operation {
    const fn has_id(self) -> bool {
        matches!(self, Self::Find | Self::Check | Self::Resend | Self::Cancel)
    }

    const fn id(self) -> &'static str {
        match self {
            Self::Start => "startVerification",
            Self::Find => "getVerification",
            Self::Check => "checkCode",
            Self::CheckByPhone => "checkCodeByPhone",
            Self::Resend => "resendVerification",
            Self::Cancel => "cancelVerification",
            Self::Receipt => "noteReceipt",
        }
    }

    const fn tag(self) -> &'static str {
        match self {
            Self::Check | Self::CheckByPhone => "checks",
            Self::Start | Self::Find | Self::Resend | Self::Cancel => "verifications",
            Self::Receipt => "receipts",
        }
    }

    const fn summary(self) -> &'static str {
        match self {
            Self::Start => "Begin a verification: a code is sent to the phone",
            Self::Find => "Look at a verification and at what has happened to it",
            Self::Check => "Try a code against a verification",
            Self::CheckByPhone => "Try a code against the newest verification of a phone",
            Self::Resend => "Send the code once more",
            Self::Cancel => "Give a verification up",
            Self::Receipt => "Tell that a message has arrived, or will not",
        }
    }

    const fn description(self) -> &'static str {
        match self {
            Self::Start => {
                "Answered once it is stored: the code will be sent. While a verification is \
                 pending for the phone this is a resend of it, and the other members are passed \
                 over."
            }
            Self::Find => "Events stand in the order in which they happened.",
            Self::Check => "An attempt is spent whatever the answer is. A code is right once.",
            Self::CheckByPhone => {
                "For callers that keep no id. A wrong code and an unknown phone have the same \
                 answer."
            }
            Self::Resend => "The same code, unless the service is set up otherwise.",
            Self::Cancel => "Its code is no good any more. Twice is as good as once.",
            Self::Receipt => {
                "For whoever hears of it from the gateway. Answered once it is stored; it becomes \
                 the event delivered or failed. Twice is as good as once, and undelivered does \
                 not count after delivered."
            }
        }
    }

    const fn success_says(self) -> &'static str {
        match self {
            Self::Start | Self::Resend => "The code will be sent",
            Self::Find => "The verification",
            Self::Check | Self::CheckByPhone => "Whether the code was right",
            Self::Cancel => "The verification is canceled",
            Self::Receipt => "It is noted",
        }
    }

    /// What its answer is, where that has a body.
    const fn answer(self) -> Option<&'static str> {
        match self {
            Self::Start | Self::Find | Self::Resend | Self::Cancel => Some("Verification"),
            Self::Check => Some("Checked"),
            Self::CheckByPhone => Some("CheckedByPhone"),
            Self::Receipt => None,
        }
    }

    /// What its body is, where it has one.
    const fn request(self) -> Option<&'static str> {
        match self {
            Self::Start => Some("Start"),
            Self::Check => Some("Check"),
            Self::CheckByPhone => Some("CheckByPhone"),
            Self::Receipt => Some("Receipt"),
            Self::Find | Self::Resend | Self::Cancel => None,
        }
    }

    /// Every problem that it may be answered.
    fn problems(self) -> Vec<ProblemKind> {
        use ProblemKind as P;
        let always =
            [P::Unauthorized, P::Forbidden, P::MethodNotAllowed, P::Internal, P::ReducedCapacity];
        let of_bodies: &[P] = match self {
            Self::Find => &[],
            Self::Resend | Self::Cancel => &[P::MalformedBody, P::RequestTimeout, P::TooLarge],
            Self::Start | Self::Check | Self::CheckByPhone | Self::Receipt => &[
                P::MalformedBody,
                P::RequestTimeout,
                P::TooLarge,
                P::UnsupportedMediaType,
                P::Invalid,
            ],
        };
        let of_repeats: &[P] = if self.is_repeatable() {
            &[P::Invalid, P::IdempotencyRunning, P::IdempotencyMismatch]
        } else {
            &[]
        };
        let own: &[P] = match self {
            Self::Start => {
                &[P::RegionNotAllowed, P::NumberTypeNotAllowed, P::AbnormalUsage, P::QuotaExceeded]
            }
            Self::Find | Self::Receipt => &[P::NotFound],
            Self::Check => &[P::NotFound, P::AlreadyApproved, P::Gone, P::QuotaExceeded],
            Self::CheckByPhone => &[P::QuotaExceeded],
            Self::Resend => {
                &[P::NotFound, P::AlreadyApproved, P::Gone, P::AbnormalUsage, P::QuotaExceeded]
            }
            Self::Cancel => &[P::NotFound, P::AlreadyApproved, P::Gone],
        };
        let mut problems = [&always[..], of_bodies, of_repeats, own].concat();
        problems.sort();
        problems.dedup();
        problems
    }
}

fn described(operation: Operation, settings: &V1Settings) -> Described {
    let mut described = OperationBuilder::new()
        .operation_id(Some(operation.id()))
        .tag(operation.tag())
        .summary(Some(operation.summary()))
        .description(Some(format!(
            "{} Scope of the API key: {}.",
            operation.description(),
            operation.scope().as_str()
        )));
    described = described.securities(Some(key(settings.auth != ApiAuth::None)));
    if operation.has_id() {
        described = described.parameter(id_parameter());
    }
    if operation.is_repeatable() {
        described = described.parameter(idempotency_key());
    }
    described = described.request_body(operation.request().map(body));
    described = described.response(operation.success().as_str(), success(operation));
    let problems = operation.problems();
    let mut statuses: Vec<StatusCode> = problems.iter().map(|kind| kind.meaning().status).collect();
    statuses.sort();
    statuses.dedup();
    for status in statuses {
        let kinds = problems.iter().copied().filter(|kind| kind.meaning().status == status);
        described = described.response(status.as_str(), problem(&kinds.collect::<Vec<_>>()));
    }
    described.build()
}

/// A client can send a key also where none is needed: the next server may want one.
fn key(is_needed: bool) -> Vec<SecurityRequirement> {
    let none = (!is_needed).then(SecurityRequirement::default);
    none.into_iter().chain([SecurityRequirement::new::<_, [&str; 0], &str>(BEARER, [])]).collect()
}

fn id_parameter() -> Parameter {
    ParameterBuilder::new()
        .name("id")
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some("The id of a verification, as its start answered it."))
        .schema(Some(string()))
        .build()
}

fn idempotency_key() -> Parameter {
    ParameterBuilder::new()
        .name(canonical(IDEMPOTENCY_KEY))
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(
            "The same key and body within 24 hours: the answer of before, and nothing is done \
             again. Answers 403, 415, 429 and 5xx are not kept; after a 5xx another body is \
             refused.",
        ))
        .schema(Some(
            ObjectBuilder::from(pattern("^[!-~]+$")).min_length(Some(1)).max_length(Some(MAX_KEY)),
        ))
        .build()
}

/// Header names are written so where people read them.
fn canonical(name: &str) -> String {
    let part = |part: &str| part[..1].to_ascii_uppercase() + &part[1..];
    name.split('-').map(part).collect::<Vec<_>>().join("-")
}

fn body(schema: &str) -> RequestBody {
    RequestBodyBuilder::new().required(Some(Required::True)).content(JSON, content(schema)).build()
}

fn content(schema: &str) -> Content {
    ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build()
}

fn success(operation: Operation) -> Response {
    let mut response = ResponseBuilder::new()
        .description(operation.success_says())
        .header("Cache-Control", header(constant("no-store"), "Nothing of it is stored."));
    if let Some(answer) = operation.answer() {
        response = response.content(JSON, content(answer));
    }
    if operation.is_repeatable() {
        let replayed = header(constant("true"), "Only where the answer is one of before.");
        response = response.header("Idempotent-Replayed", replayed);
    }
    if operation == Operation::Start {
        let location = pattern("^/v1/verifications/ver_[0-9a-f]{30}00$");
        response = response.header("Location", header(location, "Where the verification is."));
        let next = [Operation::Find, Operation::Check, Operation::Resend, Operation::Cancel];
        for next in next {
            let link = LinkBuilder::new()
                .operation_id(next.id())
                .parameter("id", "$response.body#/id")
                .description(next.summary());
            response = response.link(next.id(), link.build());
        }
    }
    response.build()
}

/// One answer for all kinds of one status, with an example of each.
fn problem(kinds: &[ProblemKind]) -> Response {
    let titles: Vec<&str> = kinds.iter().map(|kind| kind.meaning().title).collect();
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .examples_from_iter(kinds.iter().map(|kind| {
            let example = ExampleBuilder::new().value(Some(problem_example(*kind)));
            (kind.code(), RefOr::from(example.build()))
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
        "type": meaning.uri,
        "title": meaning.title,
        "status": meaning.status.as_u16(),
        "detail": meaning.detail,
        "instance": "/v1/verifications",
        "code": kind.code(),
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
    let seconds = || ("Retry-After", header(seconds(), "Until then."));
    let text = |name, says| (name, header(string(), says));
    match kind {
        ProblemKind::Unauthorized => vec![text("WWW-Authenticate", "Bearer.")],
        ProblemKind::MethodNotAllowed => vec![text("Allow", "The methods of the path.")],
        ProblemKind::QuotaExceeded => vec![
            seconds(),
            text("RateLimit-Policy", "All policies that the request was held against."),
            text("RateLimit", "Those that are used up, and for how long."),
        ],
        ProblemKind::ReducedCapacity => vec![seconds()],
        _ => Vec::new(),
    }
}

fn header(schema: Object, description: &str) -> Header {
    HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build()
}

/// `POST /api`
fn sending(id: &str, settings: &V1Settings) -> Described {
    let refused =
        |says: &str| ResponseBuilder::new().description(says).content(JSON, content("Refusal"));
    let retry = || header(seconds(), "Until then.");
    let sent = ObjectBuilder::from(string()).examples([json!("message successfuly sended")]);
    let sent = ContentBuilder::new().schema(Some(sent)).build();
    let sent = ResponseBuilder::new().description("The code will be sent").content(JSON, sent);
    let mut described = OperationBuilder::new()
        .operation_id(Some(id))
        .tag("messages")
        .summary(Some("Send a code to a phone"))
        .description(Some("The code can be checked by phone. Scope of the API key: send."))
        .request_body(Some(body("Send")))
        .response("200", sent)
        .response("400", refused("The body cannot be used"))
        .response(
            "401",
            refused("API key needed").header("WWW-Authenticate", header(string(), "Bearer.")),
        )
        .response("403", refused("API key lacks the scope"))
        .response(
            "405",
            refused("Method not allowed")
                .header("Allow", header(string(), "The methods of the path.")),
        )
        .response("408", refused("The body took too long"))
        .response("429", refused("Too many messages to this number").header("Retry-After", retry()))
        .response("500", refused("Internal error"))
        .response("503", refused("Temporarily unavailable").header("Retry-After", retry()));
    described = described.securities(Some(key(settings.auth == ApiAuth::All)));
    described.build()
}

/// `GET /openapi.json`
fn describing() -> Described {
    let object = ContentBuilder::new().schema(Some(ObjectBuilder::new())).build();
    let found = ResponseBuilder::new().description("OpenAPI 3.1").content(JSON, object);
    OperationBuilder::new()
        .operation_id(Some("getDescription"))
        .tag("description")
        .summary(Some("This description"))
        .response("200", found.build())
        .response("405", problem(&[ProblemKind::MethodNotAllowed]))
        .build()
}

fn components(settings: &V1Settings) -> utoipa::openapi::ComponentsBuilder {
    utoipa::openapi::ComponentsBuilder::from(Components::new())
        .schema("Start", start(settings))
        .schema("Check", ObjectBuilder::new().property("code", code()).required("code"))
        .schema(
            "CheckByPhone",
            ObjectBuilder::new()
                .property("phone", phone(settings))
                .property("code", code())
                .required("phone")
                .required("code"),
        )
        .schema("Receipt", receipt())
        .schema(
            "Send",
            ObjectBuilder::new().property("phone", pattern(API_PHONE)).required("phone"),
        )
        .schema("Refusal", ObjectBuilder::new().property("error", string()).required("error"))
        .schema("Verification", verification())
        .schema("VerificationEvent", event())
        .schema("Checked", checked())
        .schema("CheckedByPhone", checked_by_phone())
        .schema("Problem", problem_schema())
        .schema("Fault", fault())
}

fn start(settings: &V1Settings) -> Object {
    let locale = ObjectBuilder::from(string())
        .min_length(Some(2))
        .max_length(Some(MAX_LOCALE))
        .description(Some(
            "The language of the text, as a language tag (RFC 5646). An underscore is taken for a \
             hyphen, and extensions are ignored: en-US-u-ca-gregory and en_US.UTF-8 mean en-US. \
             A language without a text of its own gets the default text.",
        ))
        .examples([json!("de-AT")]);
    // No `default`: a client would send it for ever, also when the setting has changed.
    let ttl = whole(*TTL.start(), *TTL.end()).description(Some(format!(
        "Seconds for which the code is good. If it is left out, this server's setting holds: {}.",
        settings.ttl.as_secs()
    )));
    let length = whole(*CODE_LENGTH.start(), *CODE_LENGTH.end()).description(Some(format!(
        "Digits of the code. If it is left out, this server's setting holds: {}.",
        settings.code_length.get()
    )));
    let template = ObjectBuilder::from(string()).description(Some(format!(
        "What the text is for. This server has: {}.",
        purposes(settings).join(", ")
    )));
    let ip = ObjectBuilder::from(string())
        .description(Some(if settings.require_ip {
            "The end user's IPv4 or IPv6 address, by which messages are limited. Required here."
        } else {
            "The end user's IPv4 or IPv6 address, by which messages are limited."
        }))
        .examples([json!("192.0.2.1")]);
    let key = ObjectBuilder::from(string()).min_length(Some(1)).max_length(Some(MAX_METADATA_KEY));
    let value = ObjectBuilder::from(string()).max_length(Some(MAX_METADATA_VALUE));
    let metadata = ObjectBuilder::new()
        .property_names(Some(Schema::Object(key.build())))
        .additional_properties(Some(value))
        .max_properties(Some(MAX_METADATA))
        .description(Some("Kept with the verification and told with it."));
    let start = ObjectBuilder::new()
        .property("phone", phone(settings))
        .property("locale", locale)
        .property("ttl", ttl)
        .property("code_length", length)
        .property("template", template)
        .property("ip", ip)
        .property("metadata", metadata)
        .property("limits", custom_limits(settings))
        .required("phone");
    if settings.require_ip { start.required("ip") } else { start }.build()
}

fn receipt() -> Object {
    let id = ObjectBuilder::from(string())
        .format(Some(SchemaFormat::Custom("uuid".to_owned())))
        .description(Some("Of the message, as the gateway got it."));
    let statuses = Receipt::ALL.map(|receipt| json!(receipt.as_str()));
    ObjectBuilder::new()
        .property("id", id)
        .property("status", enumerated(statuses.into()))
        .required("id")
        .required("status")
        .build()
}

fn custom_limits(settings: &V1Settings) -> Object {
    let key = ObjectBuilder::from(pattern("^[^\\u0000-\\u001f\\u007f-\\u009f]+$"))
        .min_length(Some(1))
        .max_length(Some(MAX_LIMIT_KEY));
    let names: Vec<&str> = settings.limits.custom.keys().map(CustomLimit::as_str).collect();
    let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    ObjectBuilder::new()
        .additional_properties(Some(key))
        .description(Some(format!(
            "Keys of the limits that are set up by name; others are refused. This server has: \
             {known}."
        )))
        .build()
}

/// The purposes that there are texts for.
fn purposes(settings: &V1Settings) -> Vec<String> {
    let named = settings.templates.measures();
    let mut purposes: Vec<String> =
        named.iter().filter_map(|(name, _)| Some(name.split_once('/')?.0.to_owned())).collect();
    purposes.push("default".to_owned());
    purposes.sort_unstable();
    purposes.dedup();
    purposes
}

fn phone(settings: &V1Settings) -> Object {
    let form = match settings.default_region {
        None => "The number in international form; the + may be left out.",
        Some(_) => "The number in international form, or as it is dialled in the default region.",
    };
    let says = format!(
        "{form} It must be a number that a numbering plan has. Spaces, brackets, dashes, dots, \
         slashes, invisible characters and a leading tel: are ignored, and digits of every script \
         are taken."
    );
    typed()
        .min_length(Some(4))
        .description(Some(says))
        .examples([json!("+79991234567"), json!("+7 (999) 123-45-67")])
        .build()
}

fn code() -> Object {
    typed()
        .min_length(Some(4))
        .description(Some(
            "The code as the user typed it: 4 to 10 digits. Spaces, line breaks, dashes and \
             invisible characters are ignored, and digits of every script are taken.",
        ))
        .examples([json!("482915")])
        .build()
}

/// A text that people type.
fn typed() -> ObjectBuilder {
    ObjectBuilder::from(string()).max_length(Some(MAX_TYPED))
}

fn verification() -> Object {
    let resend_after = ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::String, Type::Null]))
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .description(Some("From when on a resend is sent; null: there will be none."));
    let metadata = ObjectBuilder::new().additional_properties(Some(string_schema())).description(
        Some("Shown to keys with the scope read or admin, and to the key that began it."),
    );
    let events = ArrayBuilder::new().items(Ref::from_schema_name("VerificationEvent"));
    let test = ObjectBuilder::new()
        .schema_type(Type::Boolean)
        .description(Some("Only where it is one of a test number: nothing is sent."));
    ObjectBuilder::new()
        .property("id", string())
        .property("status", known(&["pending", "approved", "expired", "canceled"]))
        .property("phone", said(string(), "Masked: +7999*****67."))
        .property("channel", known(&["sms"]))
        .property("expires_at", time())
        .property("resend_after", resend_after)
        .property("attempts_left", count())
        .property("sends_left", count())
        .property("metadata", metadata)
        .property("test", test)
        .property("events", events)
        .required("id")
        .required("status")
        .required("phone")
        .required("channel")
        .required("expires_at")
        .required("resend_after")
        .required("attempts_left")
        .required("sends_left")
        .required("events")
        .build()
}

fn event() -> Object {
    // Of what was blocked there is no verification.
    let kinds = EventKind::ALL.into_iter().filter(|kind| *kind != EventKind::Blocked);
    let kinds: Vec<&str> = kinds.map(EventKind::as_str).collect();
    ObjectBuilder::new()
        .property("type", known(&kinds))
        .property("at", time())
        .required("type")
        .required("at")
        .build()
}

/// One schema for the right and the wrong code: generators do not tell two apart by the value of
/// `valid`.
fn checked() -> Object {
    ObjectBuilder::new()
        .property("valid", valid())
        .property("status", known(&["approved", "pending"]))
        .property("attempts_left", said(count(), "Only if the code is wrong."))
        .required("valid")
        .required("status")
        .build()
}

fn checked_by_phone() -> Object {
    ObjectBuilder::new()
        .property("valid", valid())
        .property("status", said(string(), "approved, if the code is right; else it is left out."))
        .required("valid")
        .build()
}

fn valid() -> Object {
    let boolean = ObjectBuilder::new().schema_type(Type::Boolean);
    boolean.description(Some("Whether the code is right.")).build()
}

fn problem_schema() -> Object {
    let types = ProblemKind::ALL.map(|kind| kind.meaning().uri);
    let codes = ProblemKind::ALL.map(ProblemKind::code);
    let policies = ArrayBuilder::new()
        .items(RefOr::from(string_schema()))
        .description(Some("Of quota-exceeded: the limits that are used up."));
    let errors = ArrayBuilder::new()
        .items(Ref::from_schema_name("Fault"))
        .description(Some("Of invalid: the rules that the request breaks."));
    ObjectBuilder::new()
        .property("type", said(known(&types), "Stable; tell problems apart by it."))
        .property("title", string())
        .property("status", count())
        .property("detail", said(string(), "Repeats nothing of the request."))
        .property("instance", said(string(), "The path of the request."))
        .property("code", said(known(&codes), "The last segment of type."))
        .property("errors", errors)
        .property("scope", said(string(), "Of forbidden: the scope that the API key lacks."))
        .property("verification_status", said(string(), "Of gone: expired or canceled."))
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
                .description(Some("Where in the body, as a JSON pointer.")),
        )
        .property("header", string())
        .property("detail", ObjectBuilder::from(string()).description(Some("The rule.")));
    fault.required("detail").build()
}

fn string() -> Object {
    Object::with_type(Type::String)
}

fn string_schema() -> Schema {
    Schema::Object(string())
}

fn pattern(pattern: &str) -> Object {
    ObjectBuilder::from(string()).pattern(Some(pattern)).build()
}

fn enumerated(values: Vec<Value>) -> Object {
    ObjectBuilder::from(string()).enum_values(Some(values)).build()
}

fn constant(text: &str) -> Object {
    enumerated(vec![json!(text)])
}

/// A text whose values may become more, which an `enum` forbids.
fn known(values: &[&str]) -> Object {
    said(string(), &format!("Known values: {}.", values.join(", ")))
}

/// With one more thing said of it.
fn said(object: Object, says: &str) -> Object {
    let before = object.description.clone().map(|before| format!(" {before}")).unwrap_or_default();
    ObjectBuilder::from(object).description(Some(format!("{says}{before}"))).build()
}

/// A number in an answer: its greatest may be set up otherwise.
fn count() -> Object {
    let least = utoipa::Number::from(0_usize);
    ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(least)).build()
}

fn whole(least: u64, most: u64) -> ObjectBuilder {
    let number = |number: u64| utoipa::Number::from(usize::try_from(number).unwrap_or(usize::MAX));
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(number(least)))
        .maximum(Some(number(most)))
}

fn seconds() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(1))
        .description(Some("Seconds."))
        .build()
}

fn time() -> Object {
    ObjectBuilder::from(string())
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .build()
}
