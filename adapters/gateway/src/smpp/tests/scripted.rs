//! An SMSC that does what a test says, octet by octet.

use bytes::BytesMut;
use smpp34::CommandHeader;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{SmppSettings, settings, within};
use crate::smpp::pdu::{self, Pdu};

/// The SMSC's side before a connection.
pub(super) struct Scripted {
    listener: TcpListener,
}

/// The SMSC's side of one connection.
pub(super) struct Peer<S = TcpStream> {
    pub(super) stream: S,
    input: BytesMut,
}

impl Scripted {
    pub(super) async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub(super) fn settings(&self) -> SmppSettings {
        SmppSettings { port: self.listener.local_addr().unwrap().port(), ..settings() }
    }

    pub(super) async fn accept(&self) -> TcpStream {
        within(self.listener.accept()).await.unwrap().0
    }

    /// Accepts a connection and its bind.
    pub(super) async fn bound(&self) -> Peer {
        let mut peer = Peer::new(self.accept().await);
        peer.accept_bind(b"").await;
        peer
    }
}

impl<S: AsyncReadExt + AsyncWriteExt + Unpin> Peer<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, input: BytesMut::new() }
    }

    /// Answers the bind, with `more` in the same segment.
    pub(super) async fn accept_bind(&mut self, more: &[u8]) {
        let bind = self.expect(pdu::BIND_TRANSCEIVER).await;
        let mut answer = response(pdu::BIND_TRANSCEIVER, 0, bind.sequence_number, b"smsc\0");
        answer.extend_from_slice(more);
        self.write(&answer).await;
    }

    /// Reads the next PDU, or returns `None` at the end of the connection.
    pub(super) async fn read(&mut self) -> Option<CommandHeader> {
        within(async {
            loop {
                if let Some(pdu) = Pdu::take(&mut self.input).unwrap() {
                    return Some(pdu.header);
                }
                if self.stream.read_buf(&mut self.input).await.unwrap_or(0) == 0 {
                    return None;
                }
            }
        })
        .await
    }

    /// Reads PDUs up to one with this id.
    pub(super) async fn expect(&mut self, command: u32) -> CommandHeader {
        loop {
            let header = self.read().await.expect("the connection must not end");
            if header.command_id == command {
                return header;
            }
        }
    }

    pub(super) async fn write(&mut self, octets: &[u8]) {
        within(self.stream.write_all(octets)).await.unwrap();
        within(self.stream.flush()).await.unwrap();
    }

    /// Accepts the next message under this id.
    pub(super) async fn accept_message(&mut self, id: &str) {
        let sequence = self.expect(pdu::SUBMIT_SM).await.sequence_number;
        self.write(&response(pdu::SUBMIT_SM, 0, sequence, format!("{id}\0").as_bytes())).await;
    }
}

/// Makes a response with a body.
pub(super) fn response(request: u32, status: u32, sequence: u32, body: &[u8]) -> Vec<u8> {
    octets(request | pdu::RESPONSE, status, sequence, body)
}

pub(super) fn octets(command: u32, status: u32, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap();
    let head = [length, command, status, sequence].map(u32::to_be_bytes).concat();
    [head.as_slice(), body].concat()
}
