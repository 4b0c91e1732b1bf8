//! SMSC.ru, and smscentre.com, which has the same interface.
//!
//! Sources: the page `api/http` of smscentre.com (the request); the codes, the states and the digest
//! of receipts agree in public implementations. The message is posted, because a query would put code
//! and password into logs. SMSC.ru accepts an id of the caller, but does not document that it
//! recognises a repeated one.

use application::ports::{Accepted, GatewayReceipt, Receipt, Reported, SendError};
use bytes::Bytes;
use http::Request;

use super::digest::{is_same, md5_hex, sha1_hex};
use crate::{
    answer::{Answer, accepted_by_reference, scalar},
    fields::{Fields, Secret},
    provider::{Outgoing, Provider, ReceiptCall, ReceiptRefused},
    request::{BaseUrl, post_form},
    spec::{Field, FieldKind, ProviderSpec},
};

#[cfg(test)]
mod tests;

/// The longest `valid`.
const MAX_VALID_MINUTES: u64 = 24 * 60;

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "smsc",
    title: "SMSC.ru",
    sender: true,
    params: &[],
    fields: &[
        Field::optional("login", FieldKind::Text, "The login, with `password`"),
        Field::optional("password", FieldKind::Secret, "The password of the account or of the API"),
        Field::optional(
            "api_key",
            FieldKind::Secret,
            "The API key, instead of `login` and `password`",
        ),
        Field::optional(
            "from",
            FieldKind::Text,
            "The sender, which SMSC.ru has approved. Without it: the account's default",
        ),
        Field::optional(
            "receipt_secret",
            FieldKind::Secret,
            "The secret word of the account that signs receipts. Without it, receipts need the token in the URL",
        ),
        Field::with_default(
            "url",
            FieldKind::Url,
            "https://smsc.ru",
            "The base URL, such as `https://www2.smsc.ru` or `https://smscentre.com`",
        ),
    ],
    make,
};

#[derive(Debug)]
struct Smsc {
    credentials: Credentials,
    from: Option<String>,
    receipt_secret: Option<Secret>,
    url: BaseUrl,
}

#[derive(Debug)]
enum Credentials {
    Key(Secret),
    Login(String, Secret),
}

fn make(fields: &mut Fields<'_>) -> Option<Box<dyn Provider>> {
    let credentials = credentials(fields);
    let (from, receipt_secret) = (fields.text("from"), fields.secret("receipt_secret"));
    let url = fields.url("url");
    Some(Box::new(Smsc { credentials: credentials?, from, receipt_secret, url: url? }))
}

fn credentials(fields: &mut Fields<'_>) -> Option<Credentials> {
    let (login, password) = (fields.text("login"), fields.secret("password"));
    match (fields.secret("api_key"), login, password) {
        (Some(key), None, None) => Some(Credentials::Key(key)),
        (None, Some(login), Some(password)) => Some(Credentials::Login(login, password)),
        _ => {
            fields.problem("api_key", "must be set, or else `login` and `password`");
            None
        }
    }
}

impl Provider for Smsc {
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let valid = valid(sms.validity_seconds(60, MAX_VALID_MINUTES * 60) / 60);
        let mut pairs = match &self.credentials {
            Credentials::Key(key) => vec![("apikey", key.expose())],
            Credentials::Login(login, password) => {
                vec![("login", login.as_str()), ("psw", password.expose())]
            }
        };
        pairs.extend([
            ("phones", sms.digits()),
            ("mes", sms.text()),
            ("charset", "utf-8"),
            ("fmt", "3"),
            ("valid", &*valid),
        ]);
        pairs.extend(sms.sender(self.from.as_deref()).map(|from| ("sender", from)));
        post_form(self.url.at("/sys/send.php"), &pairs)
    }

    /// Errors come with status 200 and `error_code`.
    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        let Some(body) = answer.json().filter(|_| answer.is_success()) else {
            return Err(answer.refusal(""));
        };
        if let Some(code) = scalar(&body["error_code"]) {
            return Err(refused(answer, &code));
        }
        // Without a count of SMS, nothing says that it was accepted.
        match (scalar(&body["id"]), scalar(&body["cnt"])) {
            (Some(id), Some(_)) => Ok(accepted_by_reference(id)),
            _ => Err(answer.ambiguous("")),
        }
    }

    /// A receipt is a GET or a post of a form. Its `sha1` and `md5` are digests of
    /// `id:phone:status:secret`.
    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        let mut pairs = call.form_pairs();
        pairs.extend(call.query_pairs());
        let value = |name| pairs.iter().find(|(key, _)| key == name).map(|(_, it)| it.as_str());
        if let Some(secret) = &self.receipt_secret {
            check_digest(secret, value)?;
        }
        let (Some(id), Some(status)) = (value("id"), value("status")) else {
            return Err(ReceiptRefused::Unreadable);
        };
        let of = Reported::Reference(id.to_owned());
        Ok(state(status).map(|receipt| GatewayReceipt { of, receipt }).into_iter().collect())
    }

    fn verifies_receipts(&self) -> bool {
        self.receipt_secret.is_some()
    }
}

/// Checks `sha1` if it is there, and else `md5`.
fn check_digest<'a>(
    secret: &Secret,
    value: impl Fn(&'static str) -> Option<&'a str>,
) -> Result<(), ReceiptRefused> {
    let part = |name| value(name).unwrap_or_default();
    let signed = format!("{}:{}:{}:{}", part("id"), part("phone"), part("status"), secret.expose());
    let (given, expected) = match (value("sha1"), value("md5")) {
        (Some(given), _) => (given, sha1_hex(&signed)),
        (None, Some(given)) => (given, md5_hex(&signed)),
        (None, None) => return Err(ReceiptRefused::Unsigned),
    };
    if is_same(&expected, given) { Ok(()) } else { Err(ReceiptRefused::BadSignature) }
}

/// Writes minutes as `hh:mm`.
fn valid(minutes: u64) -> String {
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}

/// Returns the class of an `error_code`.
fn refused(answer: &Answer<'_>, code: &str) -> SendError {
    match code {
        // Parameters, credentials or address, credit, a block of our address, date, text or sender.
        "1" | "2" | "3" | "4" | "5" | "6" => answer.misconfigured(code),
        "7" => answer.rejected(code),
        // The same text to the same number within a minute, or too many requests at a time.
        "9" => answer.throttled(code),
        // 8: it cannot be delivered to this number.
        _ => answer.unroutable(code),
    }
}

/// Returns the final state that a status stands for.
fn state(status: &str) -> Option<Receipt> {
    match status {
        // Delivered, read, and a link was followed.
        "1" | "2" | "4" => Some(Receipt::Delivered),
        // Expired, undeliverable, a wrong number, forbidden, no credit, an unavailable number.
        "3" | "20" | "22" | "23" | "24" | "25" => Some(Receipt::Undelivered),
        _ => None,
    }
}
