//! The whole service with an SMSC that is not ours, the one of the crate `smpp34`: what the phone
//! gets, and what the receipt changes.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use smpp34::{
    SmppConnectionInformation, SmppServer, SmppServerListener, bind_transceiver,
    bind_transceiver_resp, server::ESME, submit_sm, submit_sm_resp,
};

use super::support::{Binary, Client, Folder, Running, eventually, free_port};

const PHONE: &str = "+79991234567";
const PATIENCE: Duration = Duration::from_secs(30);

/// A running SMSC, which reports each message with this word.
struct Smsc {
    port: u16,
    desk: Arc<Desk>,
    _server: SmppServer,
}

struct Desk {
    word: &'static str,
    received: Mutex<Vec<submit_sm>>,
    session: Mutex<Option<Arc<ESME>>>,
}

impl Smsc {
    async fn start(word: &'static str) -> Self {
        loop {
            let port = free_port();
            let desk = Desk { word, received: Mutex::default(), session: Mutex::default() };
            let desk = Arc::new(desk);
            let listener = Arc::clone(&desk);
            let mut server = SmppServer::new(Ipv4Addr::LOCALHOST.into(), port, listener);
            server.start().await;
            // Another process may have taken the port meanwhile.
            if server.is_alive() {
                return Self { port, desk, _server: server };
            }
        }
    }

    fn received(&self) -> Vec<submit_sm> {
        self.desk.received.lock().unwrap().clone()
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
        assert_eq!((&*request.system_id, &*request.password), ("messager", "secret"));
        request.accept("smsc".to_owned(), Some(0x34))
    }

    async fn on_esme_bound(&self, esme: ESME, _: &String) {
        *self.session.lock().unwrap() = Some(Arc::new(esme));
    }

    /// Accepts a message under a hexadecimal id, and reports its end under the decimal one.
    async fn on_submit_sm(
        &self,
        request: submit_sm,
        _: &SmppConnectionInformation,
        _: &String,
    ) -> submit_sm_resp {
        let number = {
            let mut received = self.received.lock().unwrap();
            received.push(request.clone());
            0xab00 + received.len()
        };
        if request.registered_delivery == 1 {
            let session = self.session.lock().unwrap().clone().unwrap();
            let text = format!("id:{number:010} sub:001 dlvrd:001 stat:{} err:000", self.word);
            let (from, to) = (request.destination_addr.clone(), request.source_addr.clone());
            tokio::spawn(async move {
                let receipt = session.deliver_sm().source_addr(from).destination_addr(to);
                let receipt = receipt.esm_class(0x04).short_message(text.into_bytes());
                assert_eq!(receipt.send().await.unwrap().command_status(), 0);
            });
        }
        request.accept(format!("{number:08X}"))
    }
}

/// `messager` in one process, with the SMSC as its gateway.
async fn service(smsc: &Smsc, folder: &Folder, more: &[(&str, &str)]) -> (Running, Client) {
    let messager = Binary::new("messager", folder.path())
        .env("GATEWAY", "smpp")
        .env("SMPP_URL", &format!("smpp://127.0.0.1:{}", smsc.port))
        .env("SMPP_SYSTEM_ID", "messager")
        .env("SMPP_PASSWORD", "secret")
        .env("SMPP_FROM", "Shop");
    let messager = more.iter().fold(messager, |it, (name, value)| it.env(name, value));
    let messager = messager.ready().await;
    let client = Client::new(messager.port);
    (messager, client)
}

async fn event(client: &Client, id: &str, event: &str) {
    eventually(event, PATIENCE, async || {
        client.find(id).await.events().contains(&event).then_some(())
    })
    .await;
}

#[tokio::test]
async fn verification_comes_out_of_the_smsc_and_its_receipt_makes_it_delivered() {
    let (smsc, folder) = (Smsc::start("DELIVRD").await, Folder::new());
    let (_messager, client) = service(&smsc, &folder, &[]).await;

    let id = client.start(PHONE).await.id();
    event(&client, &id, "delivered").await;

    let [sms] = &smsc.received()[..] else { panic!("one SMS") };
    assert_eq!((&*sms.source_addr, &*sms.destination_addr), ("Shop", &PHONE[1..]));
    let text = std::str::from_utf8(&sms.short_message).unwrap();
    let code = text.strip_prefix("Your code: ").unwrap();
    assert_eq!(client.check(&id, code).await.body["valid"], true);
}

#[tokio::test]
async fn receipt_of_a_failure_makes_the_verification_undelivered() {
    let (smsc, folder) = (Smsc::start("UNDELIV").await, Folder::new());
    let (_messager, client) = service(&smsc, &folder, &[]).await;

    let id = client.start(PHONE).await.id();

    event(&client, &id, "failed").await;
}

#[tokio::test]
async fn long_cyrillic_text_comes_out_whole() {
    let template = format!("Ваш код: {{code}}. {}", "Никому его не говорите. ".repeat(3));
    let (smsc, folder) = (Smsc::start("DELIVRD").await, Folder::new());
    let more = [("SMS_TEMPLATE", &*template), ("SMS_MAX_SEGMENTS", "2")];
    let (_messager, client) = service(&smsc, &folder, &more).await;

    let id = client.start(PHONE).await.id();
    event(&client, &id, "delivered").await;

    let parts = smsc.received();
    assert_eq!(parts.iter().map(|it| it.short_message[5]).collect::<Vec<_>>(), [1, 2]);
    let units: Vec<u16> = parts
        .iter()
        .flat_map(|it| it.short_message[6..].chunks(2))
        .map(|unit| u16::from_be_bytes([unit[0], unit[1]]))
        .collect();
    let text = String::from_utf16(&units).unwrap();
    let code = text.strip_prefix("Ваш код: ").unwrap().split('.').next().unwrap();
    assert_eq!(client.check(&id, code).await.body["valid"], true);
}
