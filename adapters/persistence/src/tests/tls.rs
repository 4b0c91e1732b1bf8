//! TLS to a real PostgreSQL. The service must behave as psql, which uses libpq.

use std::{
    fmt::Write,
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use sea_orm::{ConnectionTrait, DbBackend, Statement};
use tokio::time::{Instant, sleep};

use super::support::{Folder, empty_folder, environment};
use crate::{Database, DatabaseSettings, PostgresSettings, SslClientCert, SslMode, SslRootCert};

const MODES: [SslMode; 6] = [
    SslMode::Disable,
    SslMode::Allow,
    SslMode::Prefer,
    SslMode::Require,
    SslMode::VerifyCa,
    SslMode::VerifyFull,
];

/// The clients that the server accepts.
const ALL: &str = "host all all all trust";
const TLS_ONLY: &str = "hostssl all all all trust";
const NO_TLS_ONLY: &str = "hostnossl all all all trust";

/// Creates all certificates, most of them as PostgreSQL's manual does.
const CERTIFICATES: &str = r#"
set -e
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; chmod 600 "$1.key"; }
request() { key "$1"; openssl req -new -key "$1.key" -subj "/CN=$2" -out "$1.csr"; }
# sign NAME ISSUER DAYS EXTENSIONS
sign() {
    printf "$4" >"$1.ext"
    openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -days "$3" \
        ${4:+-extfile "$1.ext"} -out "$1.crt" 2>/dev/null
}
for ca in ca other; do
    key $ca
    openssl req -new -x509 -key $ca.key -subj "/CN=$ca" -days 100 -out $ca.crt
done
names='subjectAltName=DNS:localhost,IP:127.0.0.1\n'
request named x;        sign named ca 100 "$names"
request expired x;      sign expired ca -1 "$names"
request elsewhere localhost; sign elsewhere ca 100 'subjectAltName=DNS:db.example.com\n'
request version1 localhost;  sign version1 ca 100 ''
request client x;       sign client ca 100 "extendedKeyUsage=clientAuth\n$names"
request middle middle;  sign middle ca 100 'basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\n'
request under x;        sign under middle 100 "$names"
request leaf leaf;      sign leaf ca 100 'basicConstraints=CA:FALSE\n'
request misissued x;    sign misissued leaf 100 "$names"
request critical x;     sign critical ca 100 "1.2.3.4=critical,ASN1:NULL\n$names"
cat middle.crt >>under.crt
cat leaf.crt >>misissued.crt
key itself
openssl req -new -x509 -key itself.key -subj /CN=localhost -days 100 -out itself.crt
key oldca
openssl req -new -key oldca.key -subj /CN=oldca -out oldca.csr
openssl x509 -req -in oldca.csr -signkey oldca.key -days 100 -out oldca.crt 2>/dev/null
request underold x;     sign underold oldca 100 "$names"
cat other.crt ca.crt >both.crt
# Authorities that were renewed: the same name and key, and the old certificate has expired.
cp ca.key oldroot.key
openssl req -new -key ca.key -subj /CN=ca -out oldroot.csr
printf 'basicConstraints=critical,CA:TRUE\n' >oldroot.ext
openssl x509 -req -in oldroot.csr -signkey ca.key -days -1 -extfile oldroot.ext -out oldroot.crt \
    2>/dev/null
cat oldroot.crt ca.crt >renewed.crt
cat ca.crt oldroot.crt >renewedfirst.crt
cp middle.csr oldmiddle.csr
sign oldmiddle ca -1 'basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\n'
request underboth x;    sign underboth middle 100 "$names"
cat oldmiddle.crt middle.crt >>underboth.crt
# Clients: the common name is that of the role. The first is of version 1, as in PostgreSQL's manual.
request messager messager;   sign messager ca 100 ''
request viamiddle messager;  sign viamiddle middle 100 'extendedKeyUsage=clientAuth\n'
cat middle.crt >>viamiddle.crt
request someone someone;     sign someone ca 100 'extendedKeyUsage=clientAuth\n'
request foreign messager;    sign foreign other 100 'extendedKeyUsage=clientAuth\n'
request lapsed messager;     sign lapsed ca -1 'extendedKeyUsage=clientAuth\n'
chmod 644 *.crt
"#;

/// A PostgreSQL with or without TLS. It ends when this value is dropped.
pub(super) struct Server {
    pub(super) folder: Folder,
    pub(super) port: u16,
    pub(super) bin: PathBuf,
    switch: Vec<String>,
}

impl Server {
    pub(super) fn start() -> Option<Self> {
        let Some(bin) = environment("TEST_PG_BIN") else {
            assert!(environment("REQUIRE_SERVICES").is_none(), "TEST_PG_BIN is not set");
            eprintln!("skipped: TEST_PG_BIN is not set");
            return None;
        };
        let switch = environment("TEST_PG_USER_SWITCH").unwrap_or_default();
        let folder = empty_folder();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Self {
            folder,
            port,
            bin: bin.into(),
            switch: switch.split_whitespace().map(str::to_owned).collect(),
        };
        server.shell(CERTIFICATES);
        server.shell(&format!(
            "'{}/initdb' -D data -U messager -A trust -E UTF8 --locale=C --no-sync >setup.log",
            server.bin.display()
        ));
        server.configure(false, "named", ALL);
        let socket = server.folder.path().display();
        server.shell(&format!(
            "'{}/pg_ctl' start -D data -w -t 60 -s -l log \
             -o \"-p {port} -c listen_addresses=localhost -c unix_socket_directories='{socket}'\"",
            server.bin.display()
        ));
        Some(server)
    }

    /// Runs a script in the folder of the server, as its user.
    pub(super) fn shell(&self, script: &str) {
        let mut words = self.switch.iter().map(String::as_str).chain(["sh", "-c", script]);
        let status = Command::new(words.next().unwrap())
            .args(words)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{script}");
    }

    fn configure(&self, tls: bool, certificate: &str, lets_in: &str) {
        let on = if tls { "on" } else { "off" };
        // The last value of a setting counts.
        self.shell(&format!(
            "printf '%s\\n' 'ssl = {on}' \"ssl_cert_file = '../{certificate}.crt'\" \
             \"ssl_key_file = '../{certificate}.key'\" 'fsync = off' >>data/postgresql.conf
             echo '{lets_in}' >data/pg_hba.conf
             echo 'local all all trust' >>data/pg_hba.conf"
        ));
    }

    /// Configures the server, and waits until it has loaded the configuration.
    pub(super) async fn become_(&self, tls: bool, certificate: &str, lets_in: &str) {
        self.configure(tls, certificate, lets_in);
        let loaded = "SELECT extract(epoch FROM pg_conf_load_time())::text";
        let before = self.local(loaded);
        self.local("SELECT pg_reload_conf()");
        let begun = Instant::now();
        while self.local(loaded) == before {
            assert!(begun.elapsed() < Duration::from_secs(20), "not reloaded");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Runs a query through the local socket, which has no TLS.
    fn local(&self, sql: &str) -> String {
        let host = self.folder.path().display();
        self.psql(&format!("host={host}"), sql).expect("the socket is open")
    }

    fn psql(&self, connection: &str, sql: &str) -> Result<String, String> {
        // The keys of clients are those of the server's user. libpq refuses keys of others.
        let mut words = self.switch.iter().map(String::as_str).chain(["env", "-i"]);
        let output = Command::new(words.next().unwrap())
            .args(words)
            // So that psql finds no ~/.postgresql.
            .arg("HOME=/nonexistent")
            .arg(self.bin.join("psql"))
            .args(["-XAtq", "-c", sql])
            .arg(format!("{connection} port={} user=messager dbname=postgres", self.port))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub(super) fn settings(&self) -> PostgresSettings {
        PostgresSettings {
            host: "localhost".to_owned(),
            port: self.port,
            database: "postgres".to_owned(),
            user: "messager".to_owned(),
            password: None,
            ssl_mode: SslMode::Require,
            ssl_root_cert: None,
            ssl_client_cert: None,
            more_hosts: Vec::new(),
        }
    }

    pub(super) fn root(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.crt"))
    }

    /// Connects with psql and with the service. Both must agree whether there is a connection, and
    /// whether it has TLS.
    async fn compare(&self, mode: SslMode, root: Option<&str>, host: &str, case: &str) {
        self.compare_as(None, mode, root, host, case).await;
    }

    /// The same, with a client certificate.
    async fn compare_as(
        &self,
        client: Option<&str>,
        mode: SslMode,
        root: Option<&str>,
        host: &str,
        case: &str,
    ) {
        const HAS_TLS: &str = "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let root = root.map(|name| self.root(name));
        let client = client.map(|name| SslClientCert {
            certificate: self.root(name),
            key: self.folder.path().join(format!("{name}.key")),
        });
        let mut connection = format!("host={host} sslmode={}", mode.name());
        if let Some(root) = &root {
            let _ = write!(connection, " sslrootcert={}", root.display());
        }
        if let Some(SslClientCert { certificate, key }) = &client {
            let (certificate, key) = (certificate.display(), key.display());
            let _ = write!(connection, " sslcert={certificate} sslkey={key}");
        }
        let expected = self.psql(&connection, HAS_TLS);
        let settings = PostgresSettings {
            host: host.to_owned(),
            ssl_mode: mode,
            ssl_root_cert: root.map(SslRootCert::File),
            ssl_client_cert: client,
            ..self.settings()
        };
        let database =
            Database::connect_lazily(&DatabaseSettings::Postgres(settings), "messager tls", 1);
        let asked = Statement::from_string(DbBackend::Postgres, HAS_TLS);
        let found = match database.connection().query_one_raw(asked).await {
            Ok(row) => Ok(row.unwrap().try_get_by_index::<String>(0).unwrap()),
            Err(error) => Err(error.to_string()),
        };
        database.close().await.unwrap();
        // psql prints `t` or `true`, as the cast returns.
        assert_eq!(
            found.as_ref().ok(),
            expected.as_ref().ok(),
            "{case}, {connection}: psql {expected:?}, the service {found:?}"
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shell(&format!("'{}/pg_ctl' stop -D data -m immediate -s", self.bin.display()));
    }
}

#[tokio::test]
async fn each_mode_connects_as_libpq_does() {
    let Some(server) = Server::start() else { return };
    for (tls, lets_in, certificate) in [
        (false, ALL, "named"),
        (true, ALL, "named"),
        (true, TLS_ONLY, "named"),
        (true, NO_TLS_ONLY, "named"),
        (true, TLS_ONLY, "elsewhere"),
    ] {
        server.become_(tls, certificate, lets_in).await;
        let case = format!("TLS {tls}, {lets_in}, {certificate}");
        for mode in MODES {
            for root in [None, Some("ca"), Some("other")] {
                server.compare(mode, root, "localhost", &case).await;
            }
            server.compare(mode, Some("ca"), "127.0.0.1", &case).await;
        }
    }
}

#[tokio::test]
async fn each_certificate_is_accepted_as_libpq_does() {
    let Some(server) = Server::start() else { return };
    for (certificate, roots) in [
        ("expired", &["ca"][..]),
        ("version1", &["ca", "other", "version1"]),
        ("client", &["ca"]),
        ("under", &["ca", "middle", "both"]),
        ("misissued", &["ca", "leaf"]),
        ("critical", &["ca"]),
        ("itself", &["itself", "ca"]),
        ("underold", &["oldca"]),
        ("named", &["oldroot", "renewed", "renewedfirst"]),
        ("underboth", &["ca", "renewed"]),
    ] {
        server.become_(true, certificate, TLS_ONLY).await;
        for mode in [SslMode::Prefer, SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull] {
            for root in roots {
                for host in ["localhost", "127.0.0.1"] {
                    server.compare(mode, Some(root), host, certificate).await;
                }
            }
        }
        server.compare(SslMode::Require, None, "localhost", certificate).await;
    }
}

#[tokio::test]
async fn replaced_root_file_counts_for_the_next_connection() {
    let Some(server) = Server::start() else { return };
    server.become_(true, "named", TLS_ONLY).await;
    let root = server.folder.path().join("current.pem");
    let settings = PostgresSettings {
        ssl_mode: SslMode::VerifyFull,
        ssl_root_cert: Some(SslRootCert::File(root.clone())),
        ..server.settings()
    };
    let connects = async || {
        let settings = DatabaseSettings::Postgres(settings.clone());
        Database::connect_lazily(&settings, "messager tls", 1).ping().await
    };

    fs::copy(server.root("other"), &root).unwrap();
    let refused = connects().await.unwrap_err().to_string();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
    fs::copy(server.root("ca"), &root).unwrap();
    connects().await.unwrap();
}

/// The certificate proves the role, with a password or alone.
#[tokio::test]
async fn client_certificate_is_accepted_as_libpq_does() {
    const BY_CERTIFICATE: &str = "hostssl all all all cert";
    const VERIFIED: &str = "hostssl all all all trust clientcert=verify-full";
    const TLS_AND_NO_CERTIFICATE: &str = "hostssl all all all trust";
    let Some(server) = Server::start() else { return };
    server.shell("echo \"ssl_ca_file = '../ca.crt'\" >>data/postgresql.conf");
    for lets_in in [BY_CERTIFICATE, VERIFIED, TLS_AND_NO_CERTIFICATE] {
        server.become_(true, "named", lets_in).await;
        for client in ["messager", "viamiddle", "someone", "foreign", "lapsed", ""] {
            // With TLS 1.2 the server refuses in the handshake, with TLS 1.3 behind it.
            for mode in [SslMode::Prefer, SslMode::VerifyFull] {
                let case = format!("{lets_in}, {client}");
                let client = Some(client).filter(|it| !it.is_empty());
                server.compare_as(client, mode, Some("ca"), "localhost", &case).await;
            }
        }
    }
}

#[tokio::test]
async fn refused_client_certificate_is_reported_and_a_replaced_one_is_used() {
    let Some(server) = Server::start() else { return };
    server.shell("echo \"ssl_ca_file = '../ca.crt'\" >>data/postgresql.conf");
    server.become_(true, "named", "hostssl all all all cert").await;
    let [certificate, key] =
        ["crt", "key"].map(|it| server.folder.path().join(format!("now.{it}")));
    let settings = DatabaseSettings::Postgres(PostgresSettings {
        ssl_mode: SslMode::VerifyFull,
        ssl_root_cert: Some(SslRootCert::File(server.root("ca"))),
        ssl_client_cert: Some(SslClientCert { certificate, key }),
        ..server.settings()
    });
    let connects = async |certificate: &str, key: &str| {
        server.shell(&format!("rm -f now.crt now.key; cp {certificate}.crt now.crt"));
        server.shell(&format!("cp {key}.key now.key 2>/dev/null; chmod 644 now.* || true"));
        let connected = Database::connect_lazily(&settings, "messager tls", 1).ping().await;
        connected.map_err(|error| error.to_string())
    };

    for (certificate, key, expected) in [
        ("someone", "someone", "certificate authentication failed for user \"messager\""),
        ("foreign", "foreign", "received fatal alert: UnknownCA"),
        ("lapsed", "lapsed", "received fatal alert: CertificateExpired"),
        ("messager", "someone", "the key of the client certificate: is not the key of the"),
        ("messager", "missing", "now.key: No such file"),
    ] {
        let refused = connects(certificate, key).await.unwrap_err();
        assert!(refused.contains(expected), "{certificate}, {key}: {refused}");
    }
    connects("messager", "messager").await.unwrap();
}

#[test]
fn files_without_valid_certificates_are_refused() {
    let folder = empty_folder();
    let check = |text: &[u8]| {
        let path = folder.path().join("root.pem");
        fs::write(&path, text).unwrap();
        SslRootCert::File(path).check().unwrap_err()
    };
    let damaged = b"-----BEGIN CERTIFICATE-----\nMAMCAQA=\n-----END CERTIFICATE-----\n";
    let cut = b"-----BEGIN CERTIFICATE-----\nMAMCAQA=\n";
    for text in [&b""[..], b"\n\n", b"no certificate", &[0x30, 0x82, 1, 1, 0], damaged, cut] {
        assert!(check(text).contains("root.pem"), "{text:?}");
    }
    assert!(SslRootCert::File(folder.path().to_owned()).check().is_err(), "a folder");
}

#[tokio::test]
async fn pool_outlives_its_database_handle() {
    let Some(server) = Server::start() else { return };
    server.become_(true, "named", TLS_ONLY).await;
    let settings = DatabaseSettings::Postgres(server.settings());

    let pool = Database::connect_lazily(&settings, "messager tls", 1).connection();

    pool.ping().await.unwrap();
}
