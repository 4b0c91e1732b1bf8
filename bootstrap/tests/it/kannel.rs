//! The whole service with a real Kannel: what the phone gets, and what the receipt changes.

use std::time::Duration;

use super::support::{Client, Kannel, Running, Stack, eventually};

const PHONE: &str = "+79991234567";
const PATIENCE: Duration = Duration::from_secs(30);

/// The three binaries with Kannel as the gateway, and where Kannel reports deliveries.
struct Service {
    kannel: Kannel,
    client: Client,
    _running: [Running; 3],
    stack: Stack,
}

impl Service {
    async fn start(more: &[(&str, &str)]) -> Option<Self> {
        let stack = Stack::new().await?;
        let kannel = Kannel::start(3).await?;
        let api = stack.start("api", &[]);
        let mut settings = kannel.settings();
        settings.push(("PUBLIC_URL", format!("http://127.0.0.1:{}", api.port)));
        settings.push(("API_AUTH", "none".to_owned()));
        let settings: Vec<_> = settings
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .chain(more.iter().copied())
            .collect();
        let api = settings.iter().fold(api, |api, (name, value)| api.env(name, value));
        let running = [
            api.without("GATEWAY_URL").ready().await,
            stack.start("processor", &settings).without("GATEWAY_URL").ready().await,
            stack.start("consumer", &settings).without("GATEWAY_URL").ready().await,
        ];
        let client = Client::new(running[0].port);
        Some(Self { kannel, client, _running: running, stack })
    }

    /// Starts a verification, and waits until its SMS is sent and delivered. Returns its id.
    async fn delivered(&self, phone: &str) -> String {
        let id = self.client.start(phone).await.id();
        eventually("delivered", PATIENCE, async || {
            let found = self.client.find(&id).await;
            ["sent", "delivered"].iter().all(|kind| found.events().contains(kind)).then_some(())
        })
        .await;
        id
    }
}

#[tokio::test]
async fn verification_comes_out_of_kannel_and_its_receipt_makes_it_delivered() {
    let Some(service) = Service::start(&[]).await else { return };

    let id = service.delivered(PHONE).await;

    let [sms] = &service.kannel.received(1).await[..] else { panic!("one SMS") };
    assert_eq!((&*sms.from, &*sms.to, sms.parts), ("Shop", PHONE, 1));
    let code = sms.text.strip_prefix("Your code: ").unwrap();
    let found = service.client.find(&id).await;
    let mut events = found.events();
    // A receipt may overtake the outcome of its call.
    events[3..].sort_unstable();
    assert_eq!(events, ["created", "queued", "published", "delivered", "sent"]);
    assert_eq!(service.client.check(&id, code).await.body["valid"], true);
    let unknown = "SELECT count(*) FROM delivery WHERE state <> 'sent'";
    assert_eq!(service.stack.postgres.number(unknown).await, 0);
}

async fn two_parts_come_out_whole(template: &str) {
    let settings = [("SMS_TEMPLATE", template), ("SMS_MAX_SEGMENTS", "2")];
    let Some(service) = Service::start(&settings).await else { return };

    let id = service.delivered(PHONE).await;

    let [sms] = &service.kannel.received(1).await[..] else { panic!("one SMS") };
    let (before, after) = template.split_once("{code}").unwrap();
    let rest = sms.text.strip_prefix(before).unwrap();
    let code = rest.strip_suffix(after).unwrap();
    assert_eq!(sms.parts, 2);
    assert_eq!(service.client.check(&id, code).await.body["valid"], true);
}

#[tokio::test]
async fn long_cyrillic_text_comes_out_whole() {
    let template =
        format!("Ваш код: {{code}}. {}", "Никому его не говорите! ".repeat(3).trim_end());
    two_parts_come_out_whole(&template).await;
}

#[tokio::test]
async fn long_latin_text_with_characters_outside_ascii_comes_out_whole() {
    let template =
        format!("Ihr Code {{code}} für 5 €. {}", "Bitte nicht weitergeben! ".repeat(6).trim_end());
    two_parts_come_out_whole(&template).await;
}

#[tokio::test]
async fn outage_of_the_smsc_delays_the_message_and_does_not_fail_it() {
    let Some(service) = Service::start(&[]).await else { return };
    service.kannel.operate("stop-smsc").await;
    let id = service.client.start(PHONE).await.id();
    // Kannel answers "Not routable", and also reports the message as rejected.
    let refused = "SELECT count(*) FROM delivery WHERE state = 'pending' AND attempt > 0";
    eventually("refused", PATIENCE, async || {
        (service.stack.postgres.number(refused).await == 1).then_some(())
    })
    .await;

    service.kannel.operate("start-smsc").await;

    // The fake SMSC has ended with its connection, so Kannel queues the message.
    eventually("sent", PATIENCE, async || {
        service.client.find(&id).await.events().contains(&"sent").then_some(())
    })
    .await;
    let found = service.client.find(&id).await;
    assert_eq!(found.body["status"], "pending");
    assert!(!found.events().contains(&"failed"), "{:?}", found.events());
}
