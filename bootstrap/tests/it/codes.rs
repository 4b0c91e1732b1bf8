//! No stored code is readable.

use std::time::Duration;

use tokio::process::Command;

use super::support::{
    Binary, Client, Folder, Stack, codes_for, environment, eventually, get, phone, post,
};

/// Ten digits, so that no code occurs by chance in a time or an id.
const LONG: (&str, &str) = ("CODE_LENGTH", "10");
const OPEN: (&str, &str) = ("API_AUTH", "none");
const KEY: (&str, &str) = ("PAYLOAD_KEY", "k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=");
const PATIENCE: Duration = Duration::from_secs(60);
const MESSAGES: usize = 12;
/// The code of a record that is not a valid message.
const BURIED: &str = "9876543210";

const UNPUBLISHED: &str =
    "SELECT count(*) FROM outbox WHERE sequence > (SELECT published FROM relay)";

fn phones() -> Vec<String> {
    (0..MESSAGES).map(|number| format!("+7999123{number:04}")).collect()
}

/// Returns the codes that a text contains, and where.
fn found(codes: &[String], place: &str, text: &[u8]) -> Vec<String> {
    let has = |code: &&String| text.windows(code.len()).any(|part| part == code.as_bytes());
    codes.iter().filter(has).map(|_| format!("a code is in {place}")).collect()
}

async fn dump(stack: &Stack) -> Vec<u8> {
    let postgres = &stack.postgres;
    let output = Command::new(format!("{}/pg_dump", environment("TEST_PG_BIN").unwrap()))
        .args(["-h", &postgres.host, "-p", &postgres.port.to_string(), "-U", &postgres.user])
        .args(["--inserts", &postgres.name])
        .env("PGPASSWORD", &postgres.password)
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.len() > 10_000);
    output.stdout
}

#[tokio::test]
async fn no_code_is_in_any_log_metric_or_table_after_a_run() {
    let Some(stack) = Stack::new().await else { return };
    let settings = [LONG, OPEN, KEY];
    // No consumer reads the topic yet, so the messages stay stored.
    let api = stack.start("api", &settings).ready().await;
    let client = Client::new(api.port);
    let mut ids = Vec::new();
    for (number, phone) in phones().iter().enumerate() {
        if number % 2 == 0 {
            ids.push(client.start(phone).await.id());
        } else {
            assert_eq!(post(api.port, phone.trim_start_matches('+')).await.0, 200);
        }
    }
    let waiting = dump(&stack).await;
    let processor = stack.start("processor", &settings).ready().await;
    eventually("published", PATIENCE, async || {
        (stack.postgres.number(UNPUBLISHED).await == 0).then_some(())
    })
    .await;
    let published = dump(&stack).await;
    let consumer = stack.start("consumer", &settings).ready().await;
    // A new group begins at `latest`, so earlier messages are published again.
    let mut codes = Vec::new();
    for phone in phones() {
        codes.extend(codes_for(&stack.gateway, &phone, 1).await);
    }
    eventually("sent", PATIENCE, async || {
        let sql = "SELECT count(*) FROM delivery WHERE state = 'sent'";
        (stack.postgres.number(sql).await == i64::try_from(MESSAGES).unwrap()).then_some(())
    })
    .await;
    assert_eq!(client.check(&ids[0], &codes[0]).await.body["valid"], true);
    client.check(&ids[1], "0000000000").await;

    assert_eq!(codes.len(), MESSAGES);
    let mut bad = found(&codes, "the outbox", &waiting);
    bad.extend(found(&codes, "what is in transit", &published));
    bad.extend(found(&codes, "the database after it", &dump(&stack).await));
    for record in stack.topic.records().await.concat() {
        let record = record.record;
        bad.extend(found(&codes, "a record's value", &record.value.unwrap()));
        bad.extend(found(&codes, "a record's key", &record.key.unwrap()));
    }
    for process in [&api, &processor, &consumer] {
        bad.extend(found(&codes, "a log", process.stderr().as_bytes()));
        let (_, metrics) = get(process.metrics_port, "/metrics").await.unwrap();
        bad.extend(found(&codes, "the metrics", metrics.as_bytes()));
    }
    assert_eq!(bad, [""; 0]);
}

#[tokio::test]
async fn without_a_payload_key_no_code_outlives_its_message() {
    let Some(stack) = Stack::new().await else { return };
    let settings = [LONG, OPEN];
    let consumer = stack.start("consumer", &settings).ready().await;
    let processor = stack.start("processor", &settings).ready().await;
    let api = stack.start("api", &settings).ready().await;
    let client = Client::new(api.port);
    // An invalid record becomes a dead letter without its content.
    stack
        .topic
        .console_produce(&format!("{{\"phone\":\"79991234567\",\"code\":\"{BURIED}\"\n"))
        .await;
    eventually("buried", PATIENCE, async || {
        (stack.postgres.number("SELECT count(*) FROM dead_letter").await == 1).then_some(())
    })
    .await;
    let mut codes = vec![BURIED.to_owned()];
    for phone in phones() {
        client.start(&phone).await.id();
        codes.extend(codes_for(&stack.gateway, &phone, 1).await);
    }
    eventually("all done", PATIENCE, async || {
        let sql = "SELECT count(*) FROM delivery WHERE state = 'sent'";
        let sent = stack.postgres.number(sql).await == i64::try_from(MESSAGES).unwrap();
        let left = stack.postgres.number("SELECT count(*) FROM outbox").await;
        (sent && left == 0).then_some(())
    })
    .await;

    let mut bad = found(&codes, "the database", &dump(&stack).await);
    for process in [&api, &processor, &consumer] {
        bad.extend(found(&codes, "a log", process.stderr().as_bytes()));
        let (_, metrics) = get(process.metrics_port, "/metrics").await.unwrap();
        bad.extend(found(&codes, "the metrics", metrics.as_bytes()));
    }
    assert_eq!(bad, [""; 0]);
}

#[tokio::test]
async fn files_of_the_embedded_default_contain_no_code() {
    let folder = Folder::new();
    let messager = Binary::new("messager", folder.path()).env(LONG.0, LONG.1).ready().await;
    for number in 0..MESSAGES {
        assert_eq!(post(messager.port, &phone(number)).await.0, 200);
    }
    let codes = eventually("shown", PATIENCE, async || {
        let shown = messager.stdout();
        let codes: Vec<String> = shown
            .lines()
            .filter_map(|line| Some(line.split_once("code: ")?.1.to_owned()))
            .collect();
        (codes.len() == MESSAGES).then_some(codes)
    })
    .await;

    let mut bad = Vec::new();
    let mut files = 0;
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        // The output of the console contains the codes.
        if path.extension().is_some_and(|extension| extension == "out") {
            continue;
        }
        files += 1;
        bad.extend(found(&codes, &name, &std::fs::read(&path).unwrap()));
        if name.ends_with(".secrets") {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
    assert!(files >= 3, "{files} files");
    assert_eq!(bad, [""; 0]);
}
