//! Delivery receipts of gateways: over HTTP, and over a gateway's own connection.

use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use adapters_gateway::{Gateway, ReceiptCall, ReceiptRefused};
use adapters_http::{
    NoReceipts, ReceiptAnswer, ReceiptError, ReceiptGateway, ReceiptGateways, ReceiptRequest,
};
use adapters_persistence::{Database, SqlReceipts};
use application::{
    NoteGatewayReceipt, ReceiptUrls, TraceParent, TracedMessages, VaultClosed,
    ports::{GatewayReceipt, Noted, Receipt, ReceiptSink, Reported, StoreError},
};
use domain::GatewayName;
use tokio::time::Instant;

use crate::{
    config::{GatewayConfig, GatewaysConfig},
    metrics::ReceiptMetrics,
    roles::clock,
};

/// Stores receipts and counts them.
#[derive(Debug, Clone)]
pub struct StoredReceipts {
    note: Arc<NoteGatewayReceipt<SqlReceipts>>,
    metrics: ReceiptMetrics,
}

/// The gateways whose providers report over HTTP.
pub struct HttpReceipts {
    gateways: RwLock<OverHttp>,
    stored: StoredReceipts,
    urls: ReceiptUrls,
    warned: Arc<Warned>,
}

/// `None` is a gateway whose settings cannot be used here.
type OverHttp = HashMap<GatewayName, Option<Arc<Gateway>>>;

/// One of them.
struct HttpReceiptGateway {
    name: GatewayName,
    gateway: Arc<Gateway>,
    stored: StoredReceipts,
    urls: ReceiptUrls,
    warned: Arc<Warned>,
}

/// When the log last had a receipt of each gateway that cannot be read.
#[derive(Debug, Default)]
struct Warned(Mutex<HashMap<GatewayName, Instant>>);

/// The interval between two warnings of one gateway. A provider repeats its calls.
const WARNING: Duration = Duration::from_secs(60);

impl Warned {
    /// Whether a warning of this gateway is due. If so, the next one is due in a minute.
    fn is_due(&self, gateway: &GatewayName, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.get(gateway).is_none_or(|at| now - *at >= WARNING);
        if is_due {
            last.insert(gateway.clone(), now);
        }
        is_due
    }
}

impl StoredReceipts {
    pub fn new(database: Database, metrics: ReceiptMetrics, traced: TracedMessages) -> Self {
        let note = NoteGatewayReceipt::new(SqlReceipts::new(database)).traced(traced);
        Self { note: Arc::new(note), metrics }
    }

    fn count(&self, gateway: &GatewayName, receipt: Receipt, noted: &Noted) {
        self.metrics.noted(gateway, receipt, noted);
        if !noted.is_known() {
            // A provider's account may have other users.
            tracing::debug!(%gateway, "a receipt is of no message of this service");
        }
    }
}

impl ReceiptSink for StoredReceipts {
    fn note<'a>(
        &'a self,
        gateway: &'a GatewayName,
        reference: String,
        receipt: Receipt,
    ) -> Pin<Box<dyn Future<Output = Result<bool, StoreError>> + Send + 'a>> {
        Box::pin(async move {
            let of = Reported::Reference(reference);
            let noted = self.note.execute(gateway, GatewayReceipt { of, receipt }, None).await?;
            self.count(gateway, receipt, &noted);
            Ok(!matches!(noted, Noted::Early | Noted::Unknown))
        })
    }

    fn known<'a>(
        &'a self,
        gateway: &'a GatewayName,
        references: Vec<String>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<String>, StoreError>> + Send + 'a>> {
        Box::pin(async move { self.note.known(gateway, &references).await })
    }
}

impl HttpReceipts {
    pub fn new(stored: StoredReceipts, urls: ReceiptUrls) -> Self {
        Self { gateways: RwLock::default(), stored, urls, warned: Arc::default() }
    }

    /// Replaces the gateways by those of the settings.
    pub fn take_over(&self, config: &GatewaysConfig) {
        let gateways = over_http(config);
        for name in gateways.keys() {
            self.stored.metrics.expect(name);
        }
        *self.gateways.write().unwrap_or_else(PoisonError::into_inner) = gateways;
    }
}

/// Builds the gateways whose providers are reached over HTTP.
fn over_http(config: &GatewaysConfig) -> OverHttp {
    let built = |gateway: &GatewayConfig| match gateway.build() {
        Ok((built, _)) => Some(Arc::new(built)),
        Err(error) => {
            tracing::warn!(
                gateway = %gateway.name,
                error = format!("{error:#}"),
                "receipts of the gateway are answered with 503, because this process does not have its \
                 secrets or cannot use its settings: set them here too"
            );
            None
        }
    };
    let gateways = config.gateways.iter().filter(|it| it.is_over_http());
    gateways.map(|gateway| (gateway.name.clone(), built(gateway))).collect()
}

impl ReceiptGateways for HttpReceipts {
    fn find(&self, name: &GatewayName) -> Result<Arc<dyn ReceiptGateway>, NoReceipts> {
        let gateways = self.gateways.read().unwrap_or_else(PoisonError::into_inner);
        let gateway = gateways.get(name).ok_or(NoReceipts::Unknown)?;
        let gateway = gateway.as_ref().ok_or(NoReceipts::Unusable)?;
        Ok(Arc::new(HttpReceiptGateway {
            name: name.clone(),
            gateway: Arc::clone(gateway),
            stored: self.stored.clone(),
            urls: self.urls.clone(),
            warned: Arc::clone(&self.warned),
        }))
    }
}

impl ReceiptGateway for HttpReceiptGateway {
    fn is_signed(&self) -> bool {
        self.gateway.verifies_receipts()
    }

    fn accept(&self, token: &str) -> Result<bool, VaultClosed> {
        self.urls.accept(&self.name, token)
    }

    fn read(&self, request: &ReceiptRequest<'_>) -> Result<Vec<GatewayReceipt>, ReceiptError> {
        let ReceiptRequest { method, query, headers, body } = *request;
        let url = self.urls.called(&self.name, query);
        let call = ReceiptCall { method, url: &url, query, headers, body, now: clock() };
        self.gateway.receipts(&call).map_err(|error| match error {
            ReceiptRefused::Unsigned | ReceiptRefused::BadSignature => {
                tracing::debug!(gateway = %self.name, %error, "a receipt was refused");
                ReceiptError::Unverified
            }
            ReceiptRefused::Unreadable | ReceiptRefused::Lacks(_) => {
                if self.warned.is_due(&self.name, Instant::now()) {
                    tracing::warn!(
                        gateway = %self.name,
                        %error,
                        "a receipt cannot be read and is refused; others of this gateway within a \
                         minute are not logged"
                    );
                }
                ReceiptError::Unreadable
            }
        })
    }

    fn note(
        &self,
        receipt: GatewayReceipt,
        request: Option<TraceParent>,
    ) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>> {
        Box::pin(async move {
            let kind = receipt.receipt;
            let noted = self.stored.note.execute(&self.name, receipt, request).await?;
            self.stored.count(&self.name, kind, &noted);
            Ok(())
        })
    }

    fn refused(&self, error: ReceiptError) {
        match error {
            ReceiptError::Unverified => self.stored.metrics.unverified(&self.name),
            ReceiptError::Unreadable => self.stored.metrics.unreadable(&self.name),
        }
    }

    fn answer(&self) -> ReceiptAnswer {
        let reply = self.gateway.receipt_reply();
        ReceiptAnswer { content_type: reply.content_type, body: reply.body }
    }
}

impl fmt::Debug for HttpReceipts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpReceipts").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warning_is_due_once_a_minute_for_each_gateway() {
        let warned = Warned::default();
        let (one, other) = (GatewayName::default(), "other".parse().unwrap());
        let now = Instant::now();

        assert!(warned.is_due(&one, now) && warned.is_due(&other, now));
        assert!(!warned.is_due(&one, now + Duration::from_secs(59)));
        assert!(warned.is_due(&one, now + WARNING));
        assert!(!warned.is_due(&one, now + WARNING));
    }
}
