//! The SMSC of the crate `smpp34`, which is not ours.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use ports::free_port;
use smpp34::{
    SmppConnectionInformation, SmppError, SmppServer, SmppServerListener, Tlv, bind_transceiver,
    bind_transceiver_resp, deliver_sm_resp, server::ESME, submit_sm, submit_sm_resp,
};
use tokio::time::sleep;

use super::{SmppSettings, settings, within};

/// A running SMSC. It stops when it is dropped.
pub(super) struct Smsc {
    port: u16,
    desk: Arc<Desk>,
    _server: SmppServer,
}

/// The state and the behaviour of the SMSC.
struct Desk {
    plan: Mutex<Plan>,
    received: Mutex<Vec<submit_sm>>,
    sessions: Mutex<HashMap<String, Arc<ESME>>>,
}

/// How the SMSC answers.
#[derive(Default)]
struct Plan {
    refuse_bind: Option<SmppError>,
    /// Refuses the message of this number, counted from zero, with this error.
    refuse: Option<(usize, SmppError)>,
    ids: Vec<String>,
    latency: Duration,
}

impl Smsc {
    pub(super) async fn start() -> Self {
        loop {
            let port = free_port();
            let desk = Arc::new(Desk {
                plan: Mutex::default(),
                received: Mutex::default(),
                sessions: Mutex::default(),
            });
            let mut server =
                SmppServer::new(Ipv4Addr::LOCALHOST.into(), port, Arc::clone(&desk) as _);
            server.start().await;
            // Another process may have taken the port meanwhile.
            if server.is_alive() {
                return Self { port, desk, _server: server };
            }
        }
    }

    pub(super) fn settings(&self) -> SmppSettings {
        SmppSettings { port: self.port, ..settings() }
    }

    pub(super) fn refuse_bind(&self, error: Option<SmppError>) {
        self.desk.plan().refuse_bind = error;
    }

    pub(super) fn refuse(&self, number: usize, error: SmppError) {
        self.desk.plan().refuse = Some((number, error));
    }

    /// Gives these ids to the next messages, the last one first.
    pub(super) fn give_ids(&self, ids: &[&str]) {
        self.desk.plan().ids = ids.iter().map(|id| (*id).to_owned()).collect();
    }

    pub(super) fn wait_before_answers(&self, latency: Duration) {
        self.desk.plan().latency = latency;
    }

    pub(super) fn received(&self) -> Vec<submit_sm> {
        self.desk.received.lock().unwrap().clone()
    }

    pub(super) fn texts(&self) -> Vec<Vec<u8>> {
        self.received().into_iter().map(|it| it.short_message).collect()
    }

    pub(super) fn sessions(&self) -> usize {
        self.desk.sessions.lock().unwrap().len()
    }

    /// Delivers a text as a receipt, and returns the response.
    pub(super) async fn deliver(&self, text: &str) -> deliver_sm_resp {
        self.deliver_with(0x04, text, vec![]).await
    }

    pub(super) async fn deliver_with(
        &self,
        esm_class: u8,
        text: &str,
        parameters: Vec<Tlv>,
    ) -> deliver_sm_resp {
        let session = within(async {
            loop {
                let session = self.desk.sessions.lock().unwrap().values().next().cloned();
                match session {
                    Some(session) => return session,
                    None => sleep(Duration::from_millis(5)).await,
                }
            }
        })
        .await;
        let delivery = session
            .deliver_sm()
            .source_addr("79991234567")
            .destination_addr("Shop")
            .esm_class(esm_class)
            .short_message(text.as_bytes())
            .tlvs(parameters);
        within(delivery.send()).await.unwrap()
    }
}

impl Desk {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap()
    }
}

#[async_trait]
impl SmppServerListener for Desk {
    async fn on_bind_transceiver(
        &self,
        request: bind_transceiver,
        _: &SmppConnectionInformation,
        _: &String,
    ) -> bind_transceiver_resp {
        let refused = self.plan().refuse_bind;
        match refused {
            Some(error) => request.reject(error),
            None if (request.system_id.as_str(), request.password.as_str()) == ("me", "secret") => {
                request.accept("smsc".to_owned(), Some(0x34))
            }
            None => request.reject(SmppError::ESME_RINVPASWD),
        }
    }

    async fn on_esme_bound(&self, esme: ESME, session: &String) {
        self.sessions.lock().unwrap().insert(session.clone(), Arc::new(esme));
    }

    async fn on_esme_unbound(&self, session: &String) {
        self.sessions.lock().unwrap().remove(session);
    }

    async fn on_submit_sm(
        &self,
        request: submit_sm,
        _: &SmppConnectionInformation,
        _: &String,
    ) -> submit_sm_resp {
        let number = {
            let mut received = self.received.lock().unwrap();
            received.push(request.clone());
            received.len() - 1
        };
        let (latency, refused, id) = {
            let mut plan = self.plan();
            let refused = plan.refuse.filter(|(refused, _)| *refused == number);
            (plan.latency, refused, plan.ids.pop())
        };
        if !latency.is_zero() {
            sleep(latency).await;
        }
        match refused {
            Some((_, error)) => request.reject(error),
            None => request.accept(id.unwrap_or_else(|| format!("id-{number}"))),
        }
    }
}
