//! `messager doctor` names the cause in broken set-ups.

use std::time::Duration;

use super::support::{Binary, Folder, Postgres, Stack, eventually, free_port};

/// The exit code of the command, and its findings as `state subject: finding`.
async fn doctor(binary: Binary) -> (Option<i32>, Vec<String>) {
    let output = binary.args(&["doctor"]).output().await;
    let text = String::from_utf8(output.stdout).unwrap();
    let finding = |line: &str| {
        let mut cells = line.split('\t');
        let mut next = || cells.next().unwrap_or_default().to_owned();
        format!("{} {}: {} ({})", next(), next(), next(), next())
    };
    (output.status.code(), text.lines().skip(1).map(finding).collect())
}

/// Asserts that the command exits with this code and has a finding with all of these words.
async fn says(binary: Binary, code: i32, words: &[&str]) {
    let (exit, findings) = doctor(binary).await;
    let has_all = |finding: &String| words.iter().all(|word| finding.contains(word));
    assert!(findings.iter().any(has_all), "{words:?} in {findings:#?}");
    assert_eq!(exit, Some(code), "{findings:#?}");
}

#[tokio::test]
async fn embedded_default_is_examined() {
    let folder = Folder::new();
    let messager = || Binary::new("messager", folder.path());
    says(messager(), 1, &["failure database: there is no", "messager.db"]).await;
    says(messager().env("CODE_LENGTH", "0"), 1, &["failure settings: CODE_LENGTH is \"0\""]).await;

    let running = messager().ready().await;
    eventually("healthy", Duration::from_secs(20), async || {
        let (code, findings) = doctor(messager()).await;
        // Without settings, the API is open, and no gateway sends.
        let is_good = |finding: &String| {
            ["are open", "the console gateway"].iter().any(|it| finding.contains(it))
                || finding.starts_with("ok ")
        };
        (code == Some(0) && findings.iter().all(is_good)).then_some(())
    })
    .await;

    running.stop("TERM").await;
    says(messager(), 0, &["warning consumer: no consumer of group", "no SMS is sent"]).await;
}

#[tokio::test]
async fn fault_of_the_database_is_named() {
    let Some(postgres) = Postgres::new().await else { return };
    let folder = Folder::new();
    let messager = |name: &str, value: &str| {
        let binary = Binary::new("messager", folder.path());
        let env = postgres.env();
        let binary = env.iter().fold(binary, |binary, (name, value)| binary.env(name, value));
        binary.env(name, value)
    };

    says(messager("LOG", "info"), 1, &["failure database", "run `messager migrate up`"]).await;
    let nothing = free_port().to_string();
    says(messager("POSTGRES_PORT", &nothing), 1, &["Connection refused", "start PostgreSQL"]).await;
    says(messager("POSTGRES_DB", "nowhere"), 1, &["failure database", "create the database"]).await;
    says(messager("POSTGRES_USER", "nowhere"), 1, &["failure database", "POSTGRES_USER"]).await;
}

#[tokio::test]
async fn fault_of_the_broker_and_of_a_gateway_is_named() {
    let Some(stack) = Stack::new().await else { return };
    let owner = &*stack.postgres.user;
    let messager = |more: &[(&str, &str)]| {
        stack.start("messager", &[&[("POSTGRES_USER", owner)], more].concat())
    };
    let nothing = format!("127.0.0.1:{}", free_port());

    says(messager(&[("PRODUCER_URL", &nothing)]), 1, &["failure producer: Kafka"]).await;
    says(messager(&[("CONSUMER_URL", &nothing)]), 1, &["failure reader: Kafka"]).await;
    says(messager(&[("CONSUMER_TOPIC", "no-such")]), 0, &["warning reader: there is no topic"])
        .await;
    says(messager(&[]), 0, &["warning producer", "one replica"]).await;
    says(messager(&[]), 0, &["warning gateways: PUBLIC_URL is not set"]).await;
    let drained = messager(&[]).args(&["gateways", "drain", "default"]).output().await;
    assert!(drained.status.success());
    says(messager(&[]), 0, &["warning gateways: default is drained", "undrain default"]).await;

    let api = [("POSTGRES_USER", "messager_api")];
    says(messager(&api), 1, &["failure database: the database role lacks", "--part"]).await;
    let apart = messager(&api).args(&["doctor", "--part", "api"]).output().await;
    let text = String::from_utf8(apart.stdout).unwrap();
    assert!(text.contains("ok\tdatabase\ta row was stored"), "{text}");
}
