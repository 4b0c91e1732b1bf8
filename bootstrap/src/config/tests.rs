mod kafka;
mod texts;
mod traces;
mod verification;

use std::{path::Path, time::Duration};

use adapters_persistence::SslMode;

use super::*;

fn read(settings: &[(&str, &str)]) -> Result<Config, InvalidConfig> {
    Config::from_lookup(&|name| {
        settings.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    })
}

/// The file `.env` of the Go service, as it is in its repository.
const GO_SERVICE: &[(&str, &str)] = &[
    ("APP_PORT", "8080"),
    ("APP_MODE", "release"),
    ("PROCESSOR_TAKE_MESSAGE_LIMIT", "1000"),
    ("PROCESSOR_RESERVATION_TIME", "1"),
    ("PROCESSOR_TOPIC", "message"),
    ("POSTGRES_HOST", "database"),
    ("POSTGRES_PORT", "5432"),
    ("POSTGRES_DB", "messager"),
    ("POSTGRES_USER", "user"),
    ("POSTGRES_PASSWORD", "secret"),
    ("DB_SSL_MODE", "disable"),
    ("PRODUCER_URL", "kafka:9092"),
    ("CODE_LENGTH", "6"),
    ("CONSUMER_URL", "kafka:9092"),
    ("CONSUMER_TOPIC", "message"),
    ("CONSUMER_GROUP_ID", "1"),
    ("CONSUMER_AUTO_OFFSET_RESET", "latest"),
    ("PROMETHEUS_SERVER_PORT", "8082"),
];

#[test]
fn problem_within_a_table_of_a_provider_names_the_setting() {
    let settings = [
        ("GATEWAY", "http"),
        ("HTTP_URL", "https://a.example/"),
        ("HTTP_RULES", r#"[{"status":400}]"#),
    ];

    let InvalidConfig(problems) = read(&settings).unwrap_err();

    assert_eq!(problems, ["HTTP_RULES[1].outcome is missing"]);
}

#[test]
fn no_settings_mean_the_embedded_default() {
    let config = read(&[]).unwrap();

    assert!(matches!(config.database, DatabaseSettings::Sqlite(_)));
    assert!(!config.relay.broker.is_kafka() && !config.consumer.broker.is_kafka());
    assert!(config.gateways.gateways.iter().all(GatewayConfig::is_console));
    assert_eq!((config.api.port, config.process.metrics_port), (8080, None));
    assert_eq!(config.codes.ttl, Duration::from_secs(600));
}

#[test]
fn settings_of_the_go_service_are_accepted() {
    let config = read(GO_SERVICE).unwrap();

    let DatabaseSettings::Postgres(postgres) = config.database else { panic!("not PostgreSQL") };
    assert_eq!((&*postgres.host, postgres.port), ("database", 5432));
    assert_eq!(config.relay.broker.servers, ["kafka:9092"]);
    assert_eq!(config.relay.broker.topic, "message");
    assert_eq!(config.relay.batch.get(), 1000);
    assert_eq!(config.process.metrics_port, Some(8082));
}

#[test]
fn every_bad_value_is_reported_with_its_rule() {
    let error = read(&[
        ("CODE_LENGTH", "0"),
        ("APP_PORT", "99999"),
        ("DB_SSL_MODE", "maybe"),
        ("POSTGRES_HOST", "db"),
        ("POSTGRES_PORT", "5432"),
        ("PRODUCER_URL", "kafka"),
        ("SMS_TEMPLATE", "no placeholder"),
        ("GATEWAY", "webhook"),
        ("APP_MODE", "fast"),
        ("PROCESSOR_TAKE_MESSAGE_LIMIT", "many"),
        ("PROCESSOR_TOPIC", "a topic"),
        ("LOG", "(("),
        ("DB_SSL_ROOT_CERT", "/nowhere/ca.pem"),
        ("SQLITE_PATH", ":memory:"),
        ("APP_HOST", "example.com"),
        ("PROMETHEUS_SERVER_HOST", "127.0.0.1:8082"),
        ("MAX_CONNECTIONS", "0"),
        ("MAX_CONNECTIONS_PER_PEER", "none"),
    ])
    .unwrap_err()
    .to_string();

    for expected in [
        "CODE_LENGTH is \"0\", and must be a whole number from 4 to 10",
        "APP_PORT is \"99999\", and must be a port",
        "DB_SSL_MODE is \"maybe\", and must be one of disable, allow, prefer, require, verify-ca",
        "POSTGRES_DB is missing",
        "POSTGRES_USER is missing",
        "PRODUCER_URL has \"kafka\", and must be host:port",
        "SMS_TEMPLATE is",
        "GATEWAY_URL is missing",
        "APP_MODE is \"fast\", and must be one of debug, release",
        "PROCESSOR_TAKE_MESSAGE_LIMIT is \"many\"",
        "PROCESSOR_TOPIC is \"a topic\"",
        "LOG is",
        "DB_SSL_ROOT_CERT cannot be used: /nowhere/ca.pem",
        "SQLITE_PATH is",
        "APP_HOST is \"example.com\", and must be *, localhost, or IP addresses of this machine",
        "PROMETHEUS_SERVER_HOST is \"127.0.0.1:8082\"",
        "MAX_CONNECTIONS is \"0\", and must be a whole number from 1 to 65535",
        "MAX_CONNECTIONS_PER_PEER is \"none\", and must be off, or a whole number from 1 to 65535",
    ] {
        assert!(error.contains(expected), "{expected} is not in:\n{error}");
    }
    assert_eq!(error.lines().count(), 19, "{error}");
}

/// Reads settings for PostgreSQL, and `more`.
fn read_postgres(more: &[(&str, &str)]) -> Result<Config, String> {
    let mut settings = vec![
        ("POSTGRES_HOST", "db"),
        ("POSTGRES_DB", "messager"),
        ("POSTGRES_USER", "messager"),
        ("POSTGRES_PASSWORD", "secret"),
    ];
    settings.extend(more);
    read(&settings).map_err(|error| error.to_string())
}

#[test]
fn verifying_modes_need_a_root_certificate() {
    for mode in ["verify-ca", "verify-full"] {
        let error = read_postgres(&[("DB_SSL_MODE", mode)]).unwrap_err();
        assert!(error.contains("DB_SSL_ROOT_CERT is missing"), "{error}");
    }
    for mode in ["disable", "allow", "prefer", "require"] {
        read_postgres(&[("DB_SSL_MODE", mode)]).unwrap();
    }
}

#[test]
fn system_authorities_require_verify_full() {
    let config = read_postgres(&[("DB_SSL_ROOT_CERT", "system")]).unwrap();
    let DatabaseSettings::Postgres(postgres) = config.database else { panic!("not PostgreSQL") };
    assert_eq!(postgres.ssl_mode, SslMode::VerifyFull);

    let weak = [("DB_SSL_ROOT_CERT", "system"), ("DB_SSL_MODE", "verify-ca")];
    let error = read_postgres(&weak).unwrap_err();
    assert!(error.contains("DB_SSL_MODE is verify-ca, and must be verify-full"), "{error}");
}

#[test]
fn gateway_url_is_checked_even_if_the_gateway_is_console() {
    let error = read(&[("GATEWAY_URL", "ftp://user:secret@gateway/")]).unwrap_err().to_string();

    assert!(error.contains("GATEWAY_URL must begin with http://"), "{error}");
    assert!(!error.contains("secret"), "{error}");
}

#[test]
fn settings_of_the_webhook_are_refused_for_other_gateways() {
    let problems = |settings: &[(&str, &str)]| match read(settings) {
        Ok(_) => Vec::new(),
        Err(InvalidConfig(problems)) => problems,
    };
    let webhook = [("GATEWAY_URL", "http://a.example/"), ("GATEWAY_DEDUPLICATES", "false")];
    let refused = [
        "GATEWAY_URL is only for GATEWAY=webhook, and GATEWAY is console: remove it",
        "GATEWAY_DEDUPLICATES is only for GATEWAY=webhook, and GATEWAY is console: remove it",
    ];

    assert_eq!(problems(&webhook), refused);
    assert_eq!(problems(&[("GATEWAY", "webhook"), webhook[0], webhook[1]]), [""; 0]);
    let defaults = [("GATEWAY_DEDUPLICATES", "true"), ("GATEWAY_KEEP_ALIVE", "1")];
    assert_eq!(problems(&defaults), [""; 0]);
    let idle = "GATEWAY_KEEP_ALIVE is not for GATEWAY=console, which calls nothing: remove it";
    assert_eq!(problems(&[("GATEWAY_KEEP_ALIVE", "30")]), [idle]);
    let twilio = problems(&[("GATEWAY", "twilio"), webhook[0]]);
    assert!(twilio.iter().any(|it| it.starts_with("GATEWAY_URL is only for")), "{twilio:?}");
}

#[test]
fn only_a_deduplicating_gateway_keeps_connections() {
    let keep_alive = |more: &[(&str, &str)]| -> Result<u64, InvalidConfig> {
        let webhook = [("GATEWAY", "webhook"), ("GATEWAY_URL", "http://gateway/send")];
        let gateways = read(&[&webhook, more].concat())?.gateways;
        Ok(gateways.gateways[0].table["keep_alive"].as_u64().unwrap())
    };

    assert_eq!(keep_alive(&[]).unwrap(), 1);
    assert_eq!(keep_alive(&[("GATEWAY_KEEP_ALIVE", "30")]).unwrap(), 30);
    let forgetful = ("GATEWAY_DEDUPLICATES", "false");
    assert_eq!(keep_alive(&[forgetful]).unwrap(), 0);
    assert_eq!(keep_alive(&[forgetful, ("GATEWAY_KEEP_ALIVE", "0")]).unwrap(), 0);
    let error = keep_alive(&[forgetful, ("GATEWAY_KEEP_ALIVE", "1")]).unwrap_err();
    assert!(error.to_string().contains("GATEWAY_KEEP_ALIVE must be 0"), "{error}");
}

#[test]
fn gateway_of_settings_has_a_price_a_budget_and_a_limit_on_segments() {
    let settings = [
        ("GATEWAY_MAX_SEGMENTS", "3"),
        ("GATEWAY_PRICE", "0.000005"),
        ("GATEWAY_DAILY_BUDGET", "100.5"),
    ];
    let webhook = [("GATEWAY", "webhook"), ("GATEWAY_URL", "http://gateway/send")];
    let twilio = [
        ("GATEWAY", "twilio"),
        ("TWILIO_ACCOUNT_SID", "AC1"),
        ("TWILIO_AUTH_TOKEN", "t"),
        ("TWILIO_FROM", "Shop"),
    ];
    for provider in [&[][..], &webhook, &twilio] {
        let config = read(&[provider, &settings].concat()).unwrap();
        let gateway = &config.gateways.gateways[0];
        let (_, common) = gateway.build().unwrap();
        let shown = |amount: Option<domain::Amount>| amount.unwrap().to_string();
        assert_eq!(shown(common.price.default), "0.000005");
        assert_eq!(shown(common.daily_budget.total), "100.5");
        assert_eq!(gateway.table["max_segments"], 3);
    }
}

#[test]
fn bad_amounts_and_authorities_of_a_gateway_are_reported_together() {
    let webhook = [("GATEWAY", "webhook"), ("GATEWAY_URL", "http://gateway/send")];
    for provider in [&[][..], &webhook] {
        let bad = [
            ("GATEWAY_MAX_SEGMENTS", "0"),
            ("GATEWAY_PRICE", "{ RU = 0.03 }"),
            ("GATEWAY_DAILY_BUDGET", "-1"),
        ];
        let error = read(&[provider, &bad].concat()).unwrap_err().to_string();
        for problem in [
            "GATEWAY_MAX_SEGMENTS is \"0\", and must be a whole number from 1 to 255",
            "GATEWAY_PRICE is \"{ RU = 0.03 }\", and must be an amount with",
            "GATEWAY_DAILY_BUDGET is \"-1\", and must be an amount with",
        ] {
            assert!(error.contains(problem), "{problem} is not in {error}");
        }

        let alone = [("GATEWAY_DAILY_BUDGET", "100"), ("GATEWAY_CA", "/nowhere.pem")];
        let error = read(&[provider, &alone].concat()).unwrap_err().to_string();
        assert!(error.contains("GATEWAY_DAILY_BUDGET needs price"), "{error}");
        assert!(error.contains("GATEWAY_CA cannot be used"), "{error}");
    }
}

#[test]
fn all_in_one_process_uses_kafka_for_both_ends_or_for_neither() {
    assert!(read(&[("PRODUCER_URL", "a:1")]).unwrap().check_all_in_one().is_err());
    assert!(
        read(&[("PRODUCER_URL", "a:1"), ("CONSUMER_URL", "a:1")])
            .unwrap()
            .check_all_in_one()
            .is_ok()
    );
    assert!(read(&[]).unwrap().check_all_in_one().is_ok());
}

#[test]
fn servers_are_separated_by_comma_or_space() {
    let config = read(&[("CONSUMER_URL", "a:1, b:2 [::1]:3")]).unwrap();

    assert_eq!(config.consumer.broker.servers, ["a:1", "b:2", "[::1]:3"]);
}

#[test]
fn server_is_a_host_and_a_port() {
    for (servers, rule) in [
        ("PLAINTEXT://kafka:9092", "no protocol"),
        ("kafka://kafka:9092", "no protocol"),
        ("a;b", "separated by a comma"),
        ("kafka", "the port is missing"),
        ("a:1,b", "the port is missing"),
        ("a:1;b:2", "separated by a comma"),
        ("a/b:1", "a host has letters"),
        ("user@kafka:1", "a host has letters"),
        ("a..b:1", "a host has letters"),
        ("-a:1", "a host has letters"),
        ("ka\u{444}ka:1", "a host has letters"),
        (":9092", "the host is missing"),
        ("kafka:", "the port is a whole number"),
        ("kafka:0", "the port is a whole number"),
        ("kafka:65536", "the port is a whole number"),
        ("kafka:+1", "the port is a whole number"),
        ("kafka:1/x", "the port is a whole number"),
        ("kafka:kafka", "the port is a whole number"),
        ("::1:9092", "in brackets"),
        ("[::1]9092", "a bracket is not closed"),
        ("[::1:9092", "a bracket is not closed"),
        ("[::1]", "a bracket is not closed"),
        ("[kafka]:9092", "brackets hold an IPv6 address"),
        ("10.0.0:9092", "four numbers"),
        ("10.0.0.256:9092", "four numbers"),
        (",", "it names no server"),
    ] {
        for name in ["PRODUCER_URL", "CONSUMER_URL"] {
            let error = read(&[(name, servers)]).unwrap_err().to_string();
            assert_eq!(error.lines().count(), 2, "{servers}: {error}");
            assert!(error.contains(rule) && error.contains(name), "{servers}: {error}");
        }
    }
    let good = "kafka-1.example.com.:9092,my_kafka:1 10.0.0.1:65535\n[::1]:3,, [2001:db8::1]:4";
    assert_eq!(
        read(&[("CONSUMER_URL", good)]).unwrap().consumer.broker.servers,
        ["kafka-1.example.com.:9092", "my_kafka:1", "10.0.0.1:65535", "[::1]:3", "[2001:db8::1]:4"]
    );
    assert_eq!(
        read(&[("CONSUMER_URL", "a:1,A:1 b:2,a:1")]).unwrap().consumer.broker.servers,
        ["a:1", "b:2"]
    );
    let secret = read(&[("PRODUCER_URL", "SASL_SSL://user:pa55@kafka:9092")]).unwrap_err();
    assert!(!secret.to_string().contains("pa55"), "{secret}");
}

#[test]
fn debug_output_has_no_password() {
    let webhook = [("GATEWAY", "webhook"), ("GATEWAY_URL", "http://user:secret@gateway/send")];
    let config = read(&[GO_SERVICE, &webhook].concat()).unwrap();

    assert!(!format!("{config:?}").contains("secret"));
}

/// The text of a file of the repository.
fn file(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::fs::read_to_string(root.join(path)).unwrap()
}

#[test]
fn example_file_changes_nothing() {
    let (example, problems) = crate::environment::parse(&file(".env.example"));
    assert_eq!(problems, [""; 0]);

    let config = Config::from_lookup(&|name| example.get(name).cloned()).unwrap();

    assert_eq!(format!("{config:?}"), format!("{:?}", read(&[]).unwrap()));
}

#[test]
fn example_file_and_documents_are_made_of_the_declarations() {
    assert_eq!(file(".env.example"), example(), "run `make settings`");
    assert!(file("docs/settings.md").contains(&markdown()), "run `make settings`");
}

#[test]
fn every_declared_setting_is_read_and_declared_once() {
    let nothing = |_: &str| None;
    let mut env = Reader::new(&nothing);
    Config::from_reader(&mut env).unwrap();

    let declared: Vec<&str> = Setting::all().map(|setting| setting.name).collect();
    let of_providers = gateways::variables().into_iter().flat_map(|(_, fields)| fields).count();
    assert_eq!(env.read.len(), declared.len());
    assert_eq!(effective::names().len(), declared.len() + of_providers);
}

#[test]
fn certificate_of_the_api_and_its_key_go_together() {
    for (set, missing) in [("APP_TLS_CERT", "APP_TLS_KEY"), ("APP_TLS_KEY", "APP_TLS_CERT")] {
        let InvalidConfig(problems) = read(&[(set, "/file.pem")]).unwrap_err();
        let expected = format!("{missing} is missing: APP_TLS_CERT and APP_TLS_KEY go together");
        assert_eq!(problems, [expected]);
    }

    // A process without the API may have no right to read them.
    let both = [("APP_TLS_CERT", "/nowhere.crt"), ("APP_TLS_KEY", " /nowhere.key ")];
    let tls = read(&both).unwrap().api.tls.unwrap();

    assert_eq!(
        (&*tls.certificate, &*tls.key),
        (Path::new("/nowhere.crt"), Path::new("/nowhere.key"))
    );
    assert_eq!(read(&[]).unwrap().api.tls, None);
}

#[test]
fn trusted_proxies_are_addresses_and_networks() {
    let proxies = |text: &str| read(&[("TRUSTED_PROXIES", text)]).map(|it| it.api.proxies);

    assert_eq!(read(&[]).unwrap().api.proxies.to_string(), "");
    let both = proxies("10.0.0.0/8, ::1").unwrap();
    assert_eq!(both.to_string(), "10.0.0.0/8,::1/128");
    let InvalidConfig(problems) = proxies("10.0.0.0/33").unwrap_err();
    let expected = "TRUSTED_PROXIES is \"10.0.0.0/33\", and must be IP addresses or networks such \
                    as 10.0.0.0/8, separated by commas";
    assert_eq!(problems, [expected]);
}

#[test]
fn token_of_metrics_is_a_secret() {
    let with = |token: &str| read(&[("METRICS_TOKEN", token)]);

    let config = with(" a-token-of-twenty-2 \n").unwrap();
    assert_eq!(config.process.metrics_token, "a-token-of-twenty-2".parse().ok());
    assert!(!format!("{config:?}").contains("a-token"));
    let InvalidConfig(problems) = with("too-short").unwrap_err();
    let expected =
        "METRICS_TOKEN cannot be used: it must have 16 to 256 characters, visible ones of ASCII";
    assert_eq!(problems, [expected]);
}

#[test]
fn password_of_the_page_is_a_secret_that_should_not_leave_the_machine() {
    let with = |password: &str, host: &str| {
        read(&[("OPERATOR_PASSWORD", password), ("PROMETHEUS_SERVER_HOST", host)])
    };

    let config = with("a-password-of-the-page", "*").unwrap();
    assert!(!format!("{config:?}").contains("a-password"));
    assert!(config.warning_of_page().unwrap().contains("clear text"));
    assert_eq!(with("a-password-of-the-page", "localhost").unwrap().warning_of_page(), None);
    assert_eq!(with("", "*").unwrap().warning_of_page(), None);
    let InvalidConfig(problems) = with("too-short", "*").unwrap_err();
    let expected = "OPERATOR_PASSWORD cannot be used: it must have 16 to 256 characters, visible \
                    ones of ASCII";
    assert_eq!(problems, [expected]);
}

#[test]
fn authority_of_the_receiver_of_events_is_read_at_the_start() {
    let problems = |url: &str, ca: &str| {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let set = [("EVENTS_URL", url), ("EVENTS_SECRET", secret), ("EVENTS_CA", ca)];
        let InvalidConfig(problems) = read(&set).unwrap_err();
        problems
    };

    let missing = problems("https://example.com/", "/nowhere.pem");
    assert_eq!(missing.len(), 1, "{missing:?}");
    assert!(missing[0].starts_with("EVENTS_CA cannot be used: /nowhere.pem: No such"));
    let without_tls = problems("http://example.com/", "/nowhere.pem");
    assert_eq!(without_tls[0], "EVENTS_CA needs EVENTS_URL to begin with https://");
}

#[test]
fn client_certificate_of_the_database_is_read_at_the_start() {
    let problems = |settings: &[(&str, &str)]| {
        let InvalidConfig(problems) = read(&[GO_SERVICE, settings].concat()).unwrap_err();
        problems
    };

    assert_eq!(
        problems(&[("DB_SSL_KEY", "/nowhere.key")]),
        ["DB_SSL_CERT is missing: DB_SSL_CERT and DB_SSL_KEY go together"]
    );
    // The file of the Go service has DB_SSL_MODE=disable.
    let all = problems(&[("DB_SSL_CERT", "/nowhere.crt"), ("DB_SSL_KEY", "/nowhere.key")]);
    assert_eq!(all[0], "DB_SSL_CERT needs TLS, and DB_SSL_MODE is disable");
    assert!(all[1].starts_with("DB_SSL_CERT cannot be used: /nowhere.crt: No such"), "{all:?}");
    assert!(all[2].starts_with("DB_SSL_KEY cannot be used: /nowhere.key: No such"), "{all:?}");
}

#[test]
fn hosts_of_the_database_are_a_list_with_one_port_or_one_for_each() {
    let with = |host: &str, port: &str| {
        let set = [("POSTGRES_HOST", host), ("POSTGRES_PORT", port)];
        // The first value of a name counts.
        read(&[&set[..], GO_SERVICE].concat())
    };
    let place = |host: &str, port: &str| with(host, port).unwrap().database.to_string();
    let problem = |host: &str, port: &str| {
        let InvalidConfig(problems) = with(host, port).unwrap_err();
        problems
    };

    assert_eq!(place("a", "5433"), "PostgreSQL at a:5433, database messager");
    assert_eq!(place("a, b", "5433"), "PostgreSQL at a:5433 or b:5433, database messager");
    assert_eq!(place("a,b", "1,2"), "PostgreSQL at a:1 or b:2, database messager");
    assert_eq!(
        problem("a,b", "1,2,3"),
        ["POSTGRES_PORT has 3 ports, and POSTGRES_HOST has 2 hosts"]
    );
    assert!(problem("a,,b", "1")[0].starts_with("POSTGRES_HOST has an empty host"));
    assert!(problem("/run,b", "1")[0].starts_with("POSTGRES_HOST has a local socket among"));
    assert!(problem("a,b", "1,x")[0].starts_with("POSTGRES_PORT is \"1,x\", and must be a port"));
}
