use application::{
    VaultClosed,
    ports::{GatewayReceipt, Reported},
};
use domain::GatewayName;
use futures_util::future::BoxFuture;

use super::*;

const OURS: &str = "/v1/receipts/main?token=right";

/// A provider that reports the reference in the body, one a line, as delivered.
#[derive(Debug, Default)]
struct Provider {
    is_signed: bool,
    is_closed: bool,
    is_down: bool,
    body: &'static str,
    noted: Mutex<Vec<GatewayReceipt>>,
    refused: Mutex<Vec<ReceiptError>>,
    called: Mutex<Vec<String>>,
}

struct Gateways(Arc<Provider>);

struct Main(Arc<Provider>);

impl ReceiptGateways for Gateways {
    fn find(&self, name: &GatewayName) -> Result<Arc<dyn ReceiptGateway>, NoReceipts> {
        match name.as_str() {
            "main" => Ok(Arc::new(Main(Arc::clone(&self.0)))),
            "unusable" => Err(NoReceipts::Unusable),
            _ => Err(NoReceipts::Unknown),
        }
    }
}

impl ReceiptGateway for Main {
    fn is_signed(&self) -> bool {
        self.0.is_signed
    }

    fn accept(&self, token: &str) -> Result<bool, VaultClosed> {
        if self.0.is_closed { Err(VaultClosed) } else { Ok(token == "right") }
    }

    fn read(&self, call: &ReceiptRequest<'_>) -> Result<Vec<GatewayReceipt>, ReceiptError> {
        self.0.called.lock().unwrap().push(format!("{} {}", call.method, call.query));
        if self.0.is_signed && !call.headers.contains_key("signature") {
            return Err(ReceiptError::Unverified);
        }
        let text = std::str::from_utf8(call.body).map_err(|_| ReceiptError::Unreadable)?;
        Ok(text.lines().map(reported).collect())
    }

    fn note(
        &self,
        receipt: GatewayReceipt,
        _request: Option<TraceParent>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            if self.0.is_down {
                return Err(StoreError::Full);
            }
            self.0.noted.lock().unwrap().push(receipt);
            Ok(())
        })
    }

    fn refused(&self, error: ReceiptError) {
        self.0.refused.lock().unwrap().push(error);
    }

    fn answer(&self) -> ReceiptAnswer {
        ReceiptAnswer { content_type: "text/plain", body: self.0.body.into() }
    }
}

fn reported(reference: &str) -> GatewayReceipt {
    GatewayReceipt { of: Reported::Reference(reference.to_owned()), receipt: Receipt::Delivered }
}

/// The router of a provider, as it stands beside that of `/v1`.
fn desk(provider: Provider) -> (Arc<Provider>, Router, Registry) {
    let provider = Arc::new(provider);
    let registry = Registry::new();
    let metrics = ApiMetrics::register(&registry).unwrap();
    let gateways = Arc::new(Gateways(Arc::clone(&provider)));
    let router = receipts_router(gateways, metrics, &parts().settings).merge(parts().router());
    (provider, router, registry)
}

/// The router of `/v1`, with a gateway `main`.
pub(super) fn router_with_main() -> Router {
    let (_, router, _) = desk(Provider::default());
    router
}

fn send(uri: &str, body: impl Into<Body>) -> Request {
    Request::post(uri).body(body.into()).unwrap()
}

#[tokio::test]
async fn receipts_are_stored_before_the_provider_gets_its_answer() {
    let (provider, router, _) = desk(Provider::default());

    let told = ask(&router, send(OURS, "SM1\nSM2")).await;

    assert_eq!((told.status, &*told.text), (204, ""));
    assert_eq!(*provider.noted.lock().unwrap(), [reported("SM1"), reported("SM2")]);
    assert_eq!(*provider.called.lock().unwrap(), ["POST token=right"]);

    let (_, router, _) = desk(Provider { body: "100", ..Provider::default() });
    let told = ask(&router, send(OURS, "SM1")).await;
    assert_eq!((told.status, &*told.text), (200, "100"));
    assert_eq!(told.headers[CONTENT_TYPE], "text/plain");
}

#[tokio::test]
async fn provider_may_report_with_get() {
    let (provider, router, _) = desk(Provider::default());

    let told = ask(&router, get("/v1/receipts/main?token=right&id=1")).await;

    assert_eq!(told.status, 204);
    assert_eq!(*provider.called.lock().unwrap(), ["GET token=right&id=1"]);
    let put = Request::put(OURS).body(Body::empty()).unwrap();
    let told = ask(&router, put).await;
    told.expect_problem(405, "method-not-allowed");
    assert_eq!(told.headers[ALLOW], "GET,HEAD,POST");
}

#[tokio::test]
async fn receipt_without_the_right_token_is_refused_unread() {
    let (provider, router, registry) = desk(Provider::default());

    for uri in ["", "?token=", "?token=wrong", "?Token=right", "?token=wrong&token=right"] {
        let told = ask(&router, send(&format!("/v1/receipts/main{uri}"), "SM1")).await;
        told.expect_problem(403, "unverified-receipt");
    }

    assert_eq!(*provider.refused.lock().unwrap(), [ReceiptError::Unverified; 5]);
    assert!(provider.called.lock().unwrap().is_empty());
    let counted = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    let line = r#"messager_v1_requests_total{route="/v1/receipts/{gateway}",status="403"} 5"#;
    assert!(counted.contains(line), "{counted}");
}

#[tokio::test]
async fn signed_receipt_needs_no_token_and_a_good_signature() {
    let (provider, router, _) = desk(Provider { is_signed: true, ..Provider::default() });

    let told = ask(&router, send("/v1/receipts/main?token=right", "SM1")).await;
    told.expect_problem(403, "unverified-receipt");
    assert!(provider.noted.lock().unwrap().is_empty());
    assert_eq!(*provider.refused.lock().unwrap(), [ReceiptError::Unverified]);

    let signed = with(send("/v1/receipts/main", "SM1"), "signature", "good");
    assert_eq!(ask(&router, signed).await.status, 204);
    assert_eq!(*provider.noted.lock().unwrap(), [reported("SM1")]);
}

#[tokio::test]
async fn unknown_gateway_is_404() {
    let (_, router, _) = desk(Provider::default());

    for uri in ["/v1/receipts/other?token=right", "/v1/receipts/Main?token=right"] {
        ask(&router, send(uri, "SM1")).await.expect_problem(404, "not-found");
    }
    ask(&router, send("/v1/receipts/main/?token=right", "")).await.expect_problem(404, "not-found");
}

#[tokio::test]
async fn provider_repeats_what_a_gateway_without_its_secrets_cannot_take() {
    let (provider, router, _) = desk(Provider::default());

    let told = ask(&router, send("/v1/receipts/unusable?token=right", "SM1")).await;

    told.expect_problem(503, "temporary-reduced-capacity");
    assert!(told.headers.contains_key("retry-after"));
    assert!(provider.called.lock().unwrap().is_empty());
}

#[tokio::test]
async fn unreadable_receipt_is_400() {
    let (provider, router, _) = desk(Provider::default());

    let told = ask(&router, send(OURS, vec![0xff])).await;

    told.expect_problem(400, "unreadable-receipt");
    assert_eq!(*provider.refused.lock().unwrap(), [ReceiptError::Unreadable]);
}

#[tokio::test]
async fn receipt_has_64_kib_at_most() {
    let (provider, router, _) = desk(Provider::default());

    let told = ask(&router, send(OURS, vec![b'a'; 64 * 1024 + 1])).await;
    told.expect_problem(413, "too-large");
    assert!(provider.called.lock().unwrap().is_empty());

    assert_eq!(ask(&router, send(OURS, vec![b'a'; 64 * 1024])).await.status, 204);
}

#[tokio::test]
async fn provider_repeats_what_cannot_be_stored_now() {
    for provider in [
        Provider { is_down: true, ..Provider::default() },
        Provider { is_closed: true, ..Provider::default() },
    ] {
        let (provider, router, _) = desk(provider);

        let told = ask(&router, send(OURS, "SM1")).await;

        told.expect_problem(503, "temporary-reduced-capacity");
        assert!(told.headers.contains_key("retry-after"));
        assert!(provider.noted.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn document_describes_both_methods() {
    let (_, router, _) = desk(Provider::default());

    let document = ask(&router, get("/openapi.json")).await.json();

    let described = &document["paths"]["/v1/receipts/{gateway}"];
    for (method, id) in [("post", "takeReceipt"), ("get", "takeReceiptInQuery")] {
        let operation = &described[method];
        assert_eq!(operation["operationId"], id);
        assert!(operation["security"].is_null(), "it needs no API key");
        let responses: Vec<&String> = operation["responses"].as_object().unwrap().keys().collect();
        let expected = ["200", "204", "400", "403", "404", "405", "408", "413", "500", "503"];
        assert_eq!(responses, expected);
    }
}
