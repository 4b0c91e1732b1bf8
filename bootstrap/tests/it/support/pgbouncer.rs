use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::{Folder, Postgres, environment, eventually};

/// A real PgBouncer in front of a database. It ends when this value is dropped.
#[derive(Debug)]
pub(crate) struct PgBouncer {
    child: Child,
    pub(crate) port: u16,
    _folder: Folder,
}

impl PgBouncer {
    pub(crate) async fn before(postgres: &Postgres, mode: &str) -> Option<Self> {
        let program = environment("TEST_PGBOUNCER")?;
        let folder = Folder::new();
        let config = folder.path().join("pgbouncer.ini");
        let port = super::free_port();
        let Postgres { host, port: server, name, user, password, .. } = postgres;
        let text = format!(
            "[databases]\n\
             {name} = host={host} port={server} dbname={name} user={user} password={password}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\n\
             unix_socket_dir =\npool_mode = {mode}\ndefault_pool_size = 50\n"
        );
        std::fs::write(&config, text).unwrap();
        // PgBouncer refuses to run as root.
        #[expect(clippy::disallowed_methods, reason = "tests are told of their servers this way")]
        let switch = std::env::var("TEST_PG_USER_SWITCH").unwrap_or_default();
        let mut words = switch.split_whitespace().chain([&*program]);
        let child = Command::new(words.next().unwrap())
            .args(words)
            .arg("--quiet")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("PgBouncer", Duration::from_secs(20), async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        Some(Self { child, port, _folder: folder })
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // The child may be the program that switches the user. It forwards TERM, but not KILL.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
    }
}
