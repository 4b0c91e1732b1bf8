//! A gateway that takes all it gets, as fast as it can, and slow phones as slowly as it is told.

use std::{io, net::Ipv4Addr, time::Duration};

use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    http::{content_length, head_length},
    phones::Phone,
    tape::Tape,
};

/// The gateway, until it is dropped, at `http://127.0.0.1:<port>/send`.
#[derive(Debug)]
pub struct Desk {
    pub port: u16,
    _task: AbortOnDropHandle<()>,
}

#[derive(Deserialize)]
struct Sms<'a> {
    id: &'a str,
    phone: &'a str,
}

const ACCEPTED: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
const LARGEST_REQUEST: usize = 64 * 1024;

impl Desk {
    /// A gateway that writes its calls on `tape`.
    pub async fn open(tape: Tape, slowness: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let task = tokio::spawn(async move {
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    let tape = tape.clone();
                    tokio::spawn(async move {
                        // A connection that broke is the caller's to notice.
                        let _ = serve(stream, &tape, slowness).await;
                    });
                }
            }
        });
        Ok(Self { port, _task: AbortOnDropHandle::new(task) })
    }
}

async fn serve(mut stream: TcpStream, tape: &Tape, slowness: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(2_048);
    loop {
        let Some((start, end)) = read_request(&mut stream, &mut buffer).await? else {
            return Ok(());
        };
        let sms: Sms<'_> = serde_json::from_slice(&buffer[start..end])?;
        tape.call(sms.phone, sms.id);
        if matches!(Phone::parse(sms.phone), Some(Phone::Slow(_))) {
            sleep(slowness).await;
        }
        buffer.drain(..end);
        stream.write_all(ACCEPTED).await?;
    }
}

/// Where the body of the next request begins and ends in `buffer`; none at the connection's end.
async fn read_request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(usize, usize)>> {
    loop {
        if let Some(start) = head_length(buffer) {
            let end = start + content_length(&buffer[..start]).unwrap_or(0);
            if buffer.len() >= end {
                return Ok(Some((start, end)));
            }
        }
        if buffer.len() > LARGEST_REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}
