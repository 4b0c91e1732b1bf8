//! The service refuses unusable databases, and migrations are undone.

use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use super::support::{
    Binary, Folder, Gateway, PgBouncer, Postgres, Proxy, code_for, eventually, get, post,
};

const ALL: [&str; 4] = ["api", "processor", "consumer", "messager"];
const LATIN1: &str = "ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0";

fn binary(name: &str, env: &[(String, String)], folder: &Folder) -> Binary {
    let binary = Binary::new(name, folder.path());
    env.iter().fold(binary, |binary, (name, value)| binary.env(name, value))
}

fn with_port(postgres: &Postgres, port: u16) -> Vec<(String, String)> {
    let mut env = postgres.env();
    env.push(("POSTGRES_PORT".to_owned(), port.to_string()));
    env
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Checks that every binary and `migrate up` exit with 1 and report the fault in one line.
async fn all_refuse(env: &[(String, String)], why: &[&str]) {
    let folder = Folder::new();
    let migrated = binary("messager", env, &folder).args(&["migrate", "up"]).output().await;
    assert_eq!(migrated.status.code(), Some(1));
    assert!(why.iter().all(|why| said(&migrated).contains(why)), "{}", said(&migrated));
    assert_eq!(said(&migrated).lines().count(), 1, "{}", said(&migrated));
    for name in ALL {
        let mut running = binary(name, env, &folder).spawn();
        assert_eq!(running.ended().await.code(), Some(1), "{name}");
        let log = running.stderr();
        let last = log.lines().last().unwrap_or_default();
        assert!(why.iter().all(|why| last.contains(why)), "{name}: {log}");
    }
}

#[tokio::test]
async fn a_database_that_is_not_utf8_stops_every_start() {
    let Some(postgres) = Postgres::made(LATIN1).await else { return };

    all_refuse(&postgres.env(), &["LATIN1", "must be UTF8", &postgres.name]).await;
}

#[tokio::test]
async fn a_database_that_is_not_utf8_is_refused_when_its_server_comes() {
    let Some(postgres) = Postgres::made(LATIN1).await else { return };
    let proxy = Proxy::to(postgres.port).await;
    proxy.cut();
    let folder = Folder::new();
    let mut api = binary("api", &with_port(&postgres, proxy.port), &folder).spawn();
    eventually("alive, not ready", Duration::from_secs(20), async || {
        let (healthy, _) = get(api.metrics_port, "/healthz").await?;
        let (ready, why) = get(api.metrics_port, "/readyz").await?;
        (healthy == 200 && ready == 503 && !why.contains("LATIN1")).then_some(())
    })
    .await;

    proxy.mend();

    assert_eq!(api.ended().await.code(), Some(1));
    assert!(api.stderr().lines().last().unwrap().contains("LATIN1"), "{}", api.stderr());
}

#[tokio::test]
async fn pooler_that_shares_sessions_is_refused_at_the_start() {
    let Some(postgres) = Postgres::new().await else { return };
    for mode in ["transaction", "statement"] {
        let Some(pooler) = PgBouncer::before(&postgres, mode).await else { return };
        all_refuse(&with_port(&postgres, pooler.port), &["pool_mode = session"]).await;
    }
}

#[tokio::test]
async fn messages_arrive_through_a_pooler_in_session_mode() {
    let Some(postgres) = Postgres::new().await else { return };
    let Some(pooler) = PgBouncer::before(&postgres, "session").await else { return };
    let (folder, gateway) = (Folder::new(), Gateway::start().await);
    let mut env = with_port(&postgres, pooler.port);
    env.push(("GATEWAY".to_owned(), "webhook".to_owned()));
    env.push(("GATEWAY_URL".to_owned(), gateway.url()));
    for _ in 0..2 {
        let migrated = binary("messager", &env, &folder).args(&["migrate", "up"]).output().await;
        assert!(migrated.status.success(), "{}", said(&migrated));
    }
    let messager = binary("messager", &env, &folder).ready().await;

    assert_eq!(post(messager.port, "79990000001").await.0, 200);

    assert_eq!(code_for(&gateway, "79990000001").await.len(), 6);
}

async fn down(env: &[(String, String)], folder: &Folder, args: &[&str]) -> Output {
    binary("messager", env, folder).args(&["migrate", "down"]).args(args).output().await
}

async fn migrations_are_undone_only_if_confirmed_and_unused(
    env: &[(String, String)],
    roles: &[&str],
) {
    let folder = Folder::new();
    let migrated = binary("messager", env, &folder).args(&["migrate", "up"]).output().await;
    assert!(migrated.status.success(), "{}", said(&migrated));
    let made = binary("messager", env, &folder)
        .args(&["keys", "create", "--name", "shop", "--scopes", "send"])
        .output()
        .await;
    assert!(made.status.success(), "{}", said(&made));

    // Each role alone prevents the revert.
    for role in roles {
        let running = binary(role, env, &folder).ready().await;
        let refused = down(env, &folder, &["100", "--yes"]).await;
        assert_eq!(refused.status.code(), Some(1), "{role}: {}", said(&refused));
        assert!(said(&refused).contains("in use"), "{role}: {}", said(&refused));
        let (status, _) = running.stop("TERM").await;
        assert!(status.success(), "{role}");
    }

    // Without a terminal and --yes it only lists what it would delete.
    let told = eventually("unused", Duration::from_secs(20), async || {
        let told = down(env, &folder, &["100"]).await;
        assert_eq!(told.status.code(), Some(1));
        (!said(&told).contains("in use")).then_some(said(&told))
    })
    .await;
    for part in ["table api_key, 1 row: API keys", "table outbox, 0 rows", "--yes"] {
        assert!(told.contains(part), "no {part} in {told}");
    }
    // It asks on a terminal, and accepts no answer but yes.
    let asked = down_on_a_terminal(env, folder.path(), "no\n");
    assert!(asked.contains("Type yes") && asked.contains("nothing was changed"), "{asked}");
    let keys = binary("messager", env, &folder).args(&["keys", "list"]).output().await;
    assert!(String::from_utf8_lossy(&keys.stdout).contains("shop"), "all is still there");

    let done = down(env, &folder, &["--yes", "1"]).await;
    assert!(done.status.success(), "{}", said(&done));
    assert!(said(&done).contains("1 migration undone"), "{}", said(&done));
    let asked = down_on_a_terminal(env, folder.path(), "yes\n");
    assert!(asked.contains("migrations undone"), "{asked}");
    let status = binary("messager", env, &folder).args(&["migrate", "status"]).output().await;
    assert!(!String::from_utf8_lossy(&status.stdout).contains("applied"), "all are undone");
    let nothing = down(env, &folder, &["--yes"]).await;
    assert!(nothing.status.success() && said(&nothing).contains("nothing"), "{}", said(&nothing));
}

/// `messager migrate down 100` on a terminal of its own, with one line typed.
fn down_on_a_terminal(env: &[(String, String)], folder: &Path, typed: &str) -> String {
    let command = format!("{} migrate down 100", env!("CARGO_BIN_EXE_messager"));
    let mut script = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .envs(env.iter().cloned())
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    script.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    String::from_utf8_lossy(&script.wait_with_output().unwrap().stdout).into_owned()
}

#[tokio::test]
async fn migrations_are_undone_only_if_confirmed_and_unused_on_postgres() {
    let Some(postgres) = Postgres::new().await else { return };
    migrations_are_undone_only_if_confirmed_and_unused(
        &postgres.env(),
        &["api", "processor", "consumer"],
    )
    .await;
}

#[tokio::test]
async fn migrations_are_undone_only_if_confirmed_and_unused_on_sqlite() {
    let folder = Folder::new();
    let path = folder.path().join("sms.db").display().to_string();
    let env = [("SQLITE_PATH".to_owned(), path)];
    migrations_are_undone_only_if_confirmed_and_unused(&env, &["messager"]).await;
}

#[tokio::test]
async fn waiting_migration_names_the_holder_of_the_lock() {
    let Some(postgres) = Postgres::new().await else { return };
    let folder = Folder::new();
    postgres.execute("SELECT pg_advisory_lock(x'6d65737361676572'::bigint)").await;
    let held = binary("messager", &postgres.env(), &folder).args(&["migrate", "up"]).spawn();

    eventually("told", Duration::from_secs(20), async || {
        held.stderr().contains("waiting for another migration: process").then_some(())
    })
    .await;
}
