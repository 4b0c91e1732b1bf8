//! The gateway against the SMSC of the crate `smpp34`, and against a scripted one that misbehaves.

use std::{
    collections::HashSet,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use application::ports::{
    Accepted, OutcomeClass, Receipt, ReceiptSink, SendError, Sms, SmsGateway, StoreError,
};
use domain::GatewayName;
use tokio::{sync::mpsc, time::timeout};

use super::{DefaultAlphabet, Numbering, ReceiptIds, SmppGateway, SmppSettings};
use crate::{
    authorities::Authorities,
    fields::Secret,
    testing::{self, AMPLE, SHORT},
};

mod receipts;
mod scripted;
mod sessions;
mod smsc;
mod submits;
mod tls;

/// An SMS with this text, which is good for five minutes.
pub(super) fn sms(text: &str) -> Sms {
    Sms { text: text.to_owned(), ..testing::sms() }
}

/// Settings for an SMSC at this machine. The port is missing.
pub(super) fn settings() -> SmppSettings {
    SmppSettings {
        host: "127.0.0.1".to_owned(),
        port: 0,
        tls: false,
        system_id: "me".to_owned(),
        password: Secret::of("secret"),
        system_type: String::new(),
        service_type: String::new(),
        from: "Shop".to_owned(),
        source: Numbering::default(),
        destination: Numbering::default(),
        window: 10,
        connections: 1,
        enquire_link_interval: Duration::from_secs(30),
        timeout: AMPLE,
        default_alphabet: DefaultAlphabet::Gsm,
        validity: true,
        receipts: true,
        receipt_ids: ReceiptIds::Any,
    }
}

/// A gateway without a listener.
fn deaf(settings: SmppSettings) -> SmppGateway {
    SmppGateway::new(settings, Authorities::Public).unwrap()
}

/// A gateway with these settings, which listens to receipts.
fn listening(settings: SmppSettings) -> (SmppGateway, Sink) {
    listening_with(settings, Authorities::Public)
}

fn listening_with(settings: SmppSettings, authorities: Authorities) -> (SmppGateway, Sink) {
    let gateway = SmppGateway::new(settings, authorities).unwrap();
    let sink = Sink::default();
    gateway.listen("main".parse().unwrap(), Arc::new(sink.clone()));
    (gateway, sink)
}

type Noted = (GatewayName, String, Receipt);

/// A store of receipts.
#[derive(Debug, Clone)]
struct Sink {
    noted: mpsc::UnboundedSender<Noted>,
    seen: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Noted>>>,
    broken: Arc<AtomicBool>,
    /// The references that calls ended with.
    known: Arc<Mutex<HashSet<String>>>,
}

impl Default for Sink {
    fn default() -> Self {
        let (noted, seen) = mpsc::unbounded_channel();
        let seen = Arc::new(tokio::sync::Mutex::new(seen));
        Self { noted, seen, broken: Arc::default(), known: Arc::default() }
    }
}

impl Sink {
    async fn next(&self) -> Noted {
        within(async { self.seen.lock().await.recv().await.unwrap() }).await
    }

    fn learn(&self, reference: &str) {
        self.known.lock().unwrap().insert(reference.to_owned());
    }

    async fn is_empty(&self) -> bool {
        self.seen.lock().await.is_empty()
    }
}

impl ReceiptSink for Sink {
    fn note<'a>(
        &'a self,
        gateway: &'a GatewayName,
        reference: String,
        receipt: Receipt,
    ) -> Pin<Box<dyn Future<Output = Result<bool, StoreError>> + Send + 'a>> {
        Box::pin(async move {
            if self.broken.load(Ordering::SeqCst) {
                return Err(StoreError::Unavailable("closed".into()));
            }
            let is_known = self.known.lock().unwrap().contains(&reference);
            self.noted.send((gateway.clone(), reference, receipt)).unwrap();
            Ok(is_known)
        })
    }

    fn known<'a>(
        &'a self,
        _: &'a GatewayName,
        references: Vec<String>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<String>, StoreError>> + Send + 'a>> {
        Box::pin(async move {
            let known = self.known.lock().unwrap();
            Ok(references.into_iter().filter(|it| known.contains(it)).collect())
        })
    }
}

/// Waits for what must happen.
async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(AMPLE, future).await.expect("it must happen")
}

#[track_caller]
fn class(outcome: &Result<Accepted, SendError>) -> OutcomeClass {
    match outcome {
        Ok(_) => OutcomeClass::Accepted,
        Err(error) => error.class(),
    }
}
