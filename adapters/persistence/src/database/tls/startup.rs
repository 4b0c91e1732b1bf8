//! Reads what a server says of itself while a session is opened.
//!
//! Since version 14, PostgreSQL reports whether a session can write before it is ready. So a relay
//! knows it without a statement, as libpq does with `target_session_attrs=read-write`.

use std::io::{self, ErrorKind};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::UnixStream,
};

/// The result of opening a session.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// The session can write, or the server does not say. These bytes of the server are not
    /// forwarded yet.
    Writable(Vec<u8>),
    /// The last message of the opening is not forwarded.
    ReadOnly,
}

const READY: u8 = b'Z';
const ERROR: u8 = b'E';
const PARAMETER: u8 = b'S';

/// Servers send a few hundred bytes. One that sends more does not speak this protocol.
const MOST: usize = 64 * 1024;

/// Forwards the opening of a session. `answer` is the beginning of the server's answer.
pub(super) async fn open(
    near: &mut UnixStream,
    far: &mut (impl AsyncRead + AsyncWrite + Unpin),
    answer: Vec<u8>,
) -> io::Result<Opened> {
    let (mut from_near, mut to_near) = near.split();
    let (mut from_far, mut to_far) = split(far);
    let mut waiting = answer;
    let mut is_read_only = false;
    let mut own = [0; 1_024];
    loop {
        while let Some(length) = length_of_first(&waiting) {
            let message = &waiting[..length];
            match message[0] {
                READY if is_read_only => return Ok(Opened::ReadOnly),
                READY | ERROR => return Ok(Opened::Writable(waiting)),
                PARAMETER => is_read_only |= says_read_only(message),
                _ => {}
            }
            to_near.write_all(message).await?;
            waiting.drain(..length);
        }
        if waiting.len() > MOST {
            return Ok(Opened::Writable(waiting));
        }
        tokio::select! {
            read = from_far.read_buf(&mut waiting) => {
                if read? == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
            }
            read = from_near.read(&mut own) => {
                let read = read?;
                if read == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                to_far.write_all(&own[..read]).await?;
                to_far.flush().await?;
            }
        }
    }
}

/// Returns the length of the first message, if all of it is there.
fn length_of_first(bytes: &[u8]) -> Option<usize> {
    let length: [u8; 4] = bytes.get(1..5)?.try_into().ok()?;
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?.checked_add(1)?;
    (length >= 5 && bytes.len() >= length).then_some(length)
}

/// Returns whether a parameter excludes that the session writes.
fn says_read_only(message: &[u8]) -> bool {
    let mut texts = message[5..].split(|byte| *byte == 0);
    let (name, value) = (texts.next().unwrap_or_default(), texts.next().unwrap_or_default());
    [&b"in_hot_standby"[..], b"default_transaction_read_only"].contains(&name) && value == b"on"
}

/// Returns the text of an error message of the server.
pub(super) fn text_of_error(message: &[u8]) -> Option<String> {
    let mut fields = message.get(5..)?.split(|byte| *byte == 0);
    let text = fields.find_map(|field| field.strip_prefix(b"M"))?;
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[kind], &length[..], body].concat()
    }

    /// The result of opening a session with a server that says this, and what the client got.
    async fn opened(said: &[u8], pieces: usize) -> (Opened, Vec<u8>) {
        let (mut client, mut near) = UnixStream::pair().unwrap();
        let (mut far, mut server) = duplex(1_024);
        let mut said = said.chunks(said.len().div_ceil(pieces));
        let first = said.next().unwrap().to_vec();
        let rest: Vec<_> = said.map(<[u8]>::to_vec).collect();
        let saying = tokio::spawn(async move {
            for piece in rest {
                server.write_all(&piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            server
        });
        let opened = open(&mut near, &mut far, first).await.unwrap();
        drop((near, saying.await));
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        (opened, got)
    }

    #[tokio::test]
    async fn session_is_read_only_if_a_parameter_says_so() {
        let authenticated = message(b'R', &[0; 4]);
        let ready = message(b'Z', b"I");
        for (name, value, is_read_only) in [
            ("in_hot_standby", "on", true),
            ("in_hot_standby", "off", false),
            ("default_transaction_read_only", "on", true),
            ("default_transaction_read_only", "off", false),
            ("application_name", "on", false),
        ] {
            let parameter = message(b'S', format!("{name}\0{value}\0").as_bytes());
            let before = [authenticated.clone(), parameter].concat();
            for pieces in [1, 2, 7] {
                let (opened, got) = opened(&[&*before, &ready].concat(), pieces).await;

                assert_eq!(got, before, "{name} {value}");
                let writable = Opened::Writable(ready.clone());
                let expected = if is_read_only { Opened::ReadOnly } else { writable };
                assert_eq!(opened, expected, "{name} {value}, {pieces} pieces");
            }
        }
    }

    #[tokio::test]
    async fn error_of_the_server_is_forwarded() {
        let refused = message(b'E', b"SFATAL\0C28P01\0Mwrong password\0\0");

        let (opened, _) = opened(&refused, 1).await;

        assert_eq!(text_of_error(&refused).as_deref(), Some("wrong password"));
        assert_eq!(opened, Opened::Writable(refused));
    }

    #[test]
    fn length_of_a_message_is_that_of_its_bytes() {
        assert_eq!(length_of_first(&[]), None);
        assert_eq!(length_of_first(b"Z\0\0\0\x05"), None);
        assert_eq!(length_of_first(b"Z\0\0\0\x05IZ"), Some(6));
        assert_eq!(length_of_first(b"Z\0\0\0\x03I"), None, "shorter than its own length");
        assert_eq!(length_of_first(b"Z\xff\xff\xff\xffI"), None);
    }
}
