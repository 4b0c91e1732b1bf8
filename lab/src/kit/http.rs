//! As much of HTTP/1.1 as clients and gateways need.
//!
//! By hand, because it is cheap enough for a benchmark, and because trials and faults need control
//! over each byte.

use std::{
    io::{self, Write},
    net::Ipv4Addr,
    ops::Range,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The largest request that a gateway reads.
const LARGEST_REQUEST: usize = 64 * 1024;

/// A client's connection, which may be used for many requests.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// The answer, as far as it was read.
    buffer: Vec<u8>,
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    pub status: u16,
    pub head: &'a [u8],
    pub body: &'a [u8],
}

impl Connection {
    /// Connects to a port of this machine.
    pub async fn open(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(512) })
    }

    /// Sends a request and reads its answer to the last byte.
    pub async fn exchange(&mut self, request: &[u8]) -> io::Result<Answer<'_>> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let (head, end) = loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(found) = message_length(&self.buffer) {
                break found;
            }
        };
        answer(&self.buffer[..end], head).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Whether the server has kept the connection open, as far as this can be seen.
    pub fn is_open(&self) -> bool {
        let read = self.stream.try_read(&mut [0; 1]);
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Writes part of a request, for clients that never finish it.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Makes the end of the connection a reset.
    pub fn reset_at_end(&self) -> io::Result<()> {
        self.stream.set_zero_linger()
    }
}

impl Answer<'_> {
    pub fn has(&self, name: &str) -> bool {
        header(self.head, name).is_some()
    }

    /// Whether the connection may be used for another request.
    pub fn keeps_connection(&self) -> bool {
        !header(self.head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// Writes a request with a JSON body.
pub fn post(request: &mut Vec<u8>, path: &str, body: &str) {
    // Writing to memory does not fail.
    let _ = write!(
        request,
        "POST {path} HTTP/1.1\r\nHost: lab\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
}

/// Writes a request for one message to a phone.
pub fn submission(request: &mut Vec<u8>, phone: &str) {
    post(request, "/api/", &format!("{{\"phone\":\"{phone}\"}}"));
}

/// Reads the next request into `buffer`, which keeps what follows it. Returns the ranges of its
/// head and of its body, or `None` at the end of the connection.
pub async fn read_request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(Range<usize>, Range<usize>)>> {
    loop {
        if let Some((head, end)) = message_length(buffer) {
            return Ok(Some((0..head, head..end)));
        }
        if buffer.len() > LARGEST_REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// Returns a header's value. `head` is all before the body.
pub fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    str::from_utf8(head).ok()?.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Returns the lengths of the head, with the empty line after it, and of the whole message, if all
/// of it is there.
fn message_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let body = header(&bytes[..head], "content-length").and_then(|text| text.parse().ok());
    let end = head + body.unwrap_or(0);
    (bytes.len() >= end).then_some((head, end))
}

fn answer(bytes: &[u8], head: usize) -> Option<Answer<'_>> {
    let (head, body) = bytes.split_at(head);
    let status = str::from_utf8(head.get(9..12)?).ok()?.parse().ok()?;
    Some(Answer { status, head, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\
        connection: close\r\ncontent-length: 2\r\n\r\n{}";

    #[test]
    fn a_message_is_whole_only_with_its_last_byte() {
        for cut in 0..WHOLE.len() {
            assert_eq!(message_length(&WHOLE[..cut]), None, "{cut}");
        }

        let (_, end) = message_length(&[WHOLE, b"more"].concat()).unwrap();

        assert_eq!(end, WHOLE.len());
    }

    #[test]
    fn an_answer_has_a_status_headers_and_a_body() {
        let (head, end) = message_length(WHOLE).unwrap();

        let answer = answer(&WHOLE[..end], head).unwrap();

        assert_eq!((answer.status, answer.body), (503, &b"{}"[..]));
        assert!(answer.has("retry-after") && !answer.keeps_connection());
    }
}
