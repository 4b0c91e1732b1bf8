//! AWS End User Messaging SMS (`SendTextMessage` of `sms-voice`, version 2).
//!
//! Confirmed by the model of the service in botocore 1.44.8 (fields, errors and their reasons,
//! kinds of events) and by the test suite of AWS for signatures. The form of an event and of a
//! notification of SNS is from memory. There is no idempotency key.

use std::collections::BTreeMap;

use application::ports::{Accepted, GatewayReceipt, Receipt, Reported, SendError};
use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, Request,
    header::{CONTENT_TYPE, HOST},
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    answer::{Answer, accepted, scalar},
    fields::{Fields, Secret},
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused},
    request::{BaseUrl, authorized, sensitive},
    signing::sigv4::{Signer, amz_date},
    spec::{Field, FieldKind, ProviderSpec},
};

mod events;
#[cfg(test)]
mod tests;

const CONTENT: &str = "application/x-amz-json-1.0";
const TARGET: &str = "PinpointSMSVoiceV2.SendTextMessage";
const X_AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");
const X_AMZ_TARGET: HeaderName = HeaderName::from_static("x-amz-target");
const X_AMZ_SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// The bounds of `TimeToLive`, in seconds.
const VALIDITY: (u64, u64) = (5, 259_200);

/// The name of our id in the context, which AWS repeats in each event.
const MESSAGE_ID: &str = "messager_id";

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "aws",
    title: "AWS End User Messaging SMS",
    sender: true,
    params: &["dlt_entity_id", "dlt_template_id"],
    fields: &[
        Field::required("region", FieldKind::Text, "The region, such as `eu-central-1`."),
        Field::required("access_key_id", FieldKind::Text, "The access key."),
        Field::required(
            "secret_access_key",
            FieldKind::Secret,
            "Its secret. The user needs the right `sms-voice:SendTextMessage`.",
        ),
        Field::optional(
            "session_token",
            FieldKind::Secret,
            "The session token of temporary credentials. They are not renewed.",
        ),
        Field::optional(
            "from",
            FieldKind::Text,
            "The origination identity: a number, a sender id, a pool, or the ARN of one. Without it, \
             AWS chooses one of the account.",
        ),
        Field::optional(
            "configuration_set",
            FieldKind::Text,
            "The configuration set, whose event destination reports deliveries.",
        ),
        Field::optional(
            "topic_arn",
            FieldKind::Text,
            "The SNS topic of that event destination. Without it, receipts are refused.",
        ),
        Field::optional(
            "url",
            FieldKind::Url,
            "The base URL instead of that of the region, `https://sms-voice.{region}.amazonaws.com`.",
        ),
    ],
    make,
};

#[derive(Debug)]
struct Aws {
    url: BaseUrl,
    region: String,
    access_key_id: String,
    secret_access_key: Secret,
    session_token: Option<Secret>,
    from: Option<String>,
    configuration_set: Option<String>,
    topic_arn: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct SendTextMessage<'a> {
    destination_phone_number: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    origination_identity: Option<&'a str>,
    message_body: &'a str,
    message_type: &'static str,
    time_to_live: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    configuration_set_name: Option<&'a str>,
    context: BTreeMap<&'static str, &'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    destination_country_parameters: BTreeMap<&'static str, &'a str>,
}

fn make(fields: &mut Fields<'_>) -> Option<Box<dyn Provider>> {
    let region = fields.text("region");
    let access_key_id = fields.text("access_key_id");
    let secret_access_key = fields.secret("secret_access_key");
    let session_token = fields.secret("session_token");
    let from = fields.text("from");
    let configuration_set = fields.text("configuration_set");
    let topic_arn = fields.text("topic_arn");
    let own = fields.url("url");
    let is_region = |it: &str| it.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if region.as_deref().is_some_and(|region| !is_region(region)) {
        fields.problem("region", "must have letters, digits and dashes only");
        return None;
    }
    if fields.is_set("url") && own.is_none() {
        return None;
    }
    let region = region?;
    let of_region = || BaseUrl::parse(&format!("https://sms-voice.{region}.amazonaws.com"));
    Some(Box::new(Aws {
        url: own.or_else(of_region)?,
        access_key_id: access_key_id?,
        secret_access_key: secret_access_key?,
        session_token,
        from,
        configuration_set,
        topic_arn,
        region,
    }))
}

impl Provider for Aws {
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let (min, max) = VALIDITY;
        let india = [("IN_ENTITY_ID", "dlt_entity_id"), ("IN_TEMPLATE_ID", "dlt_template_id")];
        let india = india.into_iter().filter_map(|(key, name)| Some((key, sms.param(name)?)));
        let body = SendTextMessage {
            destination_phone_number: &sms.e164(),
            origination_identity: sms.sender(self.from.as_deref()),
            message_body: sms.text(),
            message_type: "TRANSACTIONAL",
            time_to_live: sms.validity_seconds(min, max),
            configuration_set_name: self.configuration_set.as_deref(),
            context: [(MESSAGE_ID, sms.id)].into(),
            destination_country_parameters: india.collect(),
        };
        let body = serde_json::to_vec(&body).expect("texts and numbers are JSON");
        self.signed(&amz_date(sms.now), body.into())
    }

    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        let json = answer.json().unwrap_or_default();
        if answer.is_success() {
            let id = scalar(&json["MessageId"]).ok_or_else(|| answer.ambiguous(""))?;
            return Ok(accepted(id));
        }
        let kind = answer.headers.get("x-amzn-errortype").and_then(|it| it.to_str().ok());
        let kind = kind.or_else(|| json["__type"].as_str()).unwrap_or_default();
        // `ns#ThrottlingException`, `ThrottlingException:http://…`
        let kind = kind.split(':').next().unwrap_or_default();
        let kind = kind.rsplit('#').next().unwrap_or_default();
        Err(refusal(answer, kind, &json))
    }

    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        let topic = self.topic_arn.as_deref().ok_or(ReceiptRefused::Unreadable)?;
        let event = events::notified(call, topic)?;
        Ok(event.as_ref().and_then(reported).into_iter().collect())
    }
}

impl Aws {
    /// Makes a request with the headers that Signature Version 4 wants.
    fn signed(&self, date: &str, body: Bytes) -> Request<Bytes> {
        let host = self.url.authority();
        let token = self.session_token.as_ref().map(Secret::expose);
        let mut to_sign = vec![("content-type", CONTENT), ("host", host), ("x-amz-date", date)];
        to_sign.extend(token.map(|token| ("x-amz-security-token", token)));
        to_sign.push(("x-amz-target", TARGET));
        let signer = Signer {
            access_key_id: &self.access_key_id,
            secret_access_key: self.secret_access_key.expose(),
            region: &self.region,
            service: "sms-voice",
        };
        let authorization = signer.authorization("POST", &to_sign, date, &body);

        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.at("/");
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(CONTENT));
        headers.insert(HOST, sensitive(host));
        headers.insert(X_AMZ_DATE, sensitive(date));
        headers.extend(token.map(|token| (X_AMZ_SECURITY_TOKEN, sensitive(token))));
        headers.insert(X_AMZ_TARGET, HeaderValue::from_static(TARGET));
        authorized(request, sensitive(&authorization))
    }
}

/// Returns the outcome by the kind of the error and its reason. AWS answers 400 to most of them.
fn refusal(answer: &Answer<'_>, kind: &str, json: &Value) -> SendError {
    let reason = json["Reason"].as_str().unwrap_or_default();
    let code = if reason.is_empty() { kind } else { reason };
    match kind {
        "ThrottlingException" | "TooManyRequestsException" => answer.throttled(code),
        "InternalServerException" | "InternalFailure" => answer.ambiguous(code),
        "ServiceUnavailable" | "ServiceUnavailableException" => answer.unavailable(code),
        "ValidationException" => validation(answer, code, json),
        "ConflictException" => conflict(answer, code),
        // Credentials, rights, the account, its limits, an identity or a set that does not exist.
        "AccessDeniedException"
        | "ServiceQuotaExceededException"
        | "ResourceNotFoundException"
        | "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "ExpiredTokenException"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "InvalidClientTokenId"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "OptInRequired" => answer.misconfigured(code),
        _ => answer.refusal(code),
    }
}

fn validation(answer: &Answer<'_>, reason: &str, json: &Value) -> SendError {
    let fields = json["Fields"].as_array().map_or(&[][..], Vec::as_slice);
    let is_wrong =
        |name: &str| fields.iter().any(|field| field["Name"].as_str().is_some_and(|it| it == name));
    match reason {
        _ if is_wrong("DestinationPhoneNumber") => answer.rejected(reason),
        _ if is_wrong("OriginationIdentity") || is_wrong("ConfigurationSetName") => {
            answer.misconfigured(reason)
        }
        "INVALID_ARN"
        | "MISSING_PARAMETER"
        | "RESOURCE_NOT_ACCESSIBLE"
        | "UNKNOWN_OPERATION"
        | "CHANNEL_NOT_ENABLED" => answer.misconfigured(reason),
        // The country, or a sender that this country does not allow.
        _ => answer.unroutable(reason),
    }
}

fn conflict(answer: &Answer<'_>, reason: &str) -> SendError {
    match reason {
        "RESOURCE_NOT_ACTIVE"
        | "NUMBER_CAPABILITIES_MISMATCH"
        | "MESSAGE_TYPE_MISMATCH"
        | "REGISTRATION_NOT_COMPLETE" => answer.misconfigured(reason),
        // Opted out, blocked, not verified in the sandbox, no identity for this country.
        _ => answer.unroutable(reason),
    }
}

/// Returns the receipt of an event, if its state is final.
fn reported(event: &Value) -> Option<GatewayReceipt> {
    if event["isFinal"] == false {
        return None;
    }
    let receipt = match event["eventType"].as_str()? {
        "TEXT_DELIVERED" => Receipt::Delivered,
        "TEXT_INVALID"
        | "TEXT_INVALID_MESSAGE"
        | "TEXT_UNREACHABLE"
        | "TEXT_CARRIER_UNREACHABLE"
        | "TEXT_BLOCKED"
        | "TEXT_CARRIER_BLOCKED"
        | "TEXT_SPAM"
        | "TEXT_TTL_EXPIRED"
        | "TEXT_PROTECT_BLOCKED" => Receipt::Undelivered,
        _ => return None,
    };
    let ours = event["context"][MESSAGE_ID].as_str().and_then(|id| id.parse().ok());
    let of = ours
        .map(Reported::Message)
        .or_else(|| scalar(&event["messageId"]).map(Reported::Reference))?;
    Some(GatewayReceipt { of, receipt })
}
