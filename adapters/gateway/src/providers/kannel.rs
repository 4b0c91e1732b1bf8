//! Kannel, the gateway that an operator runs.
//!
//! Sources: the user guide of Kannel 1.4.5, "Using the HTTP interface to send SMS messages" and
//! "Delivery reports"; Kannel 1.4.5 of Debian with its fake SMSC, which the tests run. The message is
//! posted as text with headers `X-Kannel-…`, so that neither code nor password is in a URL.

use application::ports::{Accepted, GatewayReceipt, Receipt, Reported, SendError};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request,
    header::{CONTENT_TYPE, InvalidHeaderValue},
};

use crate::{
    answer::Answer,
    fields::{Fields, Secret},
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused},
    request::{BaseUrl, sensitive},
    spec::{Field, FieldKind, ProviderSpec},
};

#[cfg(test)]
mod tests;

/// The default of `sendsms-url`.
const PATH: &str = "/cgi-bin/sendsms";

/// Delivered (1), undelivered (2) and rejected by the SMSC (16).
const FINAL_STATES: HeaderValue = HeaderValue::from_static("19");

/// The beginnings of answers with status 400 that the settings or the route cause, not the message.
const OUR_FAULTS: &[&str] = &["Sender missing", "Account field", "DLR-", "Validity", "Priority"];

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "kannel",
    title: "Kannel",
    sender: true,
    params: &[],
    fields: &[
        Field::required("url", FieldKind::Url, "smsbox, without `/cgi-bin/sendsms`"),
        Field::required("username", FieldKind::Text, "`username` of the `sendsms-user`"),
        Field::required("password", FieldKind::Secret, "`password` of the `sendsms-user`"),
        Field::optional(
            "from",
            FieldKind::Text,
            "The sender. Without it, Kannel needs one of its own",
        ),
        Field::optional("smsc", FieldKind::Text, "`smsc-id` of the connection to send through"),
    ],
    make,
};

#[derive(Debug)]
struct Kannel {
    url: BaseUrl,
    username: String,
    password: Secret,
    from: Option<String>,
    smsc: Option<String>,
}

fn make(fields: &mut Fields<'_>) -> Option<Box<dyn Provider>> {
    let (url, username) = (fields.url("url"), fields.text("username"));
    let password = fields.secret("password");
    let (from, smsc) = (fields.text("from"), fields.text("smsc"));
    Some(Box::new(Kannel { url: url?, username: username?, password: password?, from, smsc }))
}

impl Provider for Kannel {
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let mut request = Request::new(Bytes::copy_from_slice(sms.text().as_bytes()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.at(PATH);
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=UTF-8"));
        headers.insert("x-kannel-charset", HeaderValue::from_static("UTF-8"));
        headers.insert("x-kannel-username", sensitive(&self.username));
        headers.insert("x-kannel-password", sensitive(self.password.expose()));
        // Kannel does not choose the alphabet: with 0, it would write Cyrillic as question marks.
        let coding = if sms.is_unicode() { "2" } else { "0" };
        headers.insert("x-kannel-coding", HeaderValue::from_static(coding));
        // Rounded down, because a code must not arrive after its end.
        headers.insert("x-kannel-validity", (sms.validity_seconds(60, u64::MAX) / 60).into());
        insert(headers, "x-kannel-to", Some(&sms.e164()));
        insert(headers, "x-kannel-from", sms.sender(self.from.as_deref()));
        insert(headers, "x-kannel-smsc", self.smsc.as_deref());
        if let Some(callback) = sms.callback() {
            headers.insert("x-kannel-dlr-mask", FINAL_STATES);
            insert(headers, "x-kannel-dlr-url", Some(&dlr_url(callback)));
        }
        request
    }

    /// The texts are those of smsbox 1.4.5. `0:` is accepted, and `3:` is queued until the connection
    /// to the SMSC is back.
    ///
    /// "Not routable" is an outage of the SMSC, whatever the number, although the text continues with
    /// "Do not try again".
    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        let text = answer.text().unwrap_or_default();
        let begins = |start: &&str| text.starts_with(*start);
        match answer.status.as_u16() {
            200..=299 if ["0:", "3:"].iter().any(begins) => Ok(Accepted::default()),
            400 if begins(&"Number(s)") => Err(answer.unroutable("denied")),
            400 if OUR_FAULTS.iter().any(begins) => Err(answer.misconfigured("request")),
            403 if begins(&"Not routable") => Err(answer.unavailable("not-routable")),
            _ => Err(answer.refusal("")),
        }
    }

    /// Kannel calls the URL that [`dlr_url`] makes.
    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        let id = call.id().ok_or(ReceiptRefused::Unreadable)?;
        let pairs = call.query_pairs();
        let value = |name| pairs.iter().find(|(key, _)| key == name).map(|(_, it)| it.as_str());
        let receipt = match value("status") {
            Some("1") => Receipt::Delivered,
            // No SMSC: Kannel answered "Not routable" to the request, and does not have the message.
            Some("16") if value("smsc") == Some("") => return Ok(Vec::new()),
            Some("2" | "16") => Receipt::Undelivered,
            Some("4" | "8") => return Ok(Vec::new()),
            _ => return Err(ReceiptRefused::Unreadable),
        };
        Ok(vec![GatewayReceipt { of: Reported::Message(id), receipt }])
    }
}

/// Inserts a header, unless the value has characters that a header cannot have. A sender of a route
/// may have them; Kannel then has no sender, and says so.
fn insert(headers: &mut HeaderMap, name: &'static str, value: Option<&str>) {
    let value: Option<Result<HeaderValue, InvalidHeaderValue>> =
        value.map(|value| HeaderValue::from_bytes(value.as_bytes()));
    if let Some(Ok(value)) = value {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// Returns the URL that Kannel calls, with its escapes for the state and the SMSC.
///
/// `%A`, the answer of the SMSC, is left out: in a receipt over SMPP it contains the text of the SMS.
fn dlr_url(callback: &str) -> String {
    let joint = if callback.contains('?') { '&' } else { '?' };
    format!("{}{joint}status=%d&smsc=%i", callback.replace('%', "%%"))
}
