//! The database: PostgreSQL, or an SQLite file.

use std::num::NonZeroU16;

use adapters_persistence::{
    CertificateFile, DatabaseSettings, PostgresHost, PostgresSettings, SslClientCert, SslMode,
    SslRootCert,
};

use super::{
    reader::Reader,
    setting::{
        Section, Setting,
        Values::{OneOf, Secret, Text},
    },
};

pub(super) const SECTION: Section = Section {
    title: "Database",
    settings: &[
        Setting {
            name: "POSTGRES_HOST",
            default: "",
            example: Some("127.0.0.1"),
            values: Text("host name or address, several by comma"),
            meaning: "Host of PostgreSQL, or [several](#several-hosts), of which the first is used \
                      that can write. If none of the five `POSTGRES_` settings is set, the \
                      database is an SQLite file.",
        },
        Setting {
            name: "POSTGRES_PORT",
            default: "5432",
            example: Some("5432"),
            values: Text("a port, a whole number from 1 to 65535, or one for each host by comma"),
            meaning: "Port of PostgreSQL.",
        },
        Setting {
            name: "POSTGRES_DB",
            default: "",
            example: Some("messager"),
            values: Text("name"),
            meaning: "Name of the database. Needed with `POSTGRES_HOST`.",
        },
        Setting {
            name: "POSTGRES_USER",
            default: "",
            example: Some("messager"),
            values: Text("name"),
            meaning: "Role to log in as. Needed with `POSTGRES_HOST`.",
        },
        Setting {
            name: "POSTGRES_PASSWORD",
            default: "",
            example: Some(""),
            values: Secret("text"),
            meaning: "Its password. Leave it out if the server asks for none.",
        },
        Setting {
            name: "DB_SSL_MODE",
            default: "prefer",
            example: None,
            values: OneOf(&["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]),
            meaning: "[TLS to PostgreSQL](#tls-to-postgresql), as libpq's `sslmode`. With \
                      `DB_SSL_ROOT_CERT=system` the default is `verify-full`.",
        },
        Setting {
            name: "DB_SSL_ROOT_CERT",
            default: "",
            example: Some("/etc/ssl/certs/postgres-ca.pem"),
            values: Text("path of a PEM file, or system"),
            meaning: "The only authorities that may sign the server's certificate. `system` stands \
                      for those of the operating system, and works with `verify-full` only. \
                      `verify-ca` and `verify-full` need this setting.",
        },
        Setting {
            name: "DB_SSL_CERT",
            default: "",
            example: Some("/etc/ssl/certs/messager-postgres.pem"),
            values: Text("path of a PEM file"),
            meaning: "[Client certificate](#tls-to-postgresql), as libpq's `sslcert`. Needs \
                      `DB_SSL_KEY`.",
        },
        Setting {
            name: "DB_SSL_KEY",
            default: "",
            example: Some("/etc/ssl/private/messager-postgres.pem"),
            values: Text("path of a PEM file"),
            meaning: "Private key of the client certificate, not encrypted, as libpq's `sslkey`. \
                      Needs `DB_SSL_CERT`.",
        },
        Setting {
            name: "SQLITE_PATH",
            default: "messager.db",
            example: None,
            values: Text("the path of a file"),
            meaning: "The SQLite file, if there is no PostgreSQL.",
        },
    ],
};

pub(super) fn read(env: &mut Reader<'_>) -> Option<DatabaseSettings> {
    const NEEDED: [&str; 4] =
        ["POSTGRES_HOST", "POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD"];

    let ssl_root_cert = env.text("DB_SSL_ROOT_CERT").map(|text| match &*text {
        "system" => SslRootCert::System,
        path => SslRootCert::File(path.into()),
    });
    if let Some(Err(problem)) = ssl_root_cert.as_ref().map(SslRootCert::check) {
        env.problem("DB_SSL_ROOT_CERT", &format!("cannot be used: {problem}"));
    }
    // As in libpq: a certificate that a public authority has signed must be for this host.
    if ssl_root_cert == Some(SslRootCert::System) {
        env.defaults_to("DB_SSL_MODE", "verify-full");
    }
    let ssl_mode = env.choice(
        "DB_SSL_MODE",
        &[
            ("disable", SslMode::Disable),
            ("allow", SslMode::Allow),
            ("prefer", SslMode::Prefer),
            ("require", SslMode::Require),
            ("verify-ca", SslMode::VerifyCa),
            ("verify-full", SslMode::VerifyFull),
        ],
    );
    let ssl_client_cert = read_client_cert(env, ssl_mode);
    let ports = env.optional("POSTGRES_PORT", |text| {
        text.split(',').map(|port| port.trim().parse().ok().map(NonZeroU16::get)).collect()
    });
    let sqlite = env.parsed("SQLITE_PATH", |path| {
        // SQLite would keep the data in memory only.
        (!path.contains(":memory:")).then(|| path.to_owned())
    });
    let [host, database, user, password] = NEEDED.map(|name| env.text(name));

    let any = [&host, &database, &user, &password].iter().any(|it| it.is_some()) || ports.is_some();
    if !any {
        return Some(DatabaseSettings::Sqlite(sqlite?.into()));
    }
    let (Some(host), Some(database), Some(user)) = (&host, &database, &user) else {
        for (name, value) in NEEDED.iter().zip([&host, &database, &user]) {
            if value.is_none() {
                env.problem(
                    name,
                    "is missing: the POSTGRES_ settings go together; none of them means SQLite",
                );
            }
        }
        return None;
    };
    check_root_cert(env, ssl_mode, ssl_root_cert.as_ref());
    let mut hosts = read_hosts(env, host, ports)?.into_iter();
    let PostgresHost { name: host, port } = hosts.next()?;
    Some(DatabaseSettings::Postgres(PostgresSettings {
        host,
        port,
        more_hosts: hosts.collect(),
        database: database.clone(),
        user: user.clone(),
        // A server that trusts its own machine asks for none.
        password,
        ssl_mode: ssl_mode?,
        ssl_root_cert,
        ssl_client_cert,
    }))
}

/// Reads the hosts, each with its port.
fn read_hosts(
    env: &mut Reader<'_>,
    text: &str,
    ports: Option<Vec<u16>>,
) -> Option<Vec<PostgresHost>> {
    let names: Vec<_> = text.split(',').map(str::trim).collect();
    if names.contains(&"") {
        env.problem("POSTGRES_HOST", "has an empty host: write one or more, separated by commas");
        return None;
    }
    if names.len() > 1 && names.iter().any(|name| name.starts_with('/')) {
        let problem = "has a local socket among several hosts: only one host can be a socket";
        env.problem("POSTGRES_HOST", problem);
        return None;
    }
    let ports = ports.unwrap_or_else(|| vec![5432]);
    if ports.len() != 1 && ports.len() != names.len() {
        let problem =
            format!("has {} ports, and POSTGRES_HOST has {} hosts", ports.len(), names.len());
        env.problem("POSTGRES_PORT", &problem);
        return None;
    }
    let ports = ports.iter().cycle();
    let host = |(name, port): (&&str, &u16)| PostgresHost { name: (*name).to_owned(), port: *port };
    Some(names.iter().zip(ports).map(host).collect())
}

/// Reads the client certificate. Its files are read again for each connection.
fn read_client_cert(env: &mut Reader<'_>, mode: Option<SslMode>) -> Option<SslClientCert> {
    let (certificate, key) = env.certificate("DB_SSL_CERT", "DB_SSL_KEY")?;
    if mode == Some(SslMode::Disable) {
        env.problem("DB_SSL_CERT", "needs TLS, and DB_SSL_MODE is disable");
    }
    let client = SslClientCert { certificate, key };
    for (file, problem) in client.check().err().into_iter().flatten() {
        let name = match file {
            CertificateFile::Certificate => "DB_SSL_CERT",
            CertificateFile::Key => "DB_SSL_KEY",
        };
        env.problem(name, &format!("cannot be used: {problem}"));
    }
    Some(client)
}

/// Checks what `DB_SSL_MODE` needs of `DB_SSL_ROOT_CERT`, as libpq does.
fn check_root_cert(env: &mut Reader<'_>, mode: Option<SslMode>, root: Option<&SslRootCert>) {
    let Some(mode) = mode else { return };
    match root {
        None if mode.verifies() => env.problem(
            "DB_SSL_ROOT_CERT",
            &format!(
                "is missing: DB_SSL_MODE={} needs the PEM file of the authority that signs the \
                 server's certificate, or system",
                mode.name()
            ),
        ),
        Some(SslRootCert::System) if mode != SslMode::VerifyFull => env.problem(
            "DB_SSL_MODE",
            &format!("is {}, and must be verify-full, as DB_SSL_ROOT_CERT is system", mode.name()),
        ),
        _ => {}
    }
}
