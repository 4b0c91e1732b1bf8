//! As much of HTTP/1.1 as clients and gateways of trials need: cheap, and each byte in our hands.

use std::{
    io,
    net::Ipv4Addr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{
    phones::phone_of,
    tape::{Reply, Tape},
};

/// The API says 503 before that.
const LIMIT: Duration = Duration::from_secs(10);

/// How long a client keeps a connection that it has no use for: less than the 30 s after which
/// the API closes it, so that no request meets the closing.
const KEPT_FOR: Duration = Duration::from_secs(20);

const ACCEPTED: &[u8] = b"\"message successfuly sended\"";

/// Clients of the APIs. Where one has no listener the other is asked, as a load balancer does.
#[derive(Debug)]
pub struct Clients {
    ports: Vec<u16>,
    /// Connections that were used before, by port, with the end of their last use.
    kept: Vec<Mutex<Vec<(Instant, TcpStream)>>>,
    /// Of so many requests one comes on a new connection; nought for those that must.
    fresh_every: usize,
    turn: AtomicUsize,
    pub tape: Tape,
}

/// An answer as far as a client cares.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    retry_after: bool,
    body: Vec<u8>,
    keeps: bool,
}

impl Clients {
    pub fn new(ports: Vec<u16>, fresh_every: usize, tape: Tape) -> Self {
        let kept = ports.iter().map(|_| Mutex::default()).collect();
        Self { ports, kept, fresh_every, turn: AtomicUsize::new(0), tape }
    }

    /// Asks for a message to a phone that had none, and writes the outcome on the tape.
    pub async fn ask(&self) -> Reply {
        let number = self.tape.ask();
        let reply = self.ask_for(&phone_of(number)).await;
        self.tape.answer(number, reply);
        reply
    }

    pub async fn ask_for(&self, phone: &str) -> Reply {
        timeout(LIMIT, self.try_each(phone)).await.unwrap_or(Reply::Silent)
    }

    async fn try_each(&self, phone: &str) -> Reply {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let fresh =
            self.fresh_every > 0 && (turn / self.ports.len()).is_multiple_of(self.fresh_every);
        for step in 0..self.ports.len() {
            let place = (turn + step) % self.ports.len();
            let kept = if fresh { None } else { self.take_kept(place) };
            let was_kept = kept.is_some();
            let stream = match kept {
                Some(stream) => stream,
                None => match TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports[place])).await {
                    Ok(stream) => stream,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                    Err(error) => {
                        self.tape.sample(format!("connect: {error}"));
                        return Reply::Lost;
                    }
                },
            };
            return self.converse(place, stream, phone, was_kept).await;
        }
        Reply::Nowhere
    }

    /// A connection that the API has not closed meanwhile, as far as can be seen.
    fn take_kept(&self, place: usize) -> Option<TcpStream> {
        let mut kept = self.kept[place].lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((since, stream)) = kept.pop() {
            if since.elapsed() > KEPT_FOR {
                kept.clear();
                return None;
            }
            match stream.try_read(&mut [0; 1]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(stream),
                _ => {}
            }
        }
        None
    }

    async fn converse(
        &self,
        place: usize,
        mut stream: TcpStream,
        phone: &str,
        was_kept: bool,
    ) -> Reply {
        let answer = match exchange(&mut stream, phone).await {
            Ok(answer) => answer,
            Err(error) => {
                let kind = if was_kept { "kept" } else { "new" };
                self.tape.sample(format!("{kind} connection: {error}"));
                return if was_kept { Reply::LostOnKept } else { Reply::Lost };
            }
        };
        if answer.keeps {
            let mut kept = self.kept[place].lock().unwrap_or_else(PoisonError::into_inner);
            kept.push((Instant::now(), stream));
        }
        match answer.status {
            200 if answer.body == ACCEPTED => Reply::Accepted,
            503 if answer.retry_after => Reply::Refused,
            status => {
                self.tape.sample(format!("{status} {}", answer.body.escape_ascii()));
                Reply::Illegal
            }
        }
    }
}

/// A request for a message, to its last byte.
pub fn request(phone: &str) -> String {
    let body = format!("{{\"phone\":\"{phone}\"}}");
    format!(
        "POST /api/ HTTP/1.1\r\nHost: lab\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn exchange(stream: &mut TcpStream, phone: &str) -> io::Result<Answer> {
    stream.set_nodelay(true)?;
    stream.write_all(request(phone).as_bytes()).await?;
    let mut buffer = Vec::with_capacity(512);
    loop {
        if let Some(answer) = parse(&buffer) {
            return Ok(answer);
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let start = head_length(bytes)?;
    let (head, body) = bytes.split_at(start);
    let body = body.get(..content_length(head).unwrap_or(0))?;
    let status = str::from_utf8(head.get(9..12)?).ok()?.parse().ok()?;
    Some(Answer {
        status,
        retry_after: header(head, "retry-after").is_some(),
        body: body.to_owned(),
        keeps: !header(head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
    })
}

/// The length of the head with the empty line after it, if it is all there.
pub fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|end| end + 4)
}

pub fn content_length(head: &[u8]) -> Option<usize> {
    header(head, "content-length")?.parse().ok()
}

fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    str::from_utf8(head).ok()?.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_when_it_is_whole() {
        let whole = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\
            connection: close\r\ncontent-length: 2\r\n\r\n{}";
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), None, "{cut}");
        }

        let answer = parse(whole).unwrap();

        assert_eq!((answer.status, answer.retry_after, answer.keeps), (503, true, false));
        assert_eq!(answer.body, b"{}");
    }
}
