//! An SMS gateway that takes down every call, and misbehaves when told to.
//!
//! It speaks HTTP by hand: several of its answers are such as no HTTP library would give.

use std::{
    collections::HashMap,
    fmt, io,
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::sleep,
};

use crate::{
    clock::now,
    history::{Call, Recorder},
    phones::is_refused,
};

/// What a gateway knows of the messages that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// It knows a message again by its idempotency key, and takes it once.
    Idempotent,
    /// It takes whatever comes.
    Plain,
}

/// How a gateway answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    Accept,
    /// 500, every other time after it took the SMS.
    Error,
    /// 429 with `Retry-After`.
    Throttle,
    /// 503 with `Retry-After`.
    Unavailable,
    /// Takes the SMS and says so after half a minute.
    Late,
    /// Takes the SMS and resets the connection.
    Reset,
    /// Takes the SMS and answers a byte at a time.
    Drip,
    /// Takes the SMS and answers what is not HTTP.
    Noise,
    /// Takes the SMS and answers 200 with a body that is not JSON.
    BadBody,
    /// 400, as numbers get it that the gateway refuses.
    Refuse,
}

/// The gateway, at `http://127.0.0.1:<port>/send`.
#[derive(Debug)]
pub struct Gateway {
    port: u16,
    desk: Arc<Desk>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Desk {
    manner: Mutex<Manner>,
    recorder: Recorder,
}

#[derive(Debug)]
struct Manner {
    memory: Memory,
    answer: Answer,
    /// By idempotency key: the gateway's own name for the message.
    known: HashMap<String, usize>,
}

/// A request as far as a gateway cares.
#[derive(Debug, PartialEq, Eq)]
struct Sms {
    key: String,
    id: String,
    phone: String,
    code: String,
}

const LATE: Duration = Duration::from_secs(30);
/// Between two bytes of a dripping answer: its head alone takes longer than anybody waits.
const DRIP: Duration = Duration::from_millis(500);
const LARGEST_REQUEST: usize = 64 * 1024;

impl Gateway {
    /// A gateway that behaves.
    pub async fn start(port: u16, recorder: Recorder) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let manner =
            Manner { memory: Memory::Idempotent, answer: Answer::Accept, known: HashMap::new() };
        let desk = Arc::new(Desk { manner: Mutex::new(manner), recorder });
        let answering = Arc::clone(&desk);
        let task = tokio::spawn(async move {
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    let desk = Arc::clone(&answering);
                    tokio::spawn(async move {
                        // A connection that broke is the caller's to notice.
                        let _ = desk.serve(stream).await;
                    });
                }
            }
        });
        Ok(Self { port, desk, task })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn answer(&self, answer: Answer) {
        self.desk.manner().answer = answer;
    }

    /// Changes what it knows of messages, and forgets those that it has.
    pub fn remember(&self, memory: Memory) {
        let mut manner = self.desk.manner();
        manner.memory = memory;
        manner.known.clear();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Desk {
    fn manner(&self) -> MutexGuard<'_, Manner> {
        self.manner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut buffer = Vec::new();
        while let Some(sms) = read_request(&mut stream, &mut buffer).await? {
            let (number, name, answer) = self.take(sms);
            let answered = reply(&mut stream, answer, name).await;
            self.note_end(number, answered.is_ok() && answer != Answer::Reset);
            answered?;
            if matches!(answer, Answer::Reset | Answer::Noise) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Decides on an SMS and takes the call down: its number in the history, the gateway's name
    /// for the message, and the answer.
    fn take(&self, sms: Sms) -> (usize, usize, Answer) {
        let mut manner = self.manner();
        let mut history = self.recorder.history();
        let number = history.calls.len();
        let answer = if is_refused(&sms.phone) { Answer::Refuse } else { manner.answer };
        let takes = match answer {
            Answer::Throttle | Answer::Unavailable | Answer::Refuse => false,
            Answer::Error => number.is_multiple_of(2),
            _ => true,
        };
        let known = match manner.memory {
            Memory::Idempotent => manner.known.get(&sms.key).copied(),
            Memory::Plain => None,
        };
        if takes && known.is_none() {
            manner.known.insert(sms.key.clone(), number);
        }
        history.calls.push(Call {
            // A key that is not the message's id would be no key of that message.
            id: if sms.key == sms.id { sms.id } else { format!("{}/{}", sms.key, sms.id) },
            phone: sms.phone,
            code: sms.code,
            memory: manner.memory,
            answer,
            paid: takes && known.is_none(),
            began_at: now(),
            ended_at: None,
            whole: false,
        });
        (number, known.unwrap_or(number), answer)
    }

    fn note_end(&self, number: usize, whole: bool) {
        if let Some(call) = self.recorder.history().calls.get_mut(number) {
            call.ended_at = Some(now());
            call.whole = whole;
        }
    }
}

async fn reply(stream: &mut TcpStream, answer: Answer, name: usize) -> io::Result<()> {
    let accepted = response("200 OK", "", &format!("{{\"message_id\":\"gw-{name}\"}}"));
    let refused = |status, more| response(status, more, "{}");
    match answer {
        Answer::Accept => stream.write_all(accepted.as_bytes()).await,
        Answer::Error => {
            stream.write_all(refused("500 Internal Server Error", "").as_bytes()).await
        }
        Answer::Throttle => {
            let answer = refused("429 Too Many Requests", "Retry-After: 2\r\n");
            stream.write_all(answer.as_bytes()).await
        }
        Answer::Unavailable => {
            let answer = refused("503 Service Unavailable", "Retry-After: 1\r\n");
            stream.write_all(answer.as_bytes()).await
        }
        Answer::Refuse => stream.write_all(refused("400 Bad Request", "").as_bytes()).await,
        Answer::Late => {
            sleep(LATE).await;
            stream.write_all(accepted.as_bytes()).await
        }
        Answer::Reset => stream.set_zero_linger(),
        Answer::Drip => {
            for byte in accepted.bytes() {
                stream.write_all(&[byte]).await?;
                sleep(DRIP).await;
            }
            Ok(())
        }
        Answer::Noise => stream.write_all(b"\x15\x03\x01 no HTTP at all\r\n\r\n").await,
        Answer::BadBody => {
            stream.write_all(response("200 OK", "", "{\"message_id\":").as_bytes()).await
        }
    }
}

fn response(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

/// The next request of a connection; `buffer` keeps what comes behind it.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Sms>> {
    loop {
        if let Some((sms, length)) = parse(buffer)? {
            buffer.drain(..length);
            return Ok(Some(sms));
        }
        if buffer.len() > LARGEST_REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// The first request in `bytes` and its length, if it is all there.
fn parse(bytes: &[u8]) -> io::Result<Option<(Sms, usize)>> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| malformed())?;
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    let length: usize =
        header("content-length").and_then(|text| text.parse().ok()).ok_or_else(malformed)?;
    let Some(body) = bytes.get(end + 4..end + 4 + length) else { return Ok(None) };
    let body: serde_json::Value = serde_json::from_slice(body).map_err(|_| malformed())?;
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let key = header("idempotency-key").unwrap_or_default().to_owned();
    let sms = Sms { key, id: text("id"), phone: text("phone"), code: text("code") };
    Ok(Some((sms, end + 4 + length)))
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idempotent => "idempotent",
            Self::Plain => "plain",
        })
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "accept",
            Self::Error => "500",
            Self::Throttle => "429",
            Self::Unavailable => "503",
            Self::Late => "late",
            Self::Reset => "reset",
            Self::Drip => "drip",
            Self::Noise => "noise",
            Self::BadBody => "bad-body",
            Self::Refuse => "400",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = "POST /send HTTP/1.1\r\nIdempotency-Key: k\r\ncontent-length: 41\r\n\r\n\
        {\"id\":\"k\",\"phone\":\"7999\",\"code\":\"123456\"}";

    #[test]
    fn reads_a_request_only_when_it_is_whole() {
        for cut in 0..REQUEST.len() {
            assert_eq!(parse(&REQUEST.as_bytes()[..cut]).unwrap(), None, "{cut}");
        }

        let (sms, length) = parse(format!("{REQUEST}more").as_bytes()).unwrap().unwrap();

        assert_eq!(length, REQUEST.len());
        assert_eq!((&*sms.key, &*sms.phone, &*sms.code), ("k", "7999", "123456"));
    }

    #[tokio::test]
    async fn takes_a_message_once_only_if_it_remembers() {
        let recorder = Recorder::default();
        let gateway = Gateway::start(0, recorder.clone()).await.unwrap();
        let sms = || parse(REQUEST.as_bytes()).unwrap().unwrap().0;

        gateway.desk.take(sms());
        gateway.desk.take(sms());
        gateway.remember(Memory::Plain);
        gateway.desk.take(sms());
        gateway.desk.take(sms());

        let paid: Vec<bool> = recorder.history().calls.iter().map(|call| call.paid).collect();
        assert_eq!(paid, [true, false, true, true]);
    }
}
