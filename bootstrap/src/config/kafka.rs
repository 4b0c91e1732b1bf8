//! TLS and SASL of the connections to Kafka.

use adapters_broker::{
    KafkaSasl, KafkaSecurity, KafkaTls, KafkaTlsFile, KafkaTlsFiles, SaslMechanism,
};

use super::{
    reader::Reader,
    setting::{
        Section, Setting,
        Values::{OneOf, Secret, Text},
    },
};

pub(super) const SECTION: Section = Section {
    title: "Security of Kafka",
    settings: &[
        Setting {
            name: "KAFKA_SECURITY_PROTOCOL",
            default: "PLAINTEXT",
            example: None,
            values: OneOf(&["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]),
            meaning: "[How connections to Kafka are protected](#tls-and-sasl-to-kafka). `SSL` is \
                      TLS, and `SASL` is a login.",
        },
        Setting {
            name: "KAFKA_SASL_MECHANISM",
            default: "",
            example: Some("SCRAM-SHA-512"),
            values: OneOf(&["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]),
            meaning: "How the login proves the password. Needed with SASL.",
        },
        Setting {
            name: "KAFKA_SASL_USERNAME",
            default: "",
            example: Some("messager"),
            values: Text("name"),
            meaning: "User to log in as. Needed with SASL.",
        },
        Setting {
            name: "KAFKA_SASL_PASSWORD",
            default: "",
            example: Some(""),
            values: Secret("text"),
            meaning: "Its password. Needed with SASL.",
        },
        Setting {
            name: "KAFKA_SSL_CA",
            default: "",
            example: Some("/etc/ssl/certs/kafka-ca.pem"),
            values: Text("path of a PEM file"),
            meaning: "The only authorities that may sign the certificates of the brokers. Unset, \
                      those of the operating system.",
        },
        Setting {
            name: "KAFKA_SSL_CERT",
            default: "",
            example: Some("/etc/ssl/certs/messager.pem"),
            values: Text("path of a PEM file"),
            meaning: "Client certificate, for brokers that want one. Needs `KAFKA_SSL_KEY`.",
        },
        Setting {
            name: "KAFKA_SSL_KEY",
            default: "",
            example: Some("/etc/ssl/private/messager.pem"),
            values: Text("path of a PEM file"),
            meaning: "Private key of the client certificate, not encrypted. Needs \
                      `KAFKA_SSL_CERT`.",
        },
    ],
};

/// What a protocol consists of.
#[derive(Clone, Copy)]
struct Protocol {
    name: &'static str,
    tls: bool,
    sasl: bool,
}

const PROTOCOLS: [Protocol; 4] = [
    Protocol { name: "PLAINTEXT", tls: false, sasl: false },
    Protocol { name: "SSL", tls: true, sasl: false },
    Protocol { name: "SASL_PLAINTEXT", tls: false, sasl: true },
    Protocol { name: "SASL_SSL", tls: true, sasl: true },
];

const SASL: [&str; 3] = ["KAFKA_SASL_MECHANISM", "KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"];
const FILES: [&str; 3] = ["KAFKA_SSL_CA", "KAFKA_SSL_CERT", "KAFKA_SSL_KEY"];

pub(super) fn read(env: &mut Reader<'_>) -> Option<KafkaSecurity> {
    let choices = PROTOCOLS.map(|protocol| (protocol.name, protocol));
    let protocol = env.choice("KAFKA_SECURITY_PROTOCOL", &choices);
    let mechanism = read_mechanism(env);
    let [_, username, password] = SASL.map(|name| env.text(name));
    let ca = env.text("KAFKA_SSL_CA");
    let client = env.certificate("KAFKA_SSL_CERT", "KAFKA_SSL_KEY");
    let protocol = protocol?;
    if !protocol.sasl {
        refuse(env, protocol, &SASL, "SASL_PLAINTEXT or SASL_SSL");
    }
    if !protocol.tls {
        refuse(env, protocol, &FILES, "SSL or SASL_SSL");
    }

    for name in SASL.iter().filter(|_| protocol.sasl) {
        if !env.is_set(name) {
            env.problem(name, &format!("is missing: {} needs it", protocol.name));
        }
    }
    let tls = protocol.tls.then(|| {
        let files = KafkaTlsFiles { authorities: ca.map(Into::into), client };
        read_files(env, &files)
    });
    let tls = match tls {
        Some(read) => Some(read?),
        None => None,
    };
    let sasl = if protocol.sasl {
        let username = username?.trim().to_owned();
        Some(KafkaSasl { mechanism: mechanism?, username, password: password? })
    } else {
        None
    };
    Some(KafkaSecurity { tls, sasl })
}

fn read_mechanism(env: &mut Reader<'_>) -> Option<SaslMechanism> {
    if !env.is_set("KAFKA_SASL_MECHANISM") {
        return None;
    }
    let mechanisms = [SaslMechanism::Plain, SaslMechanism::ScramSha256, SaslMechanism::ScramSha512];
    env.choice("KAFKA_SASL_MECHANISM", &mechanisms.map(|it| (it.name(), it)))
}

/// Notes each of these settings that is set, although the protocol does not use it.
fn refuse(env: &mut Reader<'_>, protocol: Protocol, names: &[&str], wanted: &str) {
    for name in names {
        if env.is_set(name) {
            let problem =
                format!("needs KAFKA_SECURITY_PROTOCOL={wanted}, which is {}", protocol.name);
            env.problem(name, &problem);
        }
    }
}

fn read_files(env: &mut Reader<'_>, files: &KafkaTlsFiles) -> Option<KafkaTls> {
    let problems = match KafkaTls::read(files) {
        Ok(tls) => return Some(tls),
        Err(problems) => problems,
    };
    for (file, problem) in problems {
        let name = match file {
            KafkaTlsFile::Authorities => "KAFKA_SSL_CA",
            KafkaTlsFile::Certificate => "KAFKA_SSL_CERT",
            KafkaTlsFile::Key => "KAFKA_SSL_KEY",
        };
        env.problem(name, &format!("cannot be used: {problem}"));
    }
    None
}
