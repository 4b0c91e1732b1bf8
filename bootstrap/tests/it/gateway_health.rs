//! A gateway that does worse than the others gets fewer messages.

use std::time::Duration;

use sea_orm::{ConnectionTrait, Database, DbBackend, Statement};
use serde_json::{Value, json};

use super::support::{Binary, Folder, Gateway, eventually, phone, post};

const PATIENCE: Duration = Duration::from_secs(30);

/// Messages of the last minutes, half of them through each gateway. A fifth of the codes through
/// `first` was approved, and three fifths of those through `second`.
const PAST: [&str; 2] = [
    "INSERT INTO delivery (group_id, message_id, topic, partition, phone, state, gateway,
        accepted_at, expires_at, due_at, ended_at)
     SELECT 'group', id || '01', 'message', 0, 79990000000 + n, 'sent',
        iif(n % 2, 'first', 'second'), at, at, at, at FROM past",
    "INSERT INTO verification (id, phone, origin, status, pepper_id, code_length, sequence,
        created_at, sent_at, expires_at, ended_at)
     SELECT id || '00', 79990000000 + n, 'v1',
        iif(n / 2 % 5 < iif(n % 2, 1, 3), 'approved', 'expired'), 'a', 6, 1, at, at, at, at
     FROM past",
];

/// Each row of `past` is a message, with all of its id but the last byte. `NOW` is in seconds.
const ROWS: &str = "
    WITH RECURSIVE number (n) AS (
        SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n < 1199
    ), times AS (
        SELECT n, (NOW - 540) * 1000 + n * 400 AS at FROM number
    ), past AS (
        SELECT n, at, substr(printf('%012x', at), 1, 8) || '-' || substr(printf('%012x', at), 9)
            || '-7000-8000-' || printf('%010x', n) AS id
        FROM times
    ) ";

async fn add_past(folder: &Folder) {
    let migrated = Binary::new("messager", folder.path()).args(&["migrate", "up"]).output().await;
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let file = folder.path().join("messager.db");
    let database = Database::connect(format!("sqlite://{}", file.display())).await.unwrap();
    let now = Statement::from_string(DbBackend::Sqlite, "SELECT unixepoch()");
    let now = database.query_one_raw(now).await.unwrap().unwrap();
    let rows = ROWS.replace("NOW", &now.try_get_by_index::<i64>(0).unwrap().to_string());
    for insert in PAST {
        database.execute_unprepared(&format!("{rows}{insert}")).await.unwrap();
    }
    database.close().await.unwrap();
}

#[tokio::test]
async fn gateway_whose_codes_are_approved_less_often_gets_half_of_its_messages() {
    let (first, second) = (Gateway::start().await, Gateway::start().await);
    let folder = Folder::new();
    add_past(&folder).await;
    let gateway = |name: &str, url: &str| {
        format!("[gateway.{name}]\nprovider = \"webhook\"\nurl = \"{url}\"\n")
    };
    let text = [
        gateway("first", &first.url()),
        gateway("second", &second.url()),
        "[[route]]\nregions = [\"RU\"]\ngateways = [\"first\", \"second\"]\n".to_owned(),
    ]
    .concat();
    std::fs::write(folder.path().join("gateways.toml"), text).unwrap();
    let with_file = || Binary::new("messager", folder.path()).env("GATEWAYS_FILE", "gateways.toml");
    let off = |binary: Binary| binary.env("GUARD", "off").env("LIMIT_PREFIX", "off");

    let messager = off(with_file()).ready().await;

    eventually("a lower factor", PATIENCE, async || {
        let factor = messager.metric(r#"messager_gateway_factor{gateway="first",region="RU"}"#);
        factor.await.is_some_and(|it| it < 0.6).then_some(())
    })
    .await;
    let log = messager.stderr();
    assert!(log.contains("the gateway does worse than the others in this region"), "{log}");
    let labels = r#"gateway="second",region="RU",result="approved""#;
    let sampled = format!("messager_gateway_sampled_messages_total{{{labels}}}");
    // If a minute ended meanwhile, the next one is counted too.
    assert!(matches!(messager.metric(&sampled).await, Some(45.0 | 90.0)));
    let list = with_file().args(&["gateways", "--json"]).output().await;
    let list: Vec<Value> = serde_json::from_slice(&list.stdout).unwrap();
    let health = &list[0]["health"][0];
    assert_eq!((&list[0]["gateway"], &health["region"]), (&json!("first"), &json!("RU")));
    assert_eq!(health["factor"], json!(0.5), "{health}");
    let [sent, approved] = ["sent", "approved"].map(|name| health[name].as_u64().unwrap());
    assert!(sent >= 75 && 5 * approved == sent, "{health}");
    for number in 0..60 {
        assert_eq!(post(messager.port, &phone(9_992_000_000 + number)).await.0, 200);
    }
    eventually("all messages", PATIENCE, async || {
        (first.count() + second.count() == 60).then_some(())
    })
    .await;
    assert!(first.count() > 10 && second.count() > 10, "{} {}", first.count(), second.count());
}
