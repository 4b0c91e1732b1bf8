//! Two gateways, of which the first fails.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use super::support::{Binary, Folder, Gateway, Running, eventually, post};

/// Within this time messages go out through the second gateway.
const FAILOVER: Duration = Duration::from_secs(5);
/// Within this time the first gateway is used again.
const HEALING: Duration = Duration::from_secs(60);

/// Numbers of Russia, of which those that begin with 7900 first go to a gateway that is not there.
fn number(prefix: &str, number: usize) -> String {
    format!("{prefix}{number:07}")
}

struct Service {
    first: Gateway,
    second: Gateway,
    messager: Running,
    _folder: Folder,
    posted: usize,
}

impl Service {
    async fn start() -> Self {
        let (first, second) = (Gateway::start().await, Gateway::start().await);
        let folder = Folder::new();
        let gateway = |name: &str, url: &str| {
            format!("[gateway.{name}]\nprovider = \"webhook\"\nurl = \"{url}\"\ntimeout = 4\n")
        };
        let text = format!(
            "{}{}{}\
             [[route]]\nprefixes = [\"7900\"]\ngateways = [\"gone\", \"second\"]\n\
             [[route]]\nregions = [\"RU\"]\ngateways = [\"first\", \"second\"]\n\
             [[route]]\ngateways = [\"second\"]\n\
             [failover]\nambiguous = \"next\"\n",
            gateway("gone", "http://127.0.0.1:1/"),
            gateway("first", &first.url()),
            gateway("second", &second.url()),
        );
        std::fs::write(folder.path().join("gateways.toml"), text).unwrap();
        let messager = Binary::new("messager", folder.path())
            .env("GATEWAYS_FILE", "gateways.toml")
            .ready()
            .await;
        Self { first, second, messager, _folder: folder, posted: 0 }
    }

    async fn post(&mut self, prefix: &str) -> String {
        self.posted += 1;
        let to = number(prefix, self.posted);
        assert_eq!(post(self.messager.port, &to).await.0, 200);
        to
    }

    /// Sends messages, and waits until the second gateway has them.
    async fn go_through_the_second(&mut self, prefix: &str, what: &str) {
        let mut to = HashSet::new();
        for _ in 0..20 {
            to.insert(self.post(prefix).await);
        }
        eventually(what, FAILOVER, async || {
            let received: HashSet<_> =
                self.second.received().into_iter().map(|sms| sms.phone).collect();
            to.is_subset(&received).then_some(())
        })
        .await;
    }

    /// Sends messages until the first gateway gets one.
    async fn heal(&mut self, what: &str) {
        let (before, end) = (self.first.count(), Instant::now() + HEALING);
        while self.first.count() == before {
            assert!(Instant::now() < end, "the first gateway is not used again after {what}");
            self.post("7999").await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_take_the_second_gateway_while_the_first_fails() {
    let mut service = Service::start().await;

    service.go_through_the_second("7900", "a connection is refused").await;
    for (status, what) in [(503, "503"), (429, "429"), (401, "401"), (500, "500")] {
        service.first.refuse_with(status);
        service.go_through_the_second("7999", what).await;
        service.first.refuse_with(0);
        service.heal(what).await;
    }

    let all = || [service.first.received(), service.second.received()].concat();
    eventually("all are sent", HEALING, async || (all().len() >= service.posted).then_some(()))
        .await;
    let ids: HashSet<_> = all().into_iter().map(|sms| sms.id).collect();
    assert_eq!((all().len(), ids.len()), (service.posted, service.posted), "none is sent twice");
    let outcomes = "messager_gateway_outcomes_total{class=\"unavailable\",gateway=\"gone\"}";
    assert!(service.messager.metric(outcomes).await.unwrap() >= 5.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_take_the_second_gateway_while_the_first_hangs() {
    let mut service = Service::start().await;
    service.first.answer_after(60_000);

    // They wait at the first gateway until they run out of time.
    for _ in 0..2 {
        service.post("7999").await;
    }
    tokio::time::sleep(Duration::from_millis(3_200)).await;
    service.go_through_the_second("7999", "it hangs").await;

    eventually("the first two went on", HEALING, async || {
        (service.second.count() >= service.posted).then_some(())
    })
    .await;
    let ids: HashSet<_> = service.second.received().into_iter().map(|sms| sms.id).collect();
    assert_eq!(ids.len(), service.second.count(), "none is sent twice there");
}
