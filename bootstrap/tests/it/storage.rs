//! A message that cannot be stored is not accepted, and `/readyz` gives the reason.

use std::{collections::HashSet, time::Duration};

use sea_orm::{Database, SqliteTransactionMode, TransactionOptions, TransactionTrait};

use super::support::{
    Binary, Client, Folder, Postgres, Running, SmallDisk, Stack, eventually, get,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Starts verifications for new phones. Returns the ids of the accepted ones. The rest got a 503.
async fn starts(client: &Client, phones: std::ops::Range<usize>) -> Vec<String> {
    let mut accepted = Vec::new();
    for number in phones {
        let answer = client.start(&format!("+7999123{number:04}")).await;
        match answer.status {
            202 => accepted.push(answer.id()),
            503 => assert!(answer.headers.contains_key("retry-after"), "{}", answer.text),
            _ => panic!("{}", answer.text),
        }
    }
    accepted
}

async fn is_not_ready(process: &Running, reason: &str) {
    eventually("not ready", PATIENCE, async || is_unready(process, reason).await).await;
}

async fn is_unready(process: &Running, reason: &str) -> Option<()> {
    let (status, page) = get(process.metrics_port, "/readyz").await?;
    (status == 503 && page.contains(reason)).then_some(())
}

fn on_disk(folder: &Folder, disk: &SmallDisk) -> Binary {
    let path = disk.path().join("messager.db");
    Binary::new("messager", folder.path())
        .env("SQLITE_PATH", path.to_str().unwrap())
        // All phones have one prefix, and no code is checked.
        .env("GUARD", "off")
}

#[tokio::test]
async fn messages_accepted_by_sqlite_on_a_full_disk_are_stored() {
    let Some(disk) = SmallDisk::new(8) else { return };
    let folder = Folder::new();
    let messager = on_disk(&folder, &disk).ready().await;
    let client = Client::new(messager.port);
    let mut accepted = starts(&client, 0..5).await;
    assert_eq!(accepted.len(), 5);

    disk.fill();
    let while_full = starts(&client, 5..65).await;
    assert!(while_full.len() < 60, "the disk was full");
    accepted.extend(while_full);
    is_not_ready(&messager, "full").await;
    disk.free();
    client.check("0198f000-0000-7000-8000-000000000000", "123456").await;
    let mut afterwards = starts(&client, 65..115).await;
    messager.is_ready().await;
    afterwards.extend(starts(&client, 115..165).await);
    assert!(afterwards.len() >= 50, "{} of 100", afterwards.len());
    accepted.extend(afterwards);

    messager.stop("KILL").await;
    let again = on_disk(&folder, &disk).ready().await;
    let client = Client::new(again.port);
    let mut unknown = Vec::new();
    for id in &accepted {
        if client.find(id).await.status != 200 {
            unknown.push(id);
        }
    }
    assert!(unknown.is_empty(), "{} of {} are lost", unknown.len(), accepted.len());
}

#[tokio::test]
async fn readyz_reports_an_sqlite_file_that_another_process_has_locked() {
    let folder = Folder::new();
    let messager = Binary::new("messager", folder.path()).ready().await;
    let file = folder.path().join("messager.db");
    let other = Database::connect(format!("sqlite://{}", file.display())).await.unwrap();

    let lock = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    let lock = other.begin_with_options(lock).await.unwrap();
    is_not_ready(&messager, "locked").await;
    lock.rollback().await.unwrap();

    messager.is_ready().await;
    assert_eq!(starts(&Client::new(messager.port), 0..5).await.len(), 5);
}

#[tokio::test]
async fn messages_accepted_by_postgresql_on_a_full_disk_are_stored() {
    let Some(disk) = SmallDisk::new(24) else { return };
    let Some(postgres) = Postgres::on_disk(&disk).await else { return };
    let folder = Folder::new();
    let start = |name: &str| {
        // All phones have one prefix, and no code is checked.
        let binary = Binary::new(name, folder.path()).env("API_AUTH", "none").env("GUARD", "off");
        postgres.env().iter().fold(binary, |binary, (name, value)| binary.env(name, value))
    };
    let migrated = start("messager").args(&["migrate", "up"]).output().await;
    assert!(migrated.status.success());
    let api = start("api").ready().await;
    let client = Client::new(api.port);

    disk.fill();
    let mut accepted = Vec::new();
    let mut next = 0;
    // Tables have some free space inside their files: while they do, a later insert can succeed, and
    // the service is ready again.
    eventually("not ready", PATIENCE, async || {
        accepted.extend(starts(&client, next..next + 50).await);
        next += 50;
        // "No space left on device", or, if half a block is free, "wrote only 4096 of 8192 bytes".
        is_unready(&api, "could not extend file").await
    })
    .await;
    disk.free();
    api.is_ready().await;
    let afterwards = starts(&client, next..next + 50).await;
    assert_eq!(afterwards.len(), 50);
    accepted.extend(afterwards);

    let stored = postgres.number("SELECT count(*) FROM verification").await;
    assert_eq!(usize::try_from(stored).unwrap(), accepted.iter().collect::<HashSet<_>>().len());
}

#[tokio::test]
async fn readyz_reports_a_missing_privilege_of_any_part() {
    let Some(stack) = Stack::new().await else { return };
    for (binary, privilege, table) in [
        ("api", "INSERT", "outbox"),
        ("processor", "DELETE", "outbox"),
        ("consumer", "UPDATE", "delivery"),
    ] {
        let process = stack.start(binary, &[("API_AUTH", "none")]).ready().await;

        let revoke = format!("REVOKE {privilege} ON {table} FROM messager_{binary}");
        stack.postgres.execute(&revoke).await;
        is_not_ready(&process, &format!("{privilege} on {table}")).await;
        let grant = format!("GRANT {privilege} ON {table} TO messager_{binary}");
        stack.postgres.execute(&grant).await;

        process.is_ready().await;
    }
}

/// The list of privileges does not contain row-level security.
#[tokio::test]
async fn readyz_reports_writes_that_fail_for_another_reason() {
    let Some(stack) = Stack::new().await else { return };
    let api = stack.start("api", &[("API_AUTH", "none")]).ready().await;
    let client = Client::new(api.port);

    stack.postgres.execute("ALTER TABLE outbox ENABLE ROW LEVEL SECURITY").await;
    assert!(starts(&client, 0..5).await.is_empty());
    is_not_ready(&api, "row-level security").await;
    stack.postgres.execute("ALTER TABLE outbox DISABLE ROW LEVEL SECURITY").await;

    api.is_ready().await;
    assert_eq!(starts(&client, 5..10).await.len(), 5);
}

#[tokio::test]
async fn readyz_reports_a_server_that_became_read_only() {
    let Some(stack) = Stack::new().await else { return };
    let api = stack.start("api", &[]).ready().await;
    let database = &stack.postgres.name;

    let set = format!("ALTER DATABASE {database} SET default_transaction_read_only = on");
    stack.postgres.execute(&set).await;
    stack.postgres.end_sessions_of("messager_api").await;
    is_not_ready(&api, "read-only").await;
    let reset = format!("ALTER DATABASE {database} RESET default_transaction_read_only");
    // New sessions of the test are also read-only.
    let reset = format!("SET TRANSACTION READ WRITE; {reset}");
    stack.postgres.execute(&reset).await;
    stack.postgres.end_sessions_of("messager_api").await;

    api.is_ready().await;
}
