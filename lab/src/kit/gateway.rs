//! An SMS gateway that records every call, and answers badly if told to.
//!
//! It writes HTTP by hand: several of its answers are ones that no HTTP library would give.

use std::{
    collections::HashMap,
    io,
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::watch,
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    http::{header, read_request},
    phones::{Numbered, is_refused},
    recorder::{Answer, Call, GatewayKind, Recorder},
};

/// How a gateway treats messages, apart from the answers that it is told to give.
#[derive(Debug, Clone, Copy)]
pub struct Character {
    pub kind: GatewayKind,
    /// Whether it refuses the numbers that [`is_refused`] names.
    pub refuses_numbers: bool,
    /// Whether it gives each message a name of its own in the answer.
    pub names_messages: bool,
    /// How long it takes for each message.
    pub latency: Duration,
    /// How much longer it takes for a slow number.
    pub slowness: Duration,
}

/// The gateway at `http://127.0.0.1:<port>/send`, until it is dropped.
#[derive(Debug)]
pub struct Gateway {
    port: u16,
    behaviour: Arc<Mutex<Behaviour>>,
    /// Whether it listens.
    is_up: watch::Sender<bool>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Behaviour {
    /// Its place among the gateways of the testbed.
    place: usize,
    character: Character,
    answer: Answer,
    calls: usize,
    in_flight: usize,
    most_in_flight: usize,
    /// The gateway's own names for the messages that it has, by idempotency key.
    known: HashMap<String, usize>,
}

/// One end of a connection.
#[derive(Clone)]
struct Server<R> {
    behaviour: Arc<Mutex<Behaviour>>,
    recorder: R,
}

/// The part of a request that a gateway uses.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Sms<'a> {
    id: &'a str,
    phone: &'a str,
    #[serde(default)]
    code: &'a str,
}

/// The decision of the gateway about a call.
struct Decision {
    /// For the recorder.
    number: usize,
    /// The gateway's own name for the message.
    name: Option<usize>,
    answer: Answer,
    pause: Duration,
}

const LATE: Duration = Duration::from_secs(30);
/// The time between two bytes of a dripping answer. Its head alone takes longer than any caller
/// waits.
const DRIP: Duration = Duration::from_millis(500);

impl Character {
    /// Accepts every message at once.
    pub const PLAIN: Self = Self {
        kind: GatewayKind::Plain,
        refuses_numbers: false,
        names_messages: false,
        latency: Duration::ZERO,
        slowness: Duration::ZERO,
    };

    /// Recognises messages, and refuses some numbers.
    pub const CHAOS: Self = Self {
        kind: GatewayKind::Idempotent,
        refuses_numbers: true,
        names_messages: true,
        latency: Duration::ZERO,
        slowness: Duration::ZERO,
    };
}

impl Gateway {
    /// Starts a gateway that answers well, on a port that the kernel chooses.
    pub async fn start(character: Character, recorder: impl Recorder) -> io::Result<Self> {
        Self::start_on(0, 0, character, recorder).await
    }

    /// Starts the gateway of this place on this port. If it is to be [`Answer::Down`] for a while,
    /// the port must be one that no other program takes meanwhile.
    pub async fn start_on(
        port: u16,
        place: usize,
        character: Character,
        recorder: impl Recorder,
    ) -> io::Result<Self> {
        let listener = listen(port).await?;
        let port = listener.local_addr()?.port();
        let behaviour = Arc::new(Mutex::new(Behaviour {
            place,
            character,
            answer: Answer::Accept,
            calls: 0,
            in_flight: 0,
            most_in_flight: 0,
            known: HashMap::new(),
        }));
        let is_up = watch::Sender::new(true);
        let server = Server { behaviour: Arc::clone(&behaviour), recorder };
        let task = tokio::spawn(run(listener, port, server, is_up.subscribe()));
        Ok(Self { port, behaviour, is_up, _task: AbortOnDropHandle::new(task) })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes how it answers from now on.
    pub fn answer(&self, answer: Answer) {
        lock(&self.behaviour).answer = answer;
        self.is_up.send_replace(answer != Answer::Down);
    }

    /// Returns the largest number of calls that it had at a time.
    pub fn most_in_flight(&self) -> usize {
        lock(&self.behaviour).most_in_flight
    }

    /// Changes its kind, and lets it forget all messages.
    pub fn become_kind(&self, kind: GatewayKind) {
        let mut behaviour = lock(&self.behaviour);
        behaviour.character.kind = kind;
        behaviour.known.clear();
    }
}

async fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await
}

/// Serves connections while the gateway is up. When it goes down, all connections break.
async fn run<R: Recorder>(
    first: TcpListener,
    port: u16,
    server: Server<R>,
    mut is_up: watch::Receiver<bool>,
) {
    let mut listener = Some(first);
    while is_up.wait_for(|is_up| *is_up).await.is_ok() {
        let Some(open) = listener.take() else {
            match listen(port).await {
                Ok(open) => listener = Some(open),
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
            continue;
        };
        let down = CancellationToken::new();
        let accept = async {
            loop {
                if let Ok((stream, _)) = open.accept().await {
                    let (server, down) = (server.clone(), down.clone());
                    tokio::spawn(async move {
                        // The caller notices a broken connection.
                        let _ = down.run_until_cancelled(server.serve(stream)).await;
                    });
                }
            }
        };
        tokio::select! {
            () = accept => {}
            _ = is_up.wait_for(|is_up| !is_up) => {}
        }
        down.cancel();
    }
}

fn lock(behaviour: &Mutex<Behaviour>) -> MutexGuard<'_, Behaviour> {
    behaviour.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<R: Recorder> Server<R> {
    async fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut buffer = Vec::with_capacity(2_048);
        while let Some((head, body)) = read_request(&mut stream, &mut buffer).await? {
            let end = body.end;
            let key = header(&buffer[head], "idempotency-key").unwrap_or_default();
            let sms: Sms<'_> = serde_json::from_slice(&buffer[body])?;
            let Decision { number, name, answer, pause } = self.take(key, &sms);
            let in_flight = InFlight::begin(&self.behaviour);
            if !pause.is_zero() {
                sleep(pause).await;
            }
            buffer.drain(..end);
            let answered = reply(&mut stream, answer, name).await;
            let is_whole = answered.is_ok() && !matches!(answer, Answer::Reset | Answer::Down);
            drop(in_flight);
            self.recorder.call_ended(number, is_whole);
            answered?;
            if matches!(answer, Answer::Reset | Answer::Noise | Answer::Down) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Decides on an SMS and records the call.
    fn take(&self, key: &str, sms: &Sms<'_>) -> Decision {
        let &Sms { id, phone, code } = sms;
        let mut behaviour = lock(&self.behaviour);
        let character = behaviour.character;
        let place = behaviour.calls;
        behaviour.calls += 1;
        let answer = if character.refuses_numbers && is_refused(phone) {
            Answer::Refuse
        } else {
            behaviour.answer
        };
        let takes = match answer {
            Answer::Throttle
            | Answer::Unavailable
            | Answer::Refuse
            | Answer::Deny
            | Answer::ErrorInside
            | Answer::Down => false,
            Answer::Error => place.is_multiple_of(2),
            _ => true,
        };
        let known = match character.kind {
            GatewayKind::Idempotent => behaviour.known.get(key).copied(),
            GatewayKind::Plain => None,
        };
        let paid = takes && known.is_none();
        if paid && character.kind == GatewayKind::Idempotent {
            behaviour.known.insert(key.to_owned(), place);
        }
        // Recorded under the lock, so that the record has the order of the decisions.
        let (gateway, kind) = (behaviour.place, character.kind);
        let call = Call { key, id, phone, code, gateway, kind, answer, paid };
        let number = self.recorder.called(&call);
        let name = character.names_messages.then(|| known.unwrap_or(place));
        let is_slow = !character.slowness.is_zero() && Numbered::is_slow(phone);
        let more = if is_slow { character.slowness } else { Duration::ZERO };
        let pause = character.latency + more;
        Decision { number, name, answer, pause }
    }
}

/// A call that lasts, counted until it is dropped.
struct InFlight<'a>(&'a Mutex<Behaviour>);

impl<'a> InFlight<'a> {
    fn begin(behaviour: &'a Mutex<Behaviour>) -> Self {
        let mut locked = lock(behaviour);
        locked.in_flight += 1;
        locked.most_in_flight = locked.most_in_flight.max(locked.in_flight);
        Self(behaviour)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        lock(self.0).in_flight -= 1;
    }
}

async fn reply(stream: &mut TcpStream, answer: Answer, name: Option<usize>) -> io::Result<()> {
    let body =
        name.map_or_else(|| "{}".to_owned(), |name| format!("{{\"message_id\":\"gw-{name}\"}}"));
    let accepted = response("200 OK", "", &body);
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
        Answer::Deny => stream.write_all(refused("401 Unauthorized", "").as_bytes()).await,
        Answer::ErrorInside => {
            let answer = response("200 OK", "", "{\"error\":\"no credit\"}");
            stream.write_all(answer.as_bytes()).await
        }
        Answer::Late => {
            sleep(LATE).await;
            stream.write_all(accepted.as_bytes()).await
        }
        // A gateway that is down has gone down after the request had arrived.
        Answer::Reset | Answer::Down => stream.set_zero_linger(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kit::{http::Connection, recorder::Request};

    const REQUEST: &str = "POST /send HTTP/1.1\r\nIdempotency-Key: k\r\ncontent-length: 41\r\n\r\n\
        {\"id\":\"k\",\"phone\":\"7999\",\"code\":\"123456\"}";

    /// Keeps key, phone and code of each call, and whether the gateway took it.
    #[derive(Clone, Default)]
    struct Calls(Arc<Mutex<Vec<(String, bool)>>>);

    impl Recorder for Calls {
        fn answered(&self, _request: &Request<'_>) {}

        fn called(&self, call: &Call<'_>) -> usize {
            let text = [call.key, call.id, call.phone, call.code].join(" ");
            self.0.lock().unwrap().push((text, call.paid));
            0
        }

        fn call_ended(&self, _number: usize, _is_whole: bool) {}
    }

    #[tokio::test]
    async fn only_an_idempotent_gateway_takes_a_message_once() {
        let calls = Calls::default();
        let gateway = Gateway::start(Character::CHAOS, calls.clone()).await.unwrap();
        let mut caller = Connection::open(gateway.port()).await.unwrap();

        for kind in [GatewayKind::Idempotent, GatewayKind::Plain] {
            gateway.become_kind(kind);
            for _ in 0..2 {
                assert_eq!(caller.exchange(REQUEST.as_bytes()).await.unwrap().status, 200);
            }
        }

        let call = |paid| ("k k 7999 123456".to_owned(), paid);
        assert_eq!(*calls.0.lock().unwrap(), [true, false, true, true].map(call));
    }

    #[tokio::test]
    async fn a_refused_number_gets_400_and_is_not_paid() {
        let calls = Calls::default();
        let gateway = Gateway::start(Character::CHAOS, calls.clone()).await.unwrap();
        let mut caller = Connection::open(gateway.port()).await.unwrap();

        let request = REQUEST.replace("7999", "7913");
        let status = caller.exchange(request.as_bytes()).await.unwrap().status;

        assert_eq!(status, 400);
        assert!(!calls.0.lock().unwrap()[0].1);
    }

    #[tokio::test]
    async fn a_gateway_that_is_down_refuses_connections_until_it_is_up() {
        let gateway = Gateway::start(Character::CHAOS, Calls::default()).await.unwrap();
        let mut kept = Connection::open(gateway.port()).await.unwrap();
        kept.exchange(REQUEST.as_bytes()).await.unwrap();

        gateway.answer(Answer::Down);

        assert!(kept.exchange(REQUEST.as_bytes()).await.is_err());
        let refused = Connection::open(gateway.port()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);

        gateway.answer(Answer::Accept);
        let mut again = loop {
            match Connection::open(gateway.port()).await {
                Ok(connection) => break connection,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        assert_eq!(again.exchange(REQUEST.as_bytes()).await.unwrap().status, 200);
    }
}
