//! Databases that are refused.

use std::{process::Output, time::Duration};

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

/// Every binary and `migrate up` end with 1, and say in one line of theirs what is wrong.
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
async fn a_pooler_that_shares_sessions_stops_every_start() {
    let Some(postgres) = Postgres::new().await else { return };
    for mode in ["transaction", "statement"] {
        let Some(pooler) = PgBouncer::before(&postgres, mode).await else { return };
        all_refuse(&with_port(&postgres, pooler.port), &["pool_mode = session"]).await;
    }
}

#[tokio::test]
async fn through_a_pooler_in_session_mode_messages_arrive() {
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

/// A migration that another one keeps waiting says for whom, and does not wait for ever.
#[tokio::test]
async fn a_migration_says_for_whom_it_waits() {
    let Some(postgres) = Postgres::new().await else { return };
    let folder = Folder::new();
    postgres.execute("SELECT pg_advisory_lock(x'6d65737361676572'::bigint)").await;
    let held = binary("messager", &postgres.env(), &folder).args(&["migrate", "up"]).spawn();

    eventually("told", Duration::from_secs(20), async || {
        held.stderr().contains("waiting for another migration: process").then_some(())
    })
    .await;
}
