//! The database: whether it can be used, and what stands in it.

use std::time::{Duration, SystemTime};

use adapters_persistence::{
    COUNTED, Database, Examination, Part, Pipeline, SchemaError, Server, check_schema,
    check_storage, examine as examination,
};
use application::Chain;

use super::findings::Findings;
use crate::{config::Config, roles::clock};

/// How far the clocks may differ before receipts and certificates suffer.
const CLOCKS: Duration = Duration::from_secs(5);
/// How long a transaction may keep dead rows before tables grow.
const OLD_TRANSACTION: Duration = Duration::from_secs(300);
/// How long a message waits at most while the pipeline works.
const LATE: Duration = Duration::from_secs(10);
/// How long an event waits at most while the receiver answers.
const LATE_EVENT: Duration = Duration::from_secs(300);

/// Returns whether the database can be used.
pub(super) async fn examine(
    config: &Config,
    database: &Database,
    parts: &[Part],
    findings: &mut Findings,
) -> bool {
    let place = config.database.to_string();
    match check_schema(database).await {
        Ok(()) => findings.ok("database", format!("{place} answers, and its schema is up to date")),
        Err(error) => {
            let text = format!("{place}: {}", Chain(&error));
            findings.fail("database", text, advice(&error));
            return false;
        }
    }
    match check_storage(database, parts).await {
        Ok(()) => findings.ok("database", "a row was stored"),
        Err(error) => findings.fail(
            "database",
            Chain(&error).to_string(),
            "docs/privileges.md has the privileges of each part; if this user runs only some parts, name them with \
             --part. Otherwise see the log and the disk of the server",
        ),
    }
    let consumer = &config.consumer;
    let before = clock();
    match examination(database, &consumer.group, &consumer.broker.topic).await {
        Ok(examined) => judge(config, &examined, (before, clock()), findings),
        Err(error) => findings.warn("database", Chain(&error).to_string(), ""),
    }
    true
}

fn advice(error: &SchemaError) -> &'static str {
    /// Words of an error, and what to do.
    const KNOWN: [(&str, &str); 14] = [
        ("password authentication failed", "correct POSTGRES_USER or POSTGRES_PASSWORD"),
        ("no pg_hba.conf entry", "allow this host, user and TLS mode in the server's pg_hba.conf"),
        ("Connection refused", "start PostgreSQL, or correct POSTGRES_HOST and POSTGRES_PORT"),
        ("lookup address", "correct POSTGRES_HOST, or the name server"),
        ("too many clients", "raise max_connections, or run fewer processes"),
        ("connection slots", "raise max_connections, or run fewer processes"),
        ("read-only", "POSTGRES_HOST must name the primary"),
        ("valid client certificate", "the server asks for one: set DB_SSL_CERT and DB_SSL_KEY"),
        (
            "certificate authentication failed",
            "the common name of DB_SSL_CERT must be POSTGRES_USER, or mapped to it in pg_ident.conf",
        ),
        ("client certificate: ", "correct DB_SSL_CERT or DB_SSL_KEY"),
        ("fatal alert", "the server does not trust DB_SSL_CERT: see ssl_ca_file of the server"),
        ("certificate", "correct DB_SSL_ROOT_CERT or DB_SSL_MODE; docs/settings.md explains both"),
        ("role \"", "create the role, or correct POSTGRES_USER"),
        ("database \"", "create the database, or correct POSTGRES_DB"),
    ];
    match error {
        // Their texts say what to do.
        SchemaError::Behind { .. } | SchemaError::Refused(_) => "",
        SchemaError::Unavailable(error) => {
            let text = Chain(error).to_string();
            let known = KNOWN.iter().find(|(words, _)| text.contains(words));
            known.map_or("check that this host can reach the server", |(_, advice)| advice)
        }
    }
}

/// Judges what was found. `clock` is this machine's time before and after.
fn judge(
    config: &Config,
    examined: &Examination,
    clock: (SystemTime, SystemTime),
    findings: &mut Findings,
) {
    let difference = difference(examined.now, clock);
    if difference > CLOCKS {
        findings.warn(
            "clock",
            format!("it differs from the database's by {} s", difference.as_secs()),
            "synchronise both with NTP: providers sign the time, and certificates have dates",
        );
    }
    if let Some(server) = &examined.server {
        judge_server(server, findings);
    }
    judge_pipeline(config, &examined.pipeline, findings);
}

/// Returns by how much a time is outside of a span.
fn difference(time: SystemTime, (from, to): (SystemTime, SystemTime)) -> Duration {
    let early = from.duration_since(time).unwrap_or_default();
    early.max(time.duration_since(to).unwrap_or_default())
}

fn judge_server(server: &Server, findings: &mut Findings) {
    for setting in &server.off {
        findings.warn(
            "database",
            format!("{setting} is off"),
            "turn it on: with fsync or full_page_writes off, a crash loses accepted messages, and \
             without autovacuum tables grow",
        );
    }
    if server.oldest_transaction > OLD_TRANSACTION {
        let seconds = server.oldest_transaction.as_secs();
        findings.warn(
            "database",
            format!("a transaction has been open for {seconds} s and keeps dead rows"),
            "end it: pg_stat_activity shows it, by xact_start",
        );
    }
    let Server { connections, most_connections, .. } = server;
    if connections * 10 > most_connections * 9 {
        findings.warn(
            "database",
            format!("{connections} of {most_connections} connections are in use"),
            "raise max_connections, or run fewer processes: docs/operating.md counts ours",
        );
    }
}

fn judge_pipeline(config: &Config, pipeline: &Pipeline, findings: &mut Findings) {
    let count = |number: u64| {
        if number < COUNTED { number.to_string() } else { format!("{COUNTED} or more") }
    };
    let Pipeline { consumers, partitions, without_consumer, .. } = *pipeline;
    let group = &config.consumer.group;
    if pipeline.oldest_waiting > LATE {
        findings.warn(
            "processor",
            format!(
                "{} messages wait to be published, the first for {} s",
                count(pipeline.waiting),
                pipeline.oldest_waiting.as_secs()
            ),
            "start a processor, or see its log: it publishes nothing while the broker is away",
        );
    } else {
        findings
            .ok("processor", format!("{} messages wait to be published", count(pipeline.waiting)));
    }
    if consumers == 0 {
        let text = format!("no consumer of group {group:?} is running");
        findings.warn("consumer", text, "start one; without it, no SMS is sent");
    } else if without_consumer > 0 {
        let text = format!("{without_consumer} of {partitions} partitions are read by no consumer");
        findings.warn(
            "consumer",
            text,
            "wait ten seconds; if it stays, see the logs of the consumers",
        );
    } else {
        findings.ok("consumer", format!("{consumers} running, for {partitions} partitions"));
    }
    if pipeline.dead_letters > 0 {
        let text = format!("{} records could not be read", count(pipeline.dead_letters));
        findings.warn("dead letters", text, "`messager dead-letters list` shows them");
    }
    if pipeline.oldest_event > LATE_EVENT {
        let text = format!(
            "{} events wait, the first for {} s",
            count(pipeline.events),
            pipeline.oldest_event.as_secs()
        );
        findings.warn("events", text, "see why the receiver of EVENTS_URL does not answer 2xx");
    }
}

#[cfg(test)]
mod tests {
    use sea_orm::DbErr;

    use super::{super::findings::State, *};

    fn pipeline() -> Pipeline {
        Pipeline {
            waiting: 3,
            oldest_waiting: Duration::from_secs(1),
            consumers: 2,
            partitions: 4,
            without_consumer: 0,
            dead_letters: 0,
            events: 0,
            oldest_event: Duration::ZERO,
        }
    }

    fn server() -> Server {
        Server {
            off: Vec::new(),
            oldest_transaction: Duration::from_secs(1),
            connections: 10,
            most_connections: 97,
        }
    }

    fn warnings(judge: impl Fn(&mut Findings)) -> Vec<String> {
        let mut findings = Findings::default();
        judge(&mut findings);
        let warned = findings.all().iter().filter(|it| it.state != State::Ok);
        warned.map(|it| format!("{}: {}", it.subject, it.text)).collect()
    }

    fn of_pipeline(pipeline: &Pipeline) -> Vec<String> {
        let config = Config::from_lookup(&|_| None).unwrap();
        warnings(|findings| judge_pipeline(&config, pipeline, findings))
    }

    #[test]
    fn healthy_state_has_no_warnings() {
        assert_eq!(of_pipeline(&pipeline()), [""; 0]);
        assert_eq!(warnings(|findings| judge_server(&server(), findings)), [""; 0]);
    }

    #[test]
    fn each_fault_of_the_pipeline_is_named() {
        let late = Duration::from_secs(1_000);
        let one = |pipeline: Pipeline| of_pipeline(&pipeline).join(" ");

        let waiting = one(Pipeline { waiting: COUNTED, oldest_waiting: late, ..pipeline() });
        assert_eq!(
            waiting,
            "processor: 10000 or more messages wait to be published, the first for 1000 s"
        );
        let stopped = one(Pipeline { consumers: 0, without_consumer: 4, ..pipeline() });
        assert_eq!(stopped, "consumer: no consumer of group \"1\" is running");
        let left = one(Pipeline { without_consumer: 1, ..pipeline() });
        assert_eq!(left, "consumer: 1 of 4 partitions are read by no consumer");
        let dead = one(Pipeline { dead_letters: 2, ..pipeline() });
        assert_eq!(dead, "dead letters: 2 records could not be read");
        let events = one(Pipeline { events: 5, oldest_event: late, ..pipeline() });
        assert_eq!(events, "events: 5 events wait, the first for 1000 s");
    }

    #[test]
    fn each_fault_of_the_server_is_named() {
        let one = |server: Server| warnings(|findings| judge_server(&server, findings)).join(" ");

        assert_eq!(
            one(Server { off: vec!["fsync".to_owned()], ..server() }),
            "database: fsync is off"
        );
        let old = one(Server { oldest_transaction: Duration::from_secs(301), ..server() });
        assert_eq!(old, "database: a transaction has been open for 301 s and keeps dead rows");
        assert_eq!(
            one(Server { connections: 88, ..server() }),
            "database: 88 of 97 connections are in use"
        );
    }

    #[test]
    fn clocks_are_compared_with_both_ends_of_the_question() {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);

        assert_eq!(difference(at(5), (at(4), at(6))), Duration::ZERO);
        assert_eq!(difference(at(5), (at(12), at(13))), Duration::from_secs(7));
        assert_eq!(difference(at(20), (at(12), at(13))), Duration::from_secs(7));
    }

    #[test]
    fn known_errors_have_their_own_advice() {
        let of = |text: &str| advice(&SchemaError::Unavailable(DbErr::Custom(text.to_owned())));

        for (text, expected) in [
            ("password authentication failed for user \"m\"", "correct POSTGRES_USER"),
            ("Connection refused (os error 111)", "start PostgreSQL"),
            ("database \"m\" does not exist", "create the database"),
            ("role \"m\" does not exist", "create the role"),
            ("it is read-only", "POSTGRES_HOST must name the primary"),
            ("connection requires a valid client certificate", "the server asks for one"),
            ("certificate authentication failed for user \"m\"", "the common name of DB_SSL_CERT"),
            ("the key of the client certificate: is not the key", "correct DB_SSL_CERT"),
            ("received fatal alert: UnknownCA", "the server does not trust DB_SSL_CERT"),
            ("invalid peer certificate: UnknownIssuer", "correct DB_SSL_ROOT_CERT"),
            ("something else", "check that this host"),
        ] {
            assert!(of(text).starts_with(expected), "{text}: {}", of(text));
        }
    }
}
