use std::{collections::BTreeMap, fs::File, path::Path, process::Stdio, time::Duration};

use percent_encoding::percent_decode_str;
use tokio::process::{Child, Command};

use super::{Folder, environment, eventually, free_port, get};

const PATIENCE: Duration = Duration::from_secs(30);
const PASSWORD: &str = "operator";

/// The real Kannel of Debian with its fake SMSC.
///
/// The fake SMSC prints each message that it gets, and reports each as delivered.
#[derive(Debug)]
pub(crate) struct Kannel {
    /// The port at which smsbox takes messages.
    port: u16,
    admin_port: u16,
    _bearerbox: Child,
    _smsc: Child,
    _smsbox: Child,
    folder: Folder,
}

/// An SMS as the fake SMSC got it, its parts joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) text: String,
    pub(crate) parts: usize,
}

impl Kannel {
    /// The `sendsms-user`.
    pub(crate) const USERNAME: &str = "tester";
    pub(crate) const PASSWORD: &str = "foo bar";

    /// Starts Kannel, and waits until the fake SMSC and smsbox are connected.
    ///
    /// `max_messages` is the number of parts that Kannel lets a message have.
    pub(crate) async fn start(max_messages: u8) -> Option<Self> {
        let root = environment("TEST_KANNEL")?;
        let folder = Folder::new();
        let [port, admin_port, box_port, smsc_port] = std::array::from_fn(|_| free_port());
        let config = configuration([port, admin_port, box_port, smsc_port], max_messages);
        std::fs::write(folder.path().join("kannel.conf"), config).unwrap();
        let run = |program: &str, args: &[&str]| start(&root, program, args, folder.path());

        let bearerbox = run("usr/sbin/bearerbox", &["-v", "1", "kannel.conf"]);
        status(admin_port, "FAKE[FAKE]").await;
        let smsc_port = smsc_port.to_string();
        // `-m 0`: it only listens. The message is never sent, but must be there.
        let listen = ["-H", "127.0.0.1", "-r", &smsc_port, "-m", "0", "1 2 text nop"];
        let smsc = run("usr/lib/kannel/test/fakesmsc", &listen);
        let smsbox = run("usr/sbin/smsbox", &["-v", "1", "kannel.conf"]);
        status(admin_port, "(online").await;
        status(admin_port, "smsbox:").await;
        eventually("smsbox", PATIENCE, async || get(port, "/").await.map(|_| ())).await;
        Some(Self { port, admin_port, _bearerbox: bearerbox, _smsc: smsc, _smsbox: smsbox, folder })
    }

    /// Returns the settings of the gateway.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("GATEWAY", "kannel".to_owned()),
            ("KANNEL_URL", format!("http://127.0.0.1:{}", self.port)),
            ("KANNEL_USERNAME", Self::USERNAME.to_owned()),
            ("KANNEL_PASSWORD", Self::PASSWORD.to_owned()),
            ("KANNEL_FROM", "Shop".to_owned()),
        ]
    }

    /// Stops or starts the connection to the SMSC: `stop-smsc`, `start-smsc`.
    pub(crate) async fn operate(&self, command: &str) {
        let path = format!("/{command}?password={PASSWORD}&smsc=FAKE");
        assert_eq!(get(self.admin_port, &path).await.unwrap().0, 200);
    }

    /// Waits for so many messages, and returns them in the order in which they became complete.
    pub(crate) async fn received(&self, count: usize) -> Vec<Received> {
        eventually("an SMS at the SMSC", PATIENCE, async || {
            let log = std::fs::read_to_string(self.folder.path().join("fakesmsc.log")).unwrap();
            Some(messages(&log)).filter(|messages| messages.len() >= count)
        })
        .await
    }
}

fn start(root: &str, program: &str, args: &[&str], folder: &Path) -> Child {
    let name = program.rsplit('/').next().unwrap();
    let log = File::create(folder.join(name).with_extension("log")).unwrap();
    Command::new(Path::new(root).join(program))
        .args(args)
        .current_dir(folder)
        .env("LD_LIBRARY_PATH", environment("TEST_KANNEL_LIBRARIES").unwrap())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Waits until the state of bearerbox contains a text.
async fn status(admin_port: u16, text: &str) {
    let path = format!("/status.txt?password={PASSWORD}");
    eventually(text, PATIENCE, async || {
        let (status, body) = get(admin_port, &path).await?;
        (status == 200 && body.contains(text)).then_some(())
    })
    .await;
}

fn configuration(ports: [u16; 4], max_messages: u8) -> String {
    let [port, admin_port, box_port, smsc_port] = ports;
    let (username, password) = (Kannel::USERNAME, Kannel::PASSWORD);
    format!(
        "group = core
admin-port = {admin_port}
admin-interface = 127.0.0.1
admin-password = {PASSWORD}
status-password = {PASSWORD}
smsbox-port = {box_port}
smsbox-interface = 127.0.0.1
box-allow-ip = 127.0.0.1
dlr-storage = internal

group = smsc
smsc = fake
smsc-id = FAKE
port = {smsc_port}
connect-allow-ip = 127.0.0.1

group = smsbox
bearerbox-host = 127.0.0.1
bearerbox-port = {box_port}
sendsms-port = {port}
sendsms-interface = 127.0.0.1
http-request-retry = 3
http-queue-delay = 2

group = sendsms-user
username = {username}
password = \"{password}\"
max-messages = {max_messages}
concatenation = true

group = sms-service
keyword = default
text = none
"
    )
}

/// Reads the log of the fake SMSC: `Got message 1: <from to text Hi>`. It writes UCS-2 and the parts
/// of longer texts with escapes: `ucs-2 %04%1A`, `udh %05%00%03%01%02%01 data …`.
fn messages(log: &str) -> Vec<Received> {
    let mut parts = BTreeMap::<u8, BTreeMap<u8, Vec<u8>>>::new();
    let mut messages = Vec::new();
    for line in log.lines().filter_map(|line| line.split_once(": <").map(|(_, rest)| rest)) {
        let mut words = line.strip_suffix('>').unwrap().splitn(4, ' ');
        let mut word = || words.next().unwrap().to_owned();
        let (from, to, kind, rest) = (word(), word(), word(), word());
        let (text, parts) = match &*kind {
            "text" => (rest, 1),
            "ucs-2" => (ucs2(&decoded(&rest)), 1),
            "udh" => {
                let (header, data) = rest.split_once(" data ").unwrap();
                let [5, 0, 3, reference, total, number] = decoded(header)[..] else {
                    panic!("{header} is no header of a part");
                };
                let known = parts.entry(reference).or_default();
                known.insert(number, decoded(data));
                if known.len() < usize::from(total) {
                    continue;
                }
                (text_of(&parts.remove(&reference).unwrap()), usize::from(total))
            }
            other => panic!("a message of the kind {other}"),
        };
        messages.push(Received { from, to, text, parts });
    }
    messages
}

fn decoded(text: &str) -> Vec<u8> {
    percent_decode_str(&text.replace('+', " ")).collect()
}

/// Joins the parts of a text. The fake SMSC does not say whether they are in UCS-2: Latin and Cyrillic
/// letters are, if each first byte is 0 or 4.
fn text_of(parts: &BTreeMap<u8, Vec<u8>>) -> String {
    let bytes: Vec<u8> = parts.values().flatten().copied().collect();
    if bytes.chunks(2).all(|unit| matches!(unit[0], 0 | 4)) {
        ucs2(&bytes)
    } else {
        String::from_utf8(bytes).unwrap()
    }
}

fn ucs2(bytes: &[u8]) -> String {
    let units: Vec<u16> =
        bytes.chunks(2).map(|unit| u16::from_be_bytes(unit.try_into().unwrap())).collect();
    String::from_utf16(&units).unwrap()
}
