//! Several hosts of PostgreSQL: a primary and its standby.

use std::{net::TcpListener, time::Duration};

use ports::free_port;
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use tokio::time::{Instant, sleep};

use super::{support::new_postgres, tls::Server};
use crate::{Database, DatabaseSettings, PostgresHost, PostgresSettings, SslMode, SslRootCert};

const PATIENCE: Duration = Duration::from_secs(30);

/// A standby of a server, in the folder of that server. It ends when this value is dropped.
struct Standby<'a> {
    of: &'a Server,
    port: u16,
}

impl<'a> Standby<'a> {
    fn start(of: &'a Server) -> Self {
        let port = free_port();
        let (bin, socket) = (of.bin.display(), of.folder.path().display());
        of.shell(&format!(
            "'{bin}/pg_basebackup' -D standby -h '{socket}' -p {} -U messager -R -X stream \
             --checkpoint=fast --no-sync",
            of.port
        ));
        of.shell(&format!(
            "'{bin}/pg_ctl' start -D standby -w -t 60 -s -l standby.log \
             -o \"-p {port} -c listen_addresses=localhost -c unix_socket_directories='{socket}'\""
        ));
        Self { of, port }
    }

    fn control(&self, what: &str) {
        self.of.shell(&format!("'{}/pg_ctl' {what} -D standby -w -s", self.of.bin.display()));
    }
}

impl Drop for Standby<'_> {
    fn drop(&mut self) {
        self.control("stop -m immediate");
    }
}

/// Returns the port of the server that a new session is at, or the error.
async fn port_of(settings: &PostgresSettings) -> Result<String, String> {
    let settings = DatabaseSettings::Postgres(settings.clone());
    let database = Database::connect_lazily(&settings, "messager hosts", 1);
    let found = port_in(&database).await;
    database.close().await.unwrap();
    found
}

/// Returns the port of the server that the pool uses.
async fn port_in(database: &Database) -> Result<String, String> {
    let asked = "SELECT current_setting('port')";
    let asked = Statement::from_string(DbBackend::Postgres, asked);
    match database.connection().query_one_raw(asked).await {
        Ok(row) => Ok(row.unwrap().try_get_by_index(0).unwrap()),
        Err(error) => Err(database.reason(error).await.to_string()),
    }
}

#[tokio::test]
async fn session_is_opened_at_the_host_that_can_write_also_after_a_failover() {
    let Some(server) = Server::start() else { return };
    server.become_(true, "named", "host all all all trust\nlocal replication all trust").await;
    let standby = Standby::start(&server);
    let host = |port| PostgresHost { name: "localhost".to_owned(), port };
    let settings = |first: u16, more: &[u16], ssl_mode| PostgresSettings {
        port: first,
        more_hosts: more.iter().copied().map(host).collect(),
        ssl_mode,
        ssl_root_cert: Some(SslRootCert::File(server.root("ca"))),
        ..server.settings()
    };
    let nothing = free_port();
    let primary = server.port.to_string();

    for mode in [SslMode::Disable, SslMode::Prefer, SslMode::VerifyFull] {
        for (first, more) in [
            (server.port, &[standby.port][..]),
            (standby.port, &[server.port]),
            (nothing, &[standby.port, server.port]),
        ] {
            let found = port_of(&settings(first, more, mode)).await;
            assert_eq!(found, Ok(primary.clone()), "{first} {more:?} {mode:?}");
        }
    }
    // What examines a server outside of a pool tries the hosts, too.
    let both = settings(standby.port, &[server.port], SslMode::Prefer);
    let lazily = |settings: &PostgresSettings| {
        Database::connect_lazily(&DatabaseSettings::Postgres(settings.clone()), "messager hosts", 2)
    };
    lazily(&both).admit().await.unwrap();
    let refused = port_of(&settings(standby.port, &[nothing], SslMode::Prefer)).await.unwrap_err();
    assert!(refused.contains("read-only") || refused.contains("refused"), "{refused}");

    // A pool that is in use goes on at the new primary.
    let pool = lazily(&both);
    assert_eq!(port_in(&pool).await, Ok(primary));
    server.shell(&format!("'{}/pg_ctl' stop -D data -m immediate -s", server.bin.display()));
    standby.control("promote");
    let begun = Instant::now();
    let expected = Ok(standby.port.to_string());
    while port_in(&pool).await != expected {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}");
        sleep(Duration::from_millis(20)).await;
    }
    println!("another session after {:?}", begun.elapsed());
    pool.close().await.unwrap();
    // The end of the test stops it again.
    server.shell(&format!(
        "'{}/pg_ctl' start -D data -w -t 60 -s -l log \
         -o \"-p {} -c unix_socket_directories='{}'\"",
        server.bin.display(),
        server.port,
        server.folder.path().display()
    ));
}

#[tokio::test]
async fn host_that_never_answers_is_passed_over_once_by_all_connections_that_wait_for_it() {
    let Some(settings) = new_postgres().await else { return };
    // The kernel accepts connections for it, and nothing answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = PostgresHost { name: settings.host.clone(), port: settings.port };
    let expected = Ok(settings.port.to_string());
    let settings = PostgresSettings {
        host: "127.0.0.1".to_owned(),
        port: silent.local_addr().unwrap().port(),
        more_hosts: vec![other],
        ..settings
    };
    let pool = Database::connect_lazily(&DatabaseSettings::Postgres(settings), "messager hosts", 4);

    let _ = tokio::join!(port_in(&pool), port_in(&pool), port_in(&pool), port_in(&pool));
    let found = tokio::join!(port_in(&pool), port_in(&pool), port_in(&pool), port_in(&pool));

    for port in [found.0, found.1, found.2, found.3] {
        assert_eq!(port, expected);
    }
    pool.close().await.unwrap();
}
