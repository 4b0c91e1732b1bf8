//! A real Kafka with TLS, SASL and ACLs.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use application::Chain;
use kafka_protocol::{
    messages::{CreateAclsRequest, create_acls_request::AclCreation},
    protocol::StrBytes,
};
use ports::free_port;
use tokio::{process::Child, sync::OnceCell};

use super::*;
use crate::kafka::{error::check, sasl::connect};

/// Makes the certificates. `server` is valid for 127.0.0.1 only.
const CERTIFICATES: &str = r#"
set -e
key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out "$1.key"; }
for ca in ca other; do
    key $ca
    openssl req -new -x509 -key $ca.key -subj "/CN=$ca" -days 100 -out $ca.crt
done
sign() {
    key "$1"
    openssl req -new -key "$1.key" -subj "/CN=$1" -out "$1.csr"
    printf "$2" >"$1.ext"
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 100 \
        -extfile "$1.ext" -out "$1.crt"
}
sign server 'subjectAltName=IP:127.0.0.1\n'
sign client 'extendedKeyUsage=clientAuth\n'
cat server.key server.crt >server.pem
"#;

/// Formats the storage with the users of SCRAM, and runs the broker until standard input ends.
const RUN: &str = r#"
"$1" -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp "$2/*" kafka.tools.StorageTool format \
    -t AAAAAAAAAAAAAAAAAAAAAA -c server.properties \
    -S 'SCRAM-SHA-256=[name=admin,password=admin-secret]' \
    -S 'SCRAM-SHA-512=[name=admin,password=admin-secret]' >out 2>&1
"$1" -Xmx384m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:-UsePerfData -cp "$2/*" \
    kafka.Kafka server.properties >>out 2>&1 </dev/null &
broker=$!
read -r _
kill -KILL $broker
cd /
rm -rf "$3"
"#;

/// The broker of these tests. It ends with the process of the tests.
struct Secured {
    folder: PathBuf,
    ssl: u16,
    sasl_plaintext: u16,
    sasl_ssl: u16,
    _running: Child,
}

impl Secured {
    async fn get() -> Option<&'static Self> {
        static STARTED: OnceCell<Option<Secured>> = OnceCell::const_new();
        STARTED.get_or_init(Self::start).await.as_ref()
    }

    async fn start() -> Option<Self> {
        let (java, libraries) = (service("TEST_JAVA")?, service("TEST_KAFKA_LIBS")?);
        let folder = std::env::temp_dir().join(unique_name());
        std::fs::create_dir(&folder).unwrap();
        let made = Command::new("sh")
            .args(["-c", CERTIFICATES])
            .current_dir(&folder)
            .stderr(Stdio::null())
            .status();
        assert!(made.await.unwrap().success(), "openssl failed");

        let [controller, ssl, sasl_plaintext, sasl_ssl] = std::array::from_fn(|_| free_port());
        let path = folder.display();
        let properties = format!(
            "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=CONTROLLER://127.0.0.1:{controller},SSL://0.0.0.0:{ssl},\
SASL_PLAINTEXT://127.0.0.1:{sasl_plaintext},SASL_SSL://127.0.0.1:{sasl_ssl}
advertised.listeners=SSL://127.0.0.1:{ssl},\
SASL_PLAINTEXT://127.0.0.1:{sasl_plaintext},SASL_SSL://127.0.0.1:{sasl_ssl}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,SSL:SSL,\
SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL
controller.listener.names=CONTROLLER
inter.broker.listener.name=SASL_PLAINTEXT
sasl.mechanism.inter.broker.protocol=PLAIN
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
ssl.keystore.type=PEM
ssl.keystore.location={path}/server.pem
ssl.truststore.type=PEM
ssl.truststore.location={path}/ca.crt
ssl.endpoint.identification.algorithm=
ssl.client.auth=none
listener.name.ssl.ssl.client.auth=required
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:admin;User:CN=client
log.dirs={path}/data
num.partitions=4
auto.create.topics.enable=false
offsets.topic.replication.factor=1
"
        );
        let users = "user_admin=\"admin-secret\" user_bob=\"bob-secret\" user_eve=\"eve-secret\"";
        let plain = "org.apache.kafka.common.security.plain.PlainLoginModule required \
                     username=\"admin\" password=\"admin-secret\"";
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let logins = ["sasl_plaintext", "sasl_ssl"].map(|listener| {
            let name = format!("listener.name.{listener}");
            format!(
                "{name}.plain.sasl.jaas.config={plain} {users};\n\
                 {name}.scram-sha-256.sasl.jaas.config={scram}\n\
                 {name}.scram-sha-512.sasl.jaas.config={scram}\n"
            )
        });
        let properties = properties + &logins.concat();
        std::fs::write(folder.join("server.properties"), properties).unwrap();

        let running = Command::new("sh")
            .args(["-c", RUN, "run", &java, &libraries])
            .arg(&folder)
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let started = Self { folder, ssl, sasl_plaintext, sasl_ssl, _running: running };
        started.wait().await;
        Some(started)
    }

    async fn wait(&self) {
        let admin = self.admin();
        let up = async {
            while Cluster::new(admin.clone(), Right::Read).partitions().await.is_err() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let limit = Duration::from_secs(120);
        let is_up = tokio::time::timeout(limit, up).await.is_ok();
        assert!(is_up, "{}", std::fs::read_to_string(self.folder.join("out")).unwrap());
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn tls(&self, authority: &str, client: Option<&str>) -> KafkaTls {
        let client =
            client.map(|it| (self.file(&format!("{it}.crt")), self.file(&format!("{it}.key"))));
        let files = KafkaTlsFiles { authorities: Some(self.file(authority)), client };
        KafkaTls::read(&files).unwrap()
    }

    /// Logs in as a super user, by name and password over TLS.
    fn admin(&self) -> KafkaSettings {
        let sasl = login(SaslMechanism::Plain, "admin", "admin-secret");
        let security = KafkaSecurity { tls: Some(self.tls("ca.crt", None)), sasl: Some(sasl) };
        settings(at("127.0.0.1", self.sasl_ssl), security)
    }
}

fn settings(server: String, security: KafkaSecurity) -> KafkaSettings {
    KafkaSettings { security, ..Rig::at(server, Duration::from_secs(10)).settings }
}

fn at(host: &str, port: u16) -> String {
    format!("{host}:{port}")
}

fn login(mechanism: SaslMechanism, username: &str, password: &str) -> KafkaSasl {
    let [username, password] = [username, password].map(str::to_owned);
    KafkaSasl { mechanism, username, password }
}

fn broker_of(kafka: KafkaSettings) -> KafkaBroker {
    KafkaBroker::new(KafkaPublisherSettings {
        kafka,
        partitions: NonZeroU16::new(4).unwrap(),
        replication_factor: NonZeroU16::MIN,
    })
}

async fn publish_and_read(settings: KafkaSettings) {
    let broker = broker_of(settings.clone());
    in_time(broker.ready()).await.unwrap();
    let sent = messages(20, 0..10);
    in_time(broker.publish(&sent)).await.into_iter().for_each(Result::unwrap);

    let records = read_all(&stream_of(settings)).await.concat();

    assert_eq!(records.len(), 20);
    assert!(records.iter().all(|record| record.content.is_ok()));
}

/// The texts of both clients' errors, as the log and `/readyz` have them.
async fn why(settings: KafkaSettings) -> [String; 2] {
    let reading = in_time(stream_of(settings.clone()).partitions()).await.unwrap_err();
    let writing = in_time(broker_of(settings).ready()).await.unwrap_err();
    [format!("{}", Chain(&reading)), format!("{}", Chain(&writing))]
}

async fn check_why(settings: KafkaSettings, expected: &str) {
    for text in why(settings).await {
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains("secret"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[tokio::test]
async fn messages_go_through_kafka_with_a_client_certificate() {
    let Some(kafka) = Secured::get().await else { return };
    let security = KafkaSecurity { tls: Some(kafka.tls("ca.crt", Some("client"))), sasl: None };

    publish_and_read(settings(at("127.0.0.1", kafka.ssl), security)).await;
}

#[tokio::test]
async fn messages_go_through_kafka_with_each_mechanism_and_protocol() {
    use SaslMechanism::{Plain, ScramSha256, ScramSha512};
    let Some(kafka) = Secured::get().await else { return };
    for mechanism in [Plain, ScramSha256, ScramSha512] {
        for (port, tls) in
            [(kafka.sasl_plaintext, None), (kafka.sasl_ssl, Some(kafka.tls("ca.crt", None)))]
        {
            let sasl = login(mechanism, "admin", "admin-secret");

            let security = KafkaSecurity { tls, sasl: Some(sasl) };
            publish_and_read(settings(at("127.0.0.1", port), security)).await;
        }
    }
}

#[tokio::test]
async fn certificate_of_another_authority_is_named() {
    let Some(kafka) = Secured::get().await else { return };
    let security = KafkaSecurity { tls: Some(kafka.tls("other.crt", Some("client"))), sasl: None };

    let expected = "the certificate of the broker is not signed by a trusted authority";
    check_why(settings(at("127.0.0.1", kafka.ssl), security), expected).await;
}

#[tokio::test]
async fn certificate_for_another_name_is_named() {
    let Some(kafka) = Secured::get().await else { return };
    let security = KafkaSecurity { tls: Some(kafka.tls("ca.crt", Some("client"))), sasl: None };

    let expected = "the certificate of the broker is not valid for this host name";
    check_why(settings(at("127.0.0.2", kafka.ssl), security), expected).await;
}

#[tokio::test]
async fn missing_client_certificate_is_named() {
    let Some(kafka) = Secured::get().await else { return };
    let security = KafkaSecurity { tls: Some(kafka.tls("ca.crt", None)), sasl: None };

    check_why(settings(at("127.0.0.1", kafka.ssl), security), "KAFKA_SSL_CERT").await;
}

#[tokio::test]
async fn wrong_password_is_named_for_each_mechanism() {
    use SaslMechanism::{Plain, ScramSha256, ScramSha512};
    let Some(kafka) = Secured::get().await else { return };
    for mechanism in [Plain, ScramSha256, ScramSha512] {
        let sasl = login(mechanism, "admin", "not the secret");
        let security = KafkaSecurity { tls: None, sasl: Some(sasl) };

        let expected = "the broker refused the user name or the password";
        check_why(settings(at("127.0.0.1", kafka.sasl_plaintext), security), expected).await;
    }
}

#[tokio::test]
async fn listener_of_another_protocol_is_named() {
    let Some(kafka) = Secured::get().await else { return };
    let tls = KafkaSecurity { tls: Some(kafka.tls("ca.crt", None)), sasl: None };
    let plaintext = settings(at("127.0.0.1", kafka.sasl_plaintext), tls);
    check_why(plaintext, "KAFKA_SECURITY_PROTOCOL").await;

    let sasl = login(SaslMechanism::Plain, "admin", "admin-secret");
    let both = KafkaSecurity { tls: Some(kafka.tls("ca.crt", Some("client"))), sasl: Some(sasl) };
    let without_sasl = settings(at("127.0.0.1", kafka.ssl), both);
    check_why(without_sasl, "KAFKA_SECURITY_PROTOCOL").await;
}

/// Grants a user an operation on a topic.
async fn grant(admin: &KafkaSettings, user: &str, operation: i8) {
    let text = |text: &str| StrBytes::from_string(text.to_owned());
    let acl = AclCreation::default()
        .with_resource_type(2)
        .with_resource_name(text(&admin.topic))
        .with_resource_pattern_type(3)
        .with_principal(text(&format!("User:{user}")))
        .with_host(text("*"))
        .with_operation(operation)
        .with_permission_type(3);
    let request = CreateAclsRequest::default().with_creations(vec![acl]);
    let server = &*admin.bootstrap_servers[0];
    let mut connection = in_time(connect(server, "messager-test", &admin.security)).await.unwrap();
    let answer = in_time(connection.ask(&request, 3)).await.unwrap();
    check(answer.results[0].error_code).unwrap();
}

#[tokio::test]
async fn missing_right_on_the_topic_is_named_with_the_topic() {
    const DESCRIBE: i8 = 8;
    let Some(kafka) = Secured::get().await else { return };
    let admin = kafka.admin();
    in_time(broker_of(admin.clone()).ready()).await.unwrap();
    let sasl = login(SaslMechanism::Plain, "bob", "bob-secret");
    let bob = KafkaSettings {
        security: KafkaSecurity { sasl: Some(sasl), ..admin.security.clone() },
        ..admin
    };

    let no_right = async || {
        let [reading, writing] = why(bob.clone()).await;
        let topic = &bob.topic;
        let expected = format!("the user has no right to read the topic \"{topic}\"");
        assert!(reading.contains(&expected), "{reading}");
        let expected = format!("the user has no right to write to the topic \"{topic}\"");
        assert!(writing.contains(&expected), "{writing}");
    };
    no_right().await;

    // He may see it now, and still neither read nor write.
    grant(&KafkaSettings { security: kafka.admin().security, ..bob.clone() }, "bob", DESCRIBE)
        .await;
    let seen_by_bob = Cluster::new(bob.clone(), Right::Describe);
    in_time(async { while seen_by_bob.partitions().await.is_err() {} }).await;
    no_right().await;
}

#[test]
fn tls_files_are_read_with_all_their_problems() {
    use KafkaTlsFile::{Authorities, Certificate, Key};
    let nowhere = || Path::new("/nowhere/file.pem").to_owned();
    let files =
        KafkaTlsFiles { authorities: Some(nowhere()), client: Some((nowhere(), nowhere())) };

    let problems = KafkaTls::read(&files).unwrap_err();

    let named: Vec<KafkaTlsFile> = problems.iter().map(|(file, _)| *file).collect();
    assert_eq!(named, [Authorities, Certificate, Key]);
}

#[tokio::test]
async fn key_of_another_certificate_is_refused() {
    let Some(kafka) = Secured::get().await else { return };
    let files = KafkaTlsFiles {
        authorities: Some(kafka.file("ca.crt")),
        client: Some((kafka.file("client.crt"), kafka.file("server.key"))),
    };

    let problems = KafkaTls::read(&files).unwrap_err();

    assert_eq!(problems[0], (KafkaTlsFile::Key, "is not the key of the certificate".to_owned()));
}
