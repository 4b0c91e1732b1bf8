//! Any provider with an HTTP interface, described by the settings alone.
//!
//! docs/gateways.md documents the settings. No vendor is confirmed by this file: the operator takes
//! the facts from the documents of the provider.

mod path;
mod receipts;
mod rules;
mod settings;
mod signature;
mod spec;
mod template;
mod tree;
mod variables;

use std::fmt;

use application::ports::{Accepted, GatewayReceipt, SendError};
use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, Request, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use minijinja::Value;

pub(crate) use self::spec::SPEC;
use self::{
    path::Path,
    receipts::Receipts,
    rules::{Content, Fit, Format, Rule},
    signature::Signature,
    template::{Broken, Template, Templates},
    tree::{Tree, pairs},
    variables::Own,
};
use crate::{
    answer::Answer,
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused, ReceiptReply},
    request,
};

#[cfg(test)]
mod tests;

/// A provider that the settings describe.
struct Described {
    templates: Templates,
    method: Method,
    url: Template,
    query: Vec<(String, Tree)>,
    headers: Vec<(HeaderName, Tree)>,
    body: Body,
    authorization: Option<HeaderValue>,
    signature: Option<Signature>,
    own: Own,
    meaning: Meaning,
    deduplicates: bool,
    receipts: Option<Receipts>,
}

#[derive(Debug)]
enum Body {
    None,
    Json(Tree),
    Form(Vec<(String, Tree)>),
}

/// The meaning of answers.
#[derive(Debug)]
struct Meaning {
    format: Format,
    rules: Vec<Rule>,
    /// The place of the provider's id.
    id: Option<Path>,
    /// The text in front of the provider's id.
    id_after: Option<String>,
    /// The place of the provider's code of an error.
    code: Option<Path>,
    by_reference: bool,
}

/// The reason why there is no request for an SMS.
#[derive(Debug, thiserror::Error)]
enum NoRequest {
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("the template url gives no URL")]
    NoUrl,
}

impl Described {
    fn made(&self, variables: &Value) -> Result<Request<Bytes>, NoRequest> {
        let (content_type, body) = self.rendered_body(variables)?;
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri(variables)?;
        let headers = request.headers_mut();
        headers.extend(content_type.map(|value| (CONTENT_TYPE, value)));
        headers.extend(self.authorization.clone().map(|value| (AUTHORIZATION, value)));
        for (name, tree) in &self.headers {
            let value = tree.render(&self.templates, variables)?;
            if let Some(text) = value.as_ref().and_then(settings::plain) {
                headers.insert(name.clone(), header_value(&text));
            }
        }
        if let Some(signature) = &self.signature {
            let variables = variables::of_request(variables, &request);
            let value = signature.make(&self.templates, &variables)?;
            request.headers_mut().insert(signature.header.clone(), header_value(&value));
        }
        Ok(request)
    }

    fn rendered_body(&self, variables: &Value) -> Result<(Option<HeaderValue>, Bytes), Broken> {
        Ok(match &self.body {
            Body::None => (None, Bytes::new()),
            Body::Json(tree) => {
                let body = tree.render(&self.templates, variables)?.unwrap_or_default();
                (Some(HeaderValue::from_static("application/json")), body.to_string().into())
            }
            Body::Form(entries) => {
                let pairs = pairs(entries, &self.templates, variables)?;
                let pairs: Vec<(&str, &str)> =
                    pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
                let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
                (Some(form_type), request::form(&pairs).into())
            }
        })
    }

    fn uri(&self, variables: &Value) -> Result<Uri, NoRequest> {
        let mut url = self.templates.render(&self.url, variables)?;
        let pairs = pairs(&self.query, &self.templates, variables)?;
        if !pairs.is_empty() {
            let pairs: Vec<(&str, &str)> =
                pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&request::form(&pairs));
        }
        url.parse().map_err(|_| NoRequest::NoUrl)
    }
}

impl Meaning {
    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        let content = Content::of(answer, self.format);
        let code = self.code.as_ref().and_then(|path| content.at(path)).unwrap_or_default();
        let reference = self.id.as_ref().and_then(|path| content.at(path));
        let reference =
            reference.or_else(|| self.id_after.as_ref().and_then(|mark| content.after(mark)));
        let is_named = reference.is_some();
        let receipts_by_reference = self.by_reference && is_named;
        let accepted = Accepted { reference, receipts_by_reference };
        for rule in &self.rules {
            match rule.fits(&content) {
                Fit::Yes => return rule.judge(answer, &content, &code, accepted),
                // An answer that seems to be good, and might say the opposite.
                Fit::Unknown if answer.is_success() => {
                    return Err(unclear(answer, &code, "the body cannot be read"));
                }
                Fit::Unknown | Fit::No => {}
            }
        }
        if !answer.is_success() {
            return Err(answer.refusal(&code));
        }
        if is_named || !self.expects_an_id() {
            return Ok(accepted);
        }
        Err(unclear(answer, &code, "no rule matches, and the answer has no message id"))
    }

    fn expects_an_id(&self) -> bool {
        self.id.is_some() || self.id_after.is_some()
    }
}

impl Provider for Described {
    fn prepare(&self, sms: &Outgoing<'_>) -> Result<Request<Bytes>, SendError> {
        self.made(&variables::of(sms, &self.own))
            .map_err(|error| SendError::Misconfigured(format!("not called: {error}")))
    }

    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        self.meaning.judge(answer)
    }

    fn deduplicates(&self) -> bool {
        self.deduplicates
    }

    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        self.receipts
            .as_ref()
            .map_or(Err(ReceiptRefused::Unreadable), |receipts| receipts.of(call, &self.templates))
    }

    fn reports_receipts(&self) -> bool {
        self.receipts.is_some()
    }

    fn verifies_receipts(&self) -> bool {
        self.receipts.as_ref().is_some_and(Receipts::are_signed)
    }

    fn receipt_reply(&self) -> ReceiptReply {
        self.receipts.as_ref().map_or(ReceiptReply::EMPTY, Receipts::reply)
    }
}

/// Leaves out all but the place of the URL, because the rest may contain keys.
impl fmt::Debug for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Described")
            .field("method", &self.method)
            .field("deduplicates", &self.deduplicates)
            .finish_non_exhaustive()
    }
}

/// Returns the outcome of an answer 2xx that the settings do not explain.
fn unclear(answer: &Answer<'_>, code: &str, reason: &str) -> SendError {
    SendError::Ambiguous(format!("{}: {reason}", answer.detail(code)))
}

/// Makes the value of a header. Control characters would end it, so they are left out.
fn header_value(text: &str) -> HeaderValue {
    request::sensitive(&text.chars().filter(|char| !char.is_control()).collect::<String>())
}
