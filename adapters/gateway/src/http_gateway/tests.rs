use std::time::Duration;

use application::ports::Receipt;
use http::{HeaderMap, Method, Request, StatusCode, header::CONTENT_TYPE};
use serde_json::json;

use super::*;
use crate::{
    answer::{accepted, accepted_by_reference, scalar},
    fields::Secret,
    request::{BaseUrl, authorized, bearer, encoded, form, get, post_form, post_json, sensitive},
    spec::{Field, FieldKind, ProviderSpec},
    testing::{
        AMPLE, Fake, Received, Reply, SHORT, answer, assert_tells_nothing, cyrillic, http_gateway,
        judge, judge_with, made, problems, receipt_call, receipts, request_of, routed, sms,
        status_of,
    },
};

/// A provider with one field for each thing that providers do.
static SPEC: ProviderSpec = ProviderSpec {
    name: "example",
    title: "Example",
    sender: true,
    params: &[],
    fields: &[
        Field::required("url", FieldKind::Url, "The base URL."),
        Field::required("token", FieldKind::Secret, "The token."),
        Field::optional("from", FieldKind::Text, "The sender."),
        Field::with_default("format", FieldKind::OneOf(&["json", "form"]), "json", "The body."),
    ],
    make: |fields| {
        let (url, token) = (fields.url("url"), fields.secret("token"));
        let (from, format) = (fields.text("from"), fields.one_of("format"));
        Some(Box::new(Example { url: url?, token: token?, from, is_form: format? == "form" }))
    },
};

#[derive(Debug)]
struct Example {
    url: BaseUrl,
    token: Secret,
    from: Option<String>,
    is_form: bool,
}

impl Provider for Example {
    fn request(&self, sms: &Outgoing<'_>) -> Request<Bytes> {
        let from = sms.sender(self.from.as_deref()).unwrap_or_default();
        let validity = sms.validity_seconds(60, 200).to_string();
        let request = if self.is_form {
            let pairs = [("to", sms.digits()), ("text", sms.text()), ("from", from)];
            post_form(self.url.at("/sms"), &pairs)
        } else {
            let body = json!({
                "id": sms.id, "to": sms.e164(), "text": sms.text(), "from": from,
                "validity": validity, "unicode": sms.is_unicode(), "entity": sms.param("entity"),
                "callback": sms.callback(), "minutes": sms.validity_minutes(1, 60),
            });
            post_json(self.url.at("/sms"), &body)
        };
        authorized(request, bearer(self.token.expose()))
    }

    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        let body = answer.json().unwrap_or_default();
        let code = scalar(&body["code"]).unwrap_or_default();
        match scalar(&body["id"]) {
            Some(id) if answer.is_success() => Ok(accepted_by_reference(id)),
            None if code == "region" => Err(answer.unroutable(&code)),
            _ => Err(answer.refusal(&code)),
        }
    }

    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        match call.header("x-signature") {
            None => return Err(ReceiptRefused::Unsigned),
            Some(signature) if signature != "good" => return Err(ReceiptRefused::BadSignature),
            Some(_) => {}
        }
        let body = call.json().ok_or(ReceiptRefused::Unreadable)?;
        let of = match (call.id(), scalar(&body["ref"])) {
            (Some(id), _) => Reported::Message(id),
            (None, Some(reference)) => Reported::Reference(reference),
            (None, None) => return Err(ReceiptRefused::Unreadable),
        };
        Ok(vec![GatewayReceipt { of, receipt: Receipt::Delivered }])
    }

    fn verifies_receipts(&self) -> bool {
        true
    }

    fn receipt_reply(&self) -> ReceiptReply {
        ReceiptReply::text("100")
    }

    fn status_request(&self, reference: &str) -> Option<Request<Bytes>> {
        Some(get(self.url.with_query(&format!("/sms/{}", encoded(reference)), &[("a", "1 2")])))
    }

    fn judge_status(&self, answer: &Answer<'_>) -> Option<Receipt> {
        (answer.text()? == "delivered").then_some(Receipt::Delivered)
    }
}

/// A provider that has nothing but what is required.
#[derive(Debug)]
struct Plain;

impl Provider for Plain {
    fn request(&self, _: &Outgoing<'_>) -> Request<Bytes> {
        get("http://127.0.0.1:1/".parse().unwrap())
    }

    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, SendError> {
        Err(answer.refusal(""))
    }
}

fn settings(url: &str) -> serde_json::Value {
    json!({"url": url, "token": "s3cret", "from": "Shop"})
}

fn gateway(url: &str, timeout: Duration) -> HttpGateway {
    http_gateway(made(&SPEC, &settings(url)), timeout)
}

/// Refuses what the provider refuses.
fn provider(request: &Received) -> Reply {
    if request.method != "POST" || request.path != "/sms" {
        return Reply::text(404, "");
    }
    if request.header("authorization") != "Bearer s3cret" {
        return Reply::json(401, &json!({"code": "token"}));
    }
    if request.header("content-type") != "application/json" || request.json()["to"].is_null() {
        return Reply::json(400, &json!({"code": 1}));
    }
    Reply::json(200, &json!({"id": "m\u{0}-1"}))
}

#[tokio::test]
async fn accepted_message_has_its_reference_without_control_characters() {
    let fake = Fake::strict(provider).await;

    let outcome = gateway(fake.url(), AMPLE).send(&sms()).await;

    assert_eq!(outcome, Ok(accepted_by_reference("m-1")));
    let [request] = fake.received().try_into().unwrap();
    assert_eq!(request.header("user-agent"), concat!("messager/", env!("CARGO_PKG_VERSION")));
    let expected = json!({
        "id": sms().message.id.to_string(), "to": "+79991234567", "text": "Your code: 482915",
        "from": "Shop", "validity": "200", "unicode": false, "entity": null,
        "callback": sms().callback, "minutes": 5,
    });
    assert_eq!(request.json(), expected);
}

#[tokio::test]
async fn route_gives_sender_and_parameters() {
    let fake = Fake::strict(provider).await;

    gateway(fake.url(), AMPLE).send(&routed("SHOP", &[("entity", "7")])).await.unwrap();

    let [request] = fake.received().try_into().unwrap();
    assert_eq!((&request.json()["from"], &request.json()["entity"]), (&json!("SHOP"), &json!("7")));
}

#[tokio::test]
async fn form_arrives_as_it_was_written() {
    let fake = Fake::scripted([Reply::json(200, &json!({"id": 7}))]).await;
    let table = json!({"url": fake.url(), "token": "t", "format": "form"});
    let gateway = http_gateway(made(&SPEC, &table), AMPLE);

    assert_eq!(gateway.send(&cyrillic()).await, Ok(accepted_by_reference("7")));

    let [request] = fake.received().try_into().unwrap();
    assert_eq!(request.form()[1], ("text".to_owned(), cyrillic().text));
}

#[tokio::test]
async fn refusals_are_outcomes() {
    let huge = "x".repeat(100_000);
    for (reply, expected) in [
        (Reply::json(401, &json!({"code": "token"})), "misconfigured: status 401, code token"),
        (Reply::json(200, &json!({"code": "region"})), "unroutable: status 200, code region"),
        (Reply::json(200, &json!({"code": 7})), "ambiguous: status 200, code 7"),
        (Reply::text(200, ""), "ambiguous: status 200"),
        (Reply::text(200, &huge), "ambiguous: status 200"),
        (Reply::text(302, "").with("location", "/sms"), "misconfigured: status 302"),
        (Reply::text(429, "").with("retry-after", "3"), "throttled: status 429"),
        (Reply::text(400, "79991234567 482915"), "unroutable: status 400"),
        (Reply::Close, "ambiguous: no answer came back"),
    ] {
        let fake = Fake::scripted([reply.clone()]).await;

        let error = gateway(fake.url(), AMPLE).send(&sms()).await.unwrap_err();

        assert!(error.to_string().starts_with(expected), "{reply:?} became {error}");
        assert_eq!(fake.received().len(), 1);
    }
}

#[tokio::test]
async fn no_answer_in_time_is_ambiguous() {
    let fake = Fake::scripted([Reply::Hang]).await;

    let outcome = gateway(fake.url(), SHORT).send(&sms()).await;

    assert_eq!(outcome, Err(SendError::Ambiguous("no answer in time".to_owned())));
}

#[tokio::test]
async fn closed_port_is_unavailable() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);

    let outcome = gateway(&url, AMPLE).send(&sms()).await;

    assert!(matches!(outcome, Err(SendError::Unavailable { .. })), "{outcome:?}");
}

#[tokio::test]
async fn state_is_asked_for_by_the_reference() {
    let fake = Fake::scripted([Reply::text(200, "delivered"), Reply::text(200, "sent")]).await;
    let gateway = gateway(fake.url(), AMPLE);

    assert_eq!(gateway.status("m/1").await, Some(Receipt::Delivered));
    assert_eq!(gateway.status("m/1").await, None);

    let request = &fake.received()[0];
    assert_eq!((request.method.as_str(), request.path.as_str()), ("GET", "/sms/m%2F1"));
    assert_eq!(request.query_pairs(), [("a".to_owned(), "1 2".to_owned())]);
}

#[tokio::test]
async fn provider_without_receipts_and_states_refuses_both() {
    let gateway = http_gateway(Box::new(Plain), SHORT);

    let refused = receipt_call("POST", "https://m.example/r", &[], "", |it| gateway.receipts(it));

    assert_eq!(refused, Err(ReceiptRefused::Unreadable));
    assert_eq!(gateway.status("m-1").await, None);
    assert_eq!(Plain.judge_status(&answer(200, &HeaderMap::new(), "")), None);
    assert!(!gateway.verifies_receipts() && !gateway.deduplicates());
    assert_eq!(gateway.receipt_reply(), ReceiptReply::EMPTY);
}

#[test]
fn receipt_names_our_id_or_the_reference_as_it_is_stored() {
    let gateway = gateway("http://sms.example", AMPLE);
    let read = |url: &str, headers: &[(&str, &str)], body: &str| {
        receipt_call("POST", url, headers, body, |call| {
            assert_eq!(format!("{call:?}"), "ReceiptCall { method: POST, .. }");
            assert_eq!(call.form_pairs().len(), usize::from(!call.body.is_empty()));
            gateway.receipts(call)
        })
    };
    let signed = [("x-signature", "good")];
    let id = sms().message.id;
    let receipt = |of| GatewayReceipt { of, receipt: Receipt::Delivered };

    let by_id = read(&format!("https://m.example/r?id={id}&token=t"), &signed, r#"{"ref":"x"}"#);
    let by_reference = read("https://m.example/r", &signed, r#"{"ref":"m\u0000-1"}"#);

    assert_eq!(by_id, Ok(vec![receipt(Reported::Message(id))]));
    assert_eq!(by_reference, Ok(vec![receipt(Reported::Reference("m-1".to_owned()))]));
    assert_eq!(read("https://m.example/r", &[], "{}"), Err(ReceiptRefused::Unsigned));
    let wrong = [("x-signature", "bad")];
    assert_eq!(read("https://m.example/r", &wrong, "{}"), Err(ReceiptRefused::BadSignature));
    let twice = [("x-signature", "good"), ("x-signature", "good")];
    assert_eq!(read("https://m.example/r", &twice, "{}"), Err(ReceiptRefused::Unsigned));
    assert_eq!(read("https://m.example/r", &signed, "<>"), Err(ReceiptRefused::Unreadable));
    assert!(gateway.verifies_receipts());
    assert_eq!(gateway.receipt_reply().body, "100");
    receipt_call("GET", "https://m.example/r?a=1%202", &[], "", |call| {
        assert_eq!(call.query_pairs(), [("a".to_owned(), "1 2".to_owned())]);
    });
}

#[test]
fn provider_is_tested_without_a_server() {
    let table = json!({"url": "http://sms.example", "token": "t", "format": "form"});
    let provider = made(&SPEC, &table);

    let request = request_of(&*provider, &cyrillic());

    assert_eq!(request.method(), Method::POST);
    assert_eq!(request.uri(), "http://sms.example/sms");
    assert_eq!(request.headers()[CONTENT_TYPE], "application/x-www-form-urlencoded");
    let text = cyrillic().text;
    let pairs = [("to", "79991234567"), ("text", text.as_str()), ("from", "")];
    assert_eq!(request.body(), &form(&pairs));
    assert_eq!(judge(&*provider, 200, r#"{"id":1}"#), Ok(accepted_by_reference("1")));
    let late = judge_with(&*provider, 503, &[("retry-after", "1")], None);
    let retry_after = Some(Duration::from_secs(1));
    assert_eq!(late, Err(SendError::Unavailable { detail: "status 503".to_owned(), retry_after }));
    assert_eq!(status_of(&*provider, 200, "delivered"), Some(Receipt::Delivered));
    let unsigned = receipts(&*provider, "POST", "https://m.example/r", &[], "{}");
    assert_eq!(unsigned, Err(ReceiptRefused::Unsigned));
    assert_eq!(problems(&SPEC, &json!({"url": "http://a.example"})), ["token is missing"]);
    assert_eq!(accepted("a").reference.as_deref(), Some("a"));
    assert!(sensitive("é").is_sensitive());
}

#[test]
fn debug_shows_no_secret() {
    let gateway = gateway("http://sms.example/key", AMPLE);

    let shown = format!("{gateway:?} {SPEC:?} {:?}", StatusCode::OK);

    assert!(shown.contains("sms.example"), "{shown}");
    assert!(!shown.contains("s3cret") && !shown.contains("/key"), "{shown}");
    assert_tells_nothing(&format!("{:?}", sms()));
}

#[test]
fn expiry_is_at_most_the_longest_that_the_provider_takes() {
    let sms = sms();
    let outgoing = Outgoing::new(&sms, "1");

    assert_eq!(outgoing.now, crate::testing::now());
    assert_eq!(
        outgoing.expires_within(Duration::from_secs(60)),
        outgoing.now + Duration::from_secs(60)
    );
    assert_eq!(outgoing.expires_within(Duration::from_secs(900)), sms.expires_at);
    assert_eq!(outgoing.measure().segments, 1);
    assert_eq!((outgoing.validity_seconds(400, 900), outgoing.validity_seconds(1, 30)), (400, 30));
}
