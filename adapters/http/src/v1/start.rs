//! `POST /v1/verifications`

use std::{net::IpAddr, time::Duration};

use application::{Caller, StartError, StartRequest};
use axum::http::StatusCode;
use domain::{
    Code, CodeLength, CustomLimit, Metadata, Number, NumberRefused, NumberType, Origin,
    PhoneNumber, Scope, SendLimits,
};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use utoipa::openapi::{Object, ObjectBuilder, Schema};

use super::{
    body::{Faults, Pairs, members, pairs, phone_text, text, whole},
    cancel, check,
    endpoint::{Endpoint, Method, Model},
    find,
    handler::{V1Handler, V1Request},
    limits::send_policies,
    openapi::schema::{self, pattern, string},
    problem::{Fault, Problem, ProblemKind},
    reply::Reply,
    resend,
    settings::V1Settings,
    verification::{VERIFICATION, shown},
};
use crate::numbering;

pub(super) static ENDPOINT: Endpoint = Endpoint {
    operation_id: "startVerification",
    method: Method::Post,
    route: "/v1/verifications",
    scope: Scope::Send,
    takes_idempotency_key: true,
    success: StatusCode::ACCEPTED,
    tag: "verifications",
    summary: "Start a verification: send a code to a phone",
    description: "The service answers once the verification is stored; the code will be sent. If \
                  the phone has a pending verification, this request resends its code and the \
                  other members are ignored.",
    success_description: "The code will be sent",
    request: Some(&Model { name: "Start", schema: start_schema, parts: &[] }),
    answer: Some(&VERIFICATION),
    problems: &[
        ProblemKind::RegionNotAllowed,
        ProblemKind::NumberTypeNotAllowed,
        ProblemKind::AbnormalUsage,
        ProblemKind::BudgetExhausted,
        ProblemKind::QuotaExceeded,
    ],
    links: &[&find::ENDPOINT, &check::ENDPOINT, &resend::ENDPOINT, &cancel::ENDPOINT],
    handle: |v1, request| Box::pin(start(v1, request)),
};

/// Seconds.
const TTL: std::ops::RangeInclusive<u64> = 60..=3600;
const CODE_LENGTH: std::ops::RangeInclusive<u64> = 4..=10;
const MAX_LOCALE: usize = 100;
const MAX_METADATA: usize = 16;
const MAX_METADATA_KEY: usize = 40;
const MAX_METADATA_VALUE: usize = 256;
const MAX_LIMIT_KEY: usize = 128;

/// A parsed request.
#[derive(Debug)]
struct Start {
    recipient: Recipient,
    locale: Option<String>,
    ttl: Option<Duration>,
    code_length: Option<CodeLength>,
    template: Option<String>,
    ip: Option<IpAddr>,
    metadata: Option<Metadata>,
    limits: Vec<(CustomLimit, String)>,
}

#[derive(Debug)]
enum Recipient {
    Number(Number),
    /// A test number and its code. It need not be in a numbering plan, and obeys no rules.
    Test(PhoneNumber, Code),
}

/// The members before they are parsed. Each is parsed by itself, so that one answer lists all
/// faults. Unknown members are ignored, and `null` means absent.
#[derive(Deserialize)]
struct StartMembers<'a> {
    phone: Option<Value>,
    locale: Option<Value>,
    ttl: Option<Value>,
    code_length: Option<Value>,
    template: Option<Value>,
    ip: Option<Value>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    limits: Option<&'a RawValue>,
}

async fn start(v1: &V1Handler, request: &V1Request<'_>) -> Result<Reply, Problem> {
    let start = parse(request.json()?, &v1.settings)?;
    let order = start_request(start, request, &v1.settings);
    let caller = order.caller.clone();
    let region = order.number.region;
    let is_test = order.test_code.is_some();
    match v1.use_cases.start(order).await {
        Ok(history) => {
            if !is_test {
                v1.metrics.started(Origin::V1, region);
            }
            let reply = shown(v1, StatusCode::ACCEPTED, &history, request);
            Ok(reply.located(history.verification.id))
        }
        Err(StartError::Limited(violations)) => {
            Err(v1.limited(&violations, send_policies(&v1.settings.limits, &caller)))
        }
        Err(StartError::Refused(rule)) => Err(refused(rule)),
        Err(StartError::BudgetExhausted) => Err(ProblemKind::BudgetExhausted.into()),
        Err(StartError::Blocked) => Err(ProblemKind::AbnormalUsage.into()),
        Err(error @ (StartError::Full | StartError::Unavailable(_))) => Err(v1.unavailable(&error)),
    }
}

/// Completes a request with the settings.
fn start_request(start: Start, request: &V1Request<'_>, settings: &V1Settings) -> StartRequest {
    let code_length = start.code_length.unwrap_or(settings.code_length);
    let (number, code_length, test_code) = match start.recipient {
        Recipient::Number(number) => (number, code_length, None),
        Recipient::Test(phone, code) => {
            let length = CodeLength::try_from(code.as_str().len()).unwrap_or(code_length);
            let number = Number { phone, region: None, kind: NumberType::Unknown };
            (number, length, Some(code))
        }
    };
    let template = settings.templates.resolve(start.template.as_deref(), start.locale.as_deref());
    StartRequest {
        number,
        ttl: start.ttl.unwrap_or(settings.ttl),
        code_length,
        template,
        metadata: start.metadata,
        caller: Caller {
            ip: start.ip,
            custom: start.limits,
            api_key: request.api_key,
            trace: request.trace.clone(),
            claim: request.claim.clone(),
        },
        test_code,
    }
}

fn refused(rule: NumberRefused) -> Problem {
    let kind = match rule {
        NumberRefused::Region => ProblemKind::RegionNotAllowed,
        // `/v1` has refused unreadable numbers with 422 before.
        NumberRefused::Type | NumberRefused::Unreadable => ProblemKind::NumberTypeNotAllowed,
    };
    Problem::new(kind)
        .with("errors", json!([{ "pointer": "/phone", "detail": kind.meaning().detail }]))
}

fn parse(body: &[u8], settings: &V1Settings) -> Result<Start, Problem> {
    let members: StartMembers = members(body)?;
    let mut faults = Faults::default();
    let recipient = faults.required("/phone", members.phone, |phone| recipient(phone, settings));
    let locale = faults.optional("/locale", members.locale, locale);
    let ttl = faults.optional("/ttl", members.ttl, ttl);
    let code_length = faults.optional("/code_length", members.code_length, code_length);
    let template = faults.optional("/template", members.template, |template| {
        let known = text(template).filter(|name| settings.templates.has(name));
        known.map(str::to_owned).ok_or("must be the name of a configured template")
    });
    let read_ip = |ip: &Value| {
        let ip = text(ip).and_then(|text| text.trim().parse().ok());
        // IPv4-mapped IPv6 addresses would all share one /64.
        ip.map(|ip: IpAddr| ip.to_canonical()).ok_or("must be an IPv4 or IPv6 address")
    };
    let ip = if settings.require_ip {
        faults.required("/ip", members.ip, read_ip)
    } else {
        faults.optional("/ip", members.ip, read_ip)
    };
    let metadata = members.metadata.map(pairs).transpose()?;
    let metadata = metadata.and_then(|pairs| read_metadata(&mut faults, pairs.as_ref()));
    let limits = members.limits.map(pairs).transpose()?;
    let limits = limits.map(|keys| read_limits(&mut faults, keys.as_ref(), &settings.limits));
    match recipient {
        Some(recipient) if faults.is_empty() => {
            let limits = limits.unwrap_or_default();
            Ok(Start { recipient, locale, ttl, code_length, template, ip, metadata, limits })
        }
        _ => Err(faults.problem()),
    }
}

fn recipient(value: &Value, settings: &V1Settings) -> Result<Recipient, &'static str> {
    let text = phone_text(value)?;
    let of_a_test = |phone| {
        let (phone, code) = settings.test_number(phone)?;
        Some(Recipient::Test(phone.clone(), code.clone()))
    };
    if let Some(recipient) = of_a_test(numbering::as_written(&text)) {
        return Ok(recipient);
    }
    let number = numbering::number(&text, settings.default_region)
        .map_err(numbering::InvalidNumber::detail)?;
    Ok(of_a_test(Some(number.phone.clone())).unwrap_or(Recipient::Number(number)))
}

/// Parses a language tag (RFC 5646), also in the form of POSIX: `en_US.UTF-8`.
///
/// Extensions (`-u-ca-gregory`) and private parts (`-x-…`) do not affect the language and are
/// dropped.
fn locale(value: &Value) -> Result<String, &'static str> {
    const RULE: &str = "must be a language tag such as de-AT";
    let tag = text(value).map(str::trim).filter(|tag| tag.len() <= MAX_LOCALE).ok_or(RULE)?;
    let tag = tag.split(['.', '@']).next().unwrap_or_default().replace('_', "-");
    let is_language = |part: &str| {
        (2..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphabetic())
    };
    let is_part = |part: &str| {
        (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    let mut parts = tag.split('-');
    if !parts.next().is_some_and(is_language) || !parts.all(is_part) {
        return Err(RULE);
    }
    let language: Vec<&str> = tag.split('-').take_while(|part| part.len() > 1).collect();
    Ok(language.join("-"))
}

fn ttl(value: &Value) -> Result<Duration, &'static str> {
    let seconds = whole(value).filter(|seconds| TTL.contains(seconds));
    seconds.map(Duration::from_secs).ok_or("must be a whole number from 60 to 3600")
}

fn code_length(value: &Value) -> Result<CodeLength, &'static str> {
    let digits = whole(value).and_then(|digits| usize::try_from(digits).ok());
    digits.and_then(|digits| digits.try_into().ok()).ok_or("must be a whole number from 4 to 10")
}

fn read_metadata(faults: &mut Faults, pairs: Option<&Pairs>) -> Option<Metadata> {
    const PAIRS: &str = "must have at most 16 members, with names of 1 to 40 characters";
    const VALUE: &str = "must be a string of at most 256 characters";
    let pairs = pairs.filter(|Pairs(pairs)| {
        let named =
            |(name, _): &(String, Value)| (1..=MAX_METADATA_KEY).contains(&name.chars().count());
        pairs.len() <= MAX_METADATA && pairs.iter().all(named)
    });
    let Some(pairs) = pairs else {
        faults.push(Fault::at("/metadata", PAIRS));
        return None;
    };
    let fits = |text: &&str| text.chars().count() <= MAX_METADATA_VALUE;
    let texts = faults.members("/metadata", pairs, VALUE, |value| text(value).filter(fits));
    let json = serde_json::to_string(&texts).expect("texts are JSON");
    Some(Metadata::new(json))
}

fn read_limits(
    faults: &mut Faults,
    keys: Option<&Pairs>,
    settings: &SendLimits,
) -> Vec<(CustomLimit, String)> {
    const VALUE: &str = "must be a string of 1 to 128 characters without control characters";
    let named = |name: &String| -> Option<CustomLimit> {
        name.parse().ok().filter(|name| settings.custom.contains_key(name))
    };
    let known = keys.filter(|Pairs(keys)| keys.iter().all(|(name, _)| named(name).is_some()));
    let Some(keys) = known else {
        faults.push(Fault::at("/limits", "must have names of configured limits only"));
        return Vec::new();
    };
    let fits = |text: &&str| {
        (1..=MAX_LIMIT_KEY).contains(&text.chars().count()) && !text.contains(char::is_control)
    };
    let texts = faults.members("/limits", keys, VALUE, |value| text(value).filter(fits));
    let limit = |(name, key): (&String, &str)| Some((named(name)?, key.to_owned()));
    texts.into_iter().filter_map(limit).collect()
}

fn start_schema(settings: &V1Settings) -> Object {
    let locale = ObjectBuilder::from(string())
        .min_length(Some(2))
        .max_length(Some(MAX_LOCALE))
        .description(Some(
            "The language of the SMS, as a language tag (RFC 5646). Underscores count as hyphens, \
             and extensions are ignored: en-US-u-ca-gregory and en_US.UTF-8 mean en-US. A language \
             without a template gets the default text.",
        ))
        .examples([json!("de-AT")]);
    // No `default`: a generated client would go on sending it after the setting has changed.
    let ttl = schema::whole(*TTL.start(), *TTL.end()).description(Some(format!(
        "How long the code is valid, in seconds. Default on this server: {}.",
        settings.ttl.as_secs()
    )));
    let length =
        schema::whole(*CODE_LENGTH.start(), *CODE_LENGTH.end()).description(Some(format!(
            "The number of digits of the code. Default on this server: {}.",
            settings.code_length.get()
        )));
    let template = ObjectBuilder::from(string()).description(Some(format!(
        "The purpose of the SMS, which selects its text. This server has: {}.",
        purposes(settings).join(", ")
    )));
    let ip = ObjectBuilder::from(string())
        .description(Some(if settings.require_ip {
            "The end user's IPv4 or IPv6 address, for rate limits. Required on this server."
        } else {
            "The end user's IPv4 or IPv6 address, for rate limits."
        }))
        .examples([json!("192.0.2.1")]);
    let key = ObjectBuilder::from(string()).min_length(Some(1)).max_length(Some(MAX_METADATA_KEY));
    let value = ObjectBuilder::from(string()).max_length(Some(MAX_METADATA_VALUE));
    let metadata = ObjectBuilder::new()
        .property_names(Some(Schema::Object(key.build())))
        .additional_properties(Some(value))
        .max_properties(Some(MAX_METADATA))
        .description(Some("Stored with the verification and shown with it."));
    let start = ObjectBuilder::new()
        .property("phone", schema::phone(settings))
        .property("locale", locale)
        .property("ttl", ttl)
        .property("code_length", length)
        .property("template", template)
        .property("ip", ip)
        .property("metadata", metadata)
        .property("limits", limits_schema(settings))
        .required("phone");
    if settings.require_ip { start.required("ip") } else { start }.build()
}

fn limits_schema(settings: &V1Settings) -> Object {
    let key = ObjectBuilder::from(pattern("^[^\\u0000-\\u001f\\u007f-\\u009f]+$"))
        .min_length(Some(1))
        .max_length(Some(MAX_LIMIT_KEY));
    let names: Vec<&str> = settings.limits.custom.keys().map(CustomLimit::as_str).collect();
    let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    ObjectBuilder::new()
        .additional_properties(Some(key))
        .description(Some(format!(
            "Keys for the named rate limits of this server, by the name of the limit. Unknown names \
             are refused. This server has: {known}."
        )))
        .build()
}

/// Returns the purposes that have templates.
fn purposes(settings: &V1Settings) -> Vec<String> {
    let named = settings.templates.measures();
    let mut purposes: Vec<String> =
        named.iter().filter_map(|(name, _)| Some(name.split_once('/')?.0.to_owned())).collect();
    purposes.push("default".to_owned());
    purposes.sort_unstable();
    purposes.dedup();
    purposes
}
