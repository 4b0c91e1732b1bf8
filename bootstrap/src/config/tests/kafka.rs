use adapters_broker::SaslMechanism;

use super::*;

fn problems(settings: &[(&str, &str)]) -> Vec<String> {
    let error = read(settings).unwrap_err().to_string();
    error.lines().skip(1).map(|line| line.trim().to_owned()).collect()
}

#[test]
fn kafka_is_neither_encrypted_nor_logged_in_to_by_default() {
    let kafka = read(GO_SERVICE).unwrap().kafka;

    assert!(kafka.tls.is_none() && kafka.sasl.is_none());
}

#[test]
fn sasl_is_a_mechanism_a_user_and_a_password() {
    let config = read(&[
        ("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT"),
        ("KAFKA_SASL_MECHANISM", "SCRAM-SHA-512"),
        ("KAFKA_SASL_USERNAME", "messager"),
        ("KAFKA_SASL_PASSWORD", " p4ss "),
    ])
    .unwrap();

    assert!(!format!("{config:?}").contains("p4ss"));
    let sasl = config.kafka.sasl.unwrap();
    assert_eq!((sasl.mechanism, &*sasl.username), (SaslMechanism::ScramSha512, "messager"));
    assert_eq!(sasl.password, " p4ss ", "as it is written");
    assert!(config.kafka.tls.is_none());
}

#[test]
fn settings_that_the_protocol_does_not_use_are_refused() {
    let problems = problems(&[
        ("KAFKA_SASL_MECHANISM", "PLAIN"),
        ("KAFKA_SASL_USERNAME", "messager"),
        ("KAFKA_SASL_PASSWORD", "p4ss"),
        ("KAFKA_SSL_CA", "/ca.pem"),
        ("KAFKA_SSL_CERT", "/cert.pem"),
        ("KAFKA_SSL_KEY", "/key.pem"),
    ]);

    assert_eq!(
        problems[0],
        "KAFKA_SASL_MECHANISM needs KAFKA_SECURITY_PROTOCOL=SASL_PLAINTEXT or SASL_SSL, which is \
         PLAINTEXT"
    );
    assert_eq!(
        problems[5],
        "KAFKA_SSL_KEY needs KAFKA_SECURITY_PROTOCOL=SSL or SASL_SSL, which is PLAINTEXT"
    );
    assert_eq!(problems.len(), 6, "{problems:?}");
    assert!(!problems.concat().contains("p4ss"));
}

#[test]
fn all_problems_of_kafka_are_reported_at_once() {
    let empty = std::env::temp_dir().join(format!("messager-{}-empty.pem", std::process::id()));
    std::fs::write(&empty, "").unwrap();
    let empty_path = empty.to_str().unwrap();

    let problems = problems(&[
        ("KAFKA_SECURITY_PROTOCOL", "SASL_SSL"),
        ("KAFKA_SASL_MECHANISM", "GSSAPI"),
        ("KAFKA_SSL_CA", empty_path),
        ("KAFKA_SSL_CERT", "/nowhere/cert.pem"),
        ("KAFKA_SSL_KEY", empty_path),
    ]);
    std::fs::remove_file(&empty).unwrap();

    let expected = [
        "KAFKA_SASL_MECHANISM is \"GSSAPI\", and must be one of PLAIN, SCRAM-SHA-256".to_owned(),
        "KAFKA_SASL_USERNAME is missing: SASL_SSL needs it".to_owned(),
        "KAFKA_SASL_PASSWORD is missing: SASL_SSL needs it".to_owned(),
        format!("KAFKA_SSL_CA cannot be used: {empty_path}: it contains no certificate"),
        "KAFKA_SSL_CERT cannot be used: /nowhere/cert.pem: No such file".to_owned(),
        format!("KAFKA_SSL_KEY cannot be used: {empty_path}: it contains no private key"),
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:?}");
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.starts_with(&expected), "{problem}");
    }
}

#[test]
fn client_certificate_and_its_key_go_together() {
    for (set, missing) in [("KAFKA_SSL_CERT", "KAFKA_SSL_KEY"), ("KAFKA_SSL_KEY", "KAFKA_SSL_CERT")]
    {
        let settings = [
            ("KAFKA_SECURITY_PROTOCOL", "SSL"),
            ("KAFKA_SSL_CA", "/nowhere/ca.pem"),
            (set, "/nowhere/file.pem"),
        ];

        let problems = problems(&settings);

        let expected =
            format!("{missing} is missing: KAFKA_SSL_CERT and KAFKA_SSL_KEY go together");
        assert_eq!(problems[0], expected);
        assert!(problems[1].starts_with("KAFKA_SSL_CA cannot be used"), "{problems:?}");
    }
}

#[test]
fn password_in_clear_text_is_warned_of() {
    let warning = |protocol, mechanism| {
        let settings = [
            ("KAFKA_SECURITY_PROTOCOL", protocol),
            ("KAFKA_SASL_MECHANISM", mechanism),
            ("KAFKA_SASL_USERNAME", "messager"),
            ("KAFKA_SASL_PASSWORD", "p4ss"),
        ];
        read(&settings).unwrap().warning_of_kafka()
    };

    assert!(warning("SASL_PLAINTEXT", "PLAIN").is_some());
    assert!(warning("SASL_PLAINTEXT", "SCRAM-SHA-256").is_none());
    assert!(read(&[]).unwrap().warning_of_kafka().is_none());
}
