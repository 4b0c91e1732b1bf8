//! One bound connection to an SMSC, from the bind to the end.
//!
//! One task reads, writes and keeps the time, so a request is entered among the unanswered before
//! its octets leave, and nothing waits for a lock. A caller that goes away leaves its request among
//! the unanswered: the SMSC still works on it, so it still takes a place of the window.

use std::{io, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval},
};

use self::unanswered::Unanswered;
use super::{
    listener::{Delivered, Listener},
    message::ShortMessage,
    pdu::{self, Pdu},
    status,
    tls::Stream,
};

mod unanswered;

/// A short message for the SMSC.
pub(super) struct Submit {
    pub(super) message: ShortMessage,
    pub(super) answer: oneshot::Sender<Answer>,
    /// The place in the window, given back when the SMSC answers.
    pub(super) place: OwnedSemaphorePermit,
}

/// The result of submitting a short message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The SMSC answered. The id is empty if it gave none.
    Response { status: u32, id: String },
    /// The SMSC cannot have the message: its last octet was not written.
    NotSent,
    /// All octets were written, and no answer came.
    Lost,
}

/// The reason why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Ended {
    #[error("the connection was lost")]
    Lost,
    #[error("the SMSC does not answer")]
    Silent,
    #[error("the SMSC sent something that is not SMPP")]
    Malformed,
    #[error("the SMSC unbound")]
    Unbound,
    #[error("the gateway is closed")]
    Closed,
}

/// Times and limits of a session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// How long the SMSC may be silent before it is asked whether it is there.
    pub(super) enquire_link: Duration,
    /// How long an answer may take.
    pub(super) answer: Duration,
}

pub(super) struct Session {
    pace: Pace,
    listener: Option<Listener>,
    input: BytesMut,
    output: BytesMut,
    /// How many octets were put into `output`, and how many of them the connection took.
    queued: u64,
    written: u64,
    unflushed: bool,
    sequence: u32,
    unanswered: Unanswered,
    last_heard: Instant,
    asked_at: Option<Instant>,
    /// Deliveries that are being stored, and where their ends are told.
    storing: usize,
    stored: (mpsc::UnboundedSender<Delivered>, mpsc::UnboundedReceiver<Delivered>),
    phase: Phase,
}

/// How far a session has come.
#[derive(Clone, Copy)]
enum Phase {
    Open,
    /// No request is taken any more. Answers may still come until `until`.
    Ending {
        until: Instant,
        by: EndedBy,
    },
    /// The last PDU is in `output`. The connection ends when it is written, or at `until`.
    Leaving {
        until: Instant,
        by: EndedBy,
    },
}

#[derive(Clone, Copy)]
enum EndedBy {
    /// The SMSC, whose `unbind` has this number.
    Smsc(u32),
    Us,
    /// The SMSC sent what cannot be read.
    Fault,
}

/// How often the times are looked at.
const TICK: Duration = Duration::from_millis(100);

/// How long answers are awaited after the SMSC's `unbind`, and how long the last PDU may take.
const PARTING: Duration = Duration::from_secs(1);

/// The largest number of octets that wait for the connection. Beyond it nothing is taken or read.
const OUTPUT: usize = 64 * 1024;

/// The largest number of deliveries that are stored at the same time. The SMSC is asked to repeat
/// others later.
const STORING: usize = 256;

/// The largest sequence number (SMPP 3.4 §3.2).
const LAST_SEQUENCE: u32 = 0x7fff_ffff;

impl Session {
    /// Makes a session that begins after the bind, whose number was 1. `input` is what arrived
    /// behind the bind's response.
    pub(super) fn new(pace: Pace, listener: Option<Listener>, input: BytesMut) -> Self {
        Self {
            pace,
            listener,
            input,
            output: BytesMut::new(),
            queued: 0,
            written: 0,
            unflushed: false,
            sequence: 1,
            unanswered: Unanswered::default(),
            last_heard: Instant::now(),
            asked_at: None,
            storing: 0,
            stored: mpsc::unbounded_channel(),
            phase: Phase::Open,
        }
    }

    /// Runs the session to its end. Each request that was taken gets an answer.
    ///
    /// The session unbinds if `requests` is closed, or if the sender of `stop` is gone.
    pub(super) async fn run(
        mut self,
        stream: Box<dyn Stream>,
        requests: &mut mpsc::Receiver<Submit>,
        stop: &mut watch::Receiver<()>,
    ) -> Ended {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let ended = self.serve(&mut reader, &mut writer, requests, stop).await;
        requests.close();
        while let Ok(request) = requests.try_recv() {
            _ = request.answer.send(Answer::NotSent);
        }
        self.unanswered.end(self.written);
        ended
    }

    async fn serve(
        &mut self,
        reader: &mut ReadHalf<Box<dyn Stream>>,
        writer: &mut WriteHalf<Box<dyn Stream>>,
        requests: &mut mpsc::Receiver<Submit>,
        stop: &mut watch::Receiver<()>,
    ) -> Ended {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.read_input();
            if let Some(ended) = self.advance(Instant::now()) {
                return ended;
            }
            let open = matches!(self.phase, Phase::Open);
            if !open {
                requests.close();
            }
            tokio::select! {
                read = reader.read_buf(&mut self.input), if self.output.len() < OUTPUT => match read {
                    Ok(1..) => self.last_heard = Instant::now(),
                    Ok(0) | Err(_) => return Ended::Lost,
                },
                wrote = write(writer, &mut self.output),
                    if !self.output.is_empty() || self.unflushed =>
                {
                    match wrote {
                        Ok(Some(octets)) => {
                            self.written += octets;
                            self.unflushed = true;
                        }
                        Ok(None) => self.unflushed = false,
                        Err(_) => return Ended::Lost,
                    }
                }
                request = requests.recv(), if open && self.output.len() < OUTPUT => {
                    match request {
                        Some(request) => self.submit(request),
                        None => self.end(EndedBy::Us),
                    }
                }
                Some(delivered) = self.stored.1.recv() => self.reply_to(delivered),
                _ = stop.changed(), if open => self.end(EndedBy::Us),
                _ = ticks.tick() => {}
            }
        }
    }

    /// Handles each PDU that has arrived as a whole.
    fn read_input(&mut self) {
        while !matches!(self.phase, Phase::Leaving { by: EndedBy::Fault, .. }) {
            match Pdu::take(&mut self.input) {
                Ok(Some(pdu)) => self.receive(&pdu),
                Ok(None) => return,
                Err(pdu::Malformed) => {
                    self.put(&pdu::response(pdu::GENERIC_NACK, status::INVALID_COMMAND_LENGTH, 0));
                    self.leave(EndedBy::Fault);
                }
            }
        }
    }

    fn receive(&mut self, pdu: &Pdu) {
        let sequence = pdu.header.sequence_number;
        match pdu.header.command_id {
            pdu::GENERIC_NACK => {
                // A refusal without a reason is still a refusal.
                let status = match pdu.header.command_status {
                    status::OK => status::INVALID_COMMAND_ID,
                    status => status,
                };
                self.unanswered.answer(sequence, Answer::Response { status, id: String::new() });
            }
            id if id == pdu::SUBMIT_SM | pdu::RESPONSE => {
                let (status, id) = (pdu.header.command_status, pdu.first_text());
                self.unanswered.answer(sequence, Answer::Response { status, id });
            }
            id if id == pdu::UNBIND | pdu::RESPONSE => {
                if let Phase::Leaving { by, .. } = self.phase {
                    self.phase = Phase::Leaving { until: Instant::now(), by };
                }
            }
            // `enquire_link_resp` among them: that it arrived is enough.
            id if id & pdu::RESPONSE != 0 => {}
            pdu::ENQUIRE_LINK => {
                self.put(&pdu::response(pdu::ENQUIRE_LINK, status::OK, sequence));
            }
            pdu::UNBIND => self.end(EndedBy::Smsc(sequence)),
            command @ (pdu::DELIVER_SM | pdu::DATA_SM) => self.deliver(command, pdu),
            // Neither has a response.
            pdu::ALERT_NOTIFICATION | pdu::OUTBIND => {}
            _ => {
                self.put(&pdu::response(pdu::GENERIC_NACK, status::INVALID_COMMAND_ID, sequence));
            }
        }
    }

    /// Hands a delivery on. The SMSC gets a response when the receipt is stored.
    fn deliver(&mut self, command: u32, pdu: &Pdu) {
        let sequence = pdu.header.sequence_number;
        let listener = self.listener.as_ref().filter(|_| self.storing < STORING);
        let status = match listener {
            Some(listener) => listener.hear(pdu, self.stored.0.clone()),
            None => Some(status::TEMPORARY_ERROR),
        };
        match status {
            Some(status) => self.put(&pdu::response(command, status, sequence)),
            None => self.storing += 1,
        }
    }

    fn reply_to(&mut self, Delivered { command, sequence, status }: Delivered) {
        self.storing -= 1;
        self.put(&pdu::response(command, status, sequence));
    }

    /// Enters a request and puts its octets into `output`. A request whose caller has gone away is
    /// dropped.
    fn submit(&mut self, request: Submit) {
        let Submit { message, answer, place } = request;
        if answer.is_closed() {
            return;
        }
        let sequence = self.next_sequence();
        self.put(&message.encode(sequence));
        self.unanswered.enter(sequence, self.queued, answer, place);
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = if self.sequence < LAST_SEQUENCE { self.sequence + 1 } else { 1 };
        self.sequence
    }

    fn put(&mut self, octets: &[u8]) {
        self.output.extend_from_slice(octets);
        self.queued += octets.len() as u64;
    }

    /// Stops taking requests.
    fn end(&mut self, by: EndedBy) {
        if let Phase::Open = self.phase {
            let patience = if let EndedBy::Us = by { self.pace.answer } else { PARTING };
            self.phase = Phase::Ending { until: Instant::now() + patience, by };
        } else if let EndedBy::Smsc(sequence) = by {
            self.put(&pdu::response(pdu::UNBIND, status::OK, sequence));
        }
    }

    fn leave(&mut self, by: EndedBy) {
        self.phase = Phase::Leaving { until: Instant::now() + PARTING, by };
    }

    /// Does what is due. Returns the reason if the session is over.
    fn advance(&mut self, now: Instant) -> Option<Ended> {
        self.unanswered.give_up(now, self.pace.answer);
        match self.phase {
            Phase::Open => {}
            Phase::Ending { until, by } => {
                if now >= until || (self.unanswered.is_empty() && self.storing == 0) {
                    self.part(by);
                }
            }
            Phase::Leaving { until, by } => {
                // After our own unbind its response is awaited.
                let gone = self.output.is_empty() && !self.unflushed;
                if now >= until || (gone && !matches!(by, EndedBy::Us)) {
                    return Some(match by {
                        EndedBy::Smsc(_) => Ended::Unbound,
                        EndedBy::Us => Ended::Closed,
                        EndedBy::Fault => Ended::Malformed,
                    });
                }
            }
        }
        self.enquire(now)
    }

    /// Writes the last PDU.
    fn part(&mut self, by: EndedBy) {
        match by {
            EndedBy::Smsc(sequence) => {
                self.put(&pdu::response(pdu::UNBIND, status::OK, sequence));
            }
            EndedBy::Us => {
                let sequence = self.next_sequence();
                self.put(&pdu::request(pdu::UNBIND, sequence));
            }
            EndedBy::Fault => {}
        }
        self.leave(by);
    }

    /// Asks a silent SMSC whether it is there. Returns a reason if it is not.
    fn enquire(&mut self, now: Instant) -> Option<Ended> {
        match self.asked_at {
            Some(asked_at) if self.last_heard >= asked_at => self.asked_at = None,
            Some(asked_at) if now >= asked_at + self.pace.answer => return Some(Ended::Silent),
            None if now >= self.last_heard + self.pace.enquire_link => {
                let sequence = self.next_sequence();
                self.put(&pdu::request(pdu::ENQUIRE_LINK, sequence));
                self.asked_at = Some(now);
            }
            _ => {}
        }
        None
    }
}

/// Writes some of `output` and returns how many octets the connection took, or flushes what was
/// written if `output` is empty. Loses nothing if it is dropped.
async fn write(
    writer: &mut WriteHalf<Box<dyn Stream>>,
    output: &mut BytesMut,
) -> io::Result<Option<u64>> {
    if output.is_empty() {
        writer.flush().await?;
        return Ok(None);
    }
    match writer.write_buf(output).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        octets => Ok(Some(octets as u64)),
    }
}
