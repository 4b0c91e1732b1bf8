//! Settings of the binaries, and the form of their log.

use std::time::Duration;

use serde_json::Value;

use super::support::{Binary, Folder, Postgres, Running, Stack, eventually, post};

const ALL: [&str; 4] = ["api", "processor", "consumer", "messager"];

#[tokio::test]
async fn all_bad_settings_are_reported_at_once() {
    let folder = Folder::new();
    std::fs::write(folder.path().join(".env"), "no setting\n").unwrap();
    for binary in ALL {
        let output = Binary::new(binary, folder.path())
            .env("CODE_LENGTH", "0")
            .env("APP_PORT", "99999")
            .env("DB_SSL_MODE", "maybe")
            .env("POSTGRES_HOST", "db")
            .output()
            .await;

        assert_eq!(output.status.code(), Some(2), "{binary}");
        let said = String::from_utf8(output.stderr).unwrap();
        let names = ["CODE_LENGTH", "APP_PORT", "DB_SSL_MODE", "POSTGRES_DB", "POSTGRES_USER"];
        for name in names.into_iter().chain([".env, line 1"]) {
            assert!(said.contains(name), "{binary} does not name {name}:\n{said}");
        }
    }
}

#[tokio::test]
async fn outdated_schema_is_refused_with_the_command_that_helps() {
    let Some(postgres) = Postgres::new().await else { return };
    let folder = Folder::new();
    let start = |name| {
        postgres
            .env()
            .iter()
            .fold(Binary::new(name, folder.path()), |binary, (name, value)| binary.env(name, value))
    };

    for binary in ALL {
        let mut running = start(binary).spawn();
        assert_eq!(running.ended().await.code(), Some(1), "{binary}");
        assert!(running.stderr().contains("messager migrate up"), "{}", running.stderr());
    }

    let status = async || {
        let output = start("messager").args(&["migrate", "status"]).output().await;
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    // A word of its own, because the name of a migration may contain it.
    let says = |status: &str, word| status.split_whitespace().any(|it| it == word);
    let at_first = status().await;
    assert!(says(&at_first, "pending") && !says(&at_first, "applied"));
    let steps: [(&[&str], bool); 4] =
        [(&["up"], false), (&["up"], false), (&["down", "--yes"], true), (&["up"], false)];
    for (step, pending) in steps {
        let output = start("messager").args(&["migrate"]).args(step).output().await;
        assert!(output.status.success(), "{step:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(says(&status().await, "pending"), pending, "{step:?}");
    }
    start("api").ready().await;
}

#[tokio::test]
async fn env_file_of_the_go_service_starts_every_binary_on_one_host() {
    let Some(stack) = Stack::new().await else { return };
    let value = |name: &str| {
        stack.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()).unwrap()
    };
    let port = stack.start("api", &[]).port;
    let file = format!(
        "APP_PORT={port}\nAPP_MODE=release\n\nPROCESSOR_TAKE_MESSAGE_LIMIT=1000\n\
         PROCESSOR_RESERVATION_TIME=1\nPROCESSOR_TOPIC=\"{topic}\"\n\nPOSTGRES_HOST=127.0.0.1\n\
         POSTGRES_PORT={pg_port}\nPOSTGRES_DB={db}\nPOSTGRES_USER={user}\n\
         POSTGRES_PASSWORD={password}\nDB_SSL_MODE=disable\n\nPRODUCER_URL=\"{kafka}\"\n\n\
         CODE_LENGTH=6\n\nCONSUMER_URL={kafka}\nCONSUMER_TOPIC={topic}\nCONSUMER_GROUP_ID=1\n\
         CONSUMER_AUTO_OFFSET_RESET=latest\n\nPROMETHEUS_SERVER_PORT={metrics}\n",
        topic = stack.topic.name,
        pg_port = stack.postgres.port,
        db = stack.postgres.name,
        user = stack.postgres.user,
        password = stack.postgres.password,
        kafka = value("CONSUMER_URL"),
        metrics = stack.start("api", &[]).metrics_port,
    );
    std::fs::write(stack.folder.path().join(".env"), file).unwrap();

    let mut running = Vec::new();
    for binary in ["api", "processor", "consumer"] {
        let binary = Binary::new(binary, stack.folder.path());
        running.push(binary.without("APP_PORT").without("PROMETHEUS_SERVER_PORT").spawn());
    }

    let (status, _) = eventually("accepting", Duration::from_secs(30), async || {
        super::support::get(port, "/").await?;
        let answer = post(port, "89999999999").await;
        (answer.0 == 200).then_some(answer)
    })
    .await;
    assert_eq!(status, 200);
    eventually("shown", Duration::from_secs(60), async || {
        running[2].stdout().contains("SMS to 89999999999").then_some(())
    })
    .await;
}

/// Parses each line as the JSON object that it must be.
#[track_caller]
fn objects(log: &str) -> Vec<Value> {
    let object = |line: &str| {
        let object = serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{line}"));
        for member in ["timestamp", "level", "message", "target"] {
            assert!(object[member].is_string(), "no {member} in {line}");
        }
        object
    };
    log.lines().map(object).collect()
}

#[tokio::test]
async fn every_line_of_a_release_log_is_json() {
    let bad = Folder::new();
    std::fs::write(bad.path().join(".env"), "no setting\nSMS_TEMPLATE=\"a \\\"quote\"\n").unwrap();
    for binary in ALL {
        let output = Binary::new(binary, bad.path()).output().await;
        let log = objects(std::str::from_utf8(&output.stderr).unwrap());
        assert_eq!((output.status.code(), log.len()), (Some(2), 1), "{binary}");
        assert!(log[0]["message"].as_str().unwrap().contains(".env, line 1"), "{log:?}");
    }

    // The schema is created, refused and accepted, a port is in use, and the process ends in each
    // way.
    let folder = Folder::new();
    std::fs::write(folder.path().join(".env"), "OTHER=1\n").unwrap();
    for binary in ["api", "processor", "consumer"] {
        let mut refused = Binary::new(binary, folder.path()).spawn();
        assert_eq!(refused.ended().await.code(), Some(1), "{binary}");
        let log = objects(&refused.stderr());
        assert!(log.iter().any(|line| line["message"].as_str().unwrap().contains("migrate up")));
    }
    let first = Binary::new("messager", folder.path()).ready().await;
    let log = objects(&first.stderr());
    for expected in ["schema is up to date", "unknown setting OTHER", "migration"] {
        let says = |line: &Value| line["message"].as_str().unwrap().contains(expected);
        assert!(log.iter().any(says), "{expected}: {log:?}");
    }
    assert_eq!(post(first.port, "79990000001").await.0, 200);
    let mut second = Binary::new("messager", folder.path())
        .env("APP_PORT", &first.port.to_string())
        .env("PROMETHEUS_SERVER_PORT", &first.metrics_port.to_string())
        .spawn();
    assert_eq!(second.ended().await.code(), Some(1));
    assert!(!objects(&second.stderr()).is_empty());
    let log = first.stderr_path();
    let (status, _) = first.stop("TERM").await;
    assert_eq!(status.code(), Some(0));
    objects(&std::fs::read_to_string(log).unwrap());
}

#[tokio::test]
async fn commands_and_debug_mode_report_in_text() {
    let folder = Folder::new();
    std::fs::write(folder.path().join(".env"), "no setting\n").unwrap();
    let said = async |binary: Binary| String::from_utf8(binary.output().await.stderr).unwrap();

    let new = |name| Binary::new(name, folder.path());
    let debug = said(new("api").env("APP_MODE", "debug")).await;
    let command = said(new("messager").args(&["keys", "list"])).await;
    let check = said(new("consumer").args(&["healthcheck"])).await;

    for said in [debug, command, check] {
        assert_eq!(said, "the settings are not usable:\n  .env, line 1: must be NAME=value\n");
    }
}

#[tokio::test]
async fn kubernetes_service_links_are_not_settings() {
    let folder = Folder::new();
    let linked = Binary::new("messager", folder.path())
        .env("POSTGRES_PORT", "tcp://10.0.0.1:5432")
        .env("POSTGRES_SERVICE_HOST", "10.0.0.1")
        .env("POSTGRES_SERVICE_PORT", "5432")
        .env("POSTGRES_PORT_5432_TCP_ADDR", "10.0.0.1")
        .ready()
        .await;

    let log = objects(&linked.stderr());
    let told: Vec<_> = log.iter().filter(|line| line.to_string().contains("POSTGRES_")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0]["message"].as_str().unwrap().starts_with("POSTGRES_PORT was set by Kubernetes")
    );
}

#[tokio::test]
async fn env_file_is_read_as_the_go_service_reads_it() {
    let folder = Folder::new();
    let file = "\u{feff}API_AUTH=all\r\nexport GATEWAY: console # comment\r\n\
                SMS_TEMPLATE=\"Shop\\n\\\"Your\\\" code: {code}\" # text\r\n";
    std::fs::write(folder.path().join(".env"), file).unwrap();
    let running: Running = Binary::new("messager", folder.path()).ready().await;
    assert_eq!(post(running.port, "79990000001").await.0, 401);
    drop(running);

    std::fs::write(folder.path().join(".env"), file.replace("=all", "=none")).unwrap();
    let running = Binary::new("messager", folder.path()).ready().await;
    assert_eq!(post(running.port, "79990000001").await.0, 200);
    eventually("shown", Duration::from_secs(30), async || {
        running.stdout().contains("SMS to 79990000001: Shop\n\"Your\" code: ").then_some(())
    })
    .await;
}

#[tokio::test]
async fn settings_are_shown_with_their_sources_and_without_secrets() {
    let folder = Folder::new();
    let file = "# comment\nPOSTGRES_PASSWORD=secret\nAPI_AUHT=all\nSHOP=1\n\
                EVENTS_URL=https://user:secret@example.com/secret\nCODE_TTL=60\n";
    std::fs::write(folder.path().join(".env"), file).unwrap();
    let settings = || Binary::new("messager", folder.path()).env("CODE_LENGTH", "8");

    let output = settings().args(&["settings"]).output().await;
    let said = String::from_utf8(output.stdout).unwrap();
    let warned = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    for line in [
        "name\tvalue\tsource",
        "CODE_LENGTH\t8\tenvironment",
        "CODE_TTL\t60\t.env line 6",
        "GATEWAY\tconsole\tdefault",
        "POSTGRES_PASSWORD\t***\t.env line 2",
        "EVENTS_URL\thttps://***@example.com/***\t.env line 5",
    ] {
        assert!(said.lines().any(|it| it == line), "{line}:\n{said}");
    }
    for line in [
        "warning: .env, line 4: unknown setting SHOP",
        "  .env, line 3: unknown setting API_AUHT: did you mean API_AUTH?",
        "  EVENTS_SECRET is missing",
    ] {
        assert!(warned.lines().any(|it| it.starts_with(line)), "{line}:\n{warned}");
    }
    assert!(!format!("{said}{warned}").contains("secret"));

    std::fs::write(folder.path().join(".env"), "CODE_TTL=60\n").unwrap();
    let output = settings().args(&["settings", "--json"]).output().await;
    assert!(output.status.success());
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let ttl = all.iter().find(|it| it["name"] == "CODE_TTL").unwrap();
    assert_eq!((&ttl["value"], &ttl["source"]), (&"60".into(), &".env line 1".into()));
}
