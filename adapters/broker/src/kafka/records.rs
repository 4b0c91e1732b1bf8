//! Reads record batches as a stream. Parts that no message can have are skipped and never held, so
//! that memory stays bounded, whatever a producer wrote and however well it was compressed.
//!
//! A record that cannot be a message is [`Unreadable`] alone, and reading continues after it.
//!
//! This is one file, because batches, records and fields are one format, which is read in one pass.

mod snappy;
#[cfg(test)]
mod tests;

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Read, Take},
    ops::ControlFlow,
    sync::atomic::{AtomicBool, Ordering},
};

use adapters_wire::{Headers, MAX_VALUE_LENGTH, header_that_is_read};
use application::ports::{Incoming, Record, Unreadable};
use flate2::bufread::MultiGzDecoder;

use self::snappy::SnappyReader;

/// The largest number of records of one fetch. The next fetch continues after them, perhaps in the
/// middle of a batch.
const MOST_RECORDS: usize = 5_000;

/// The largest part of a value that is kept: enough for [`adapters_wire::decode`] to see that the
/// value is too large.
const LONGEST_VALUE: u64 = MAX_VALUE_LENGTH as u64 + 1;

/// The largest part of a header that is kept. No valid header that we read is so long.
const LONGEST_HEADER: u64 = 1024;

/// The largest number of headers of a record. Without it a record of a few compressed bytes could
/// claim billions of empty headers.
const MOST_HEADERS: u64 = 1_000;

const BUFFER: usize = 64 * 1024;

/// The largest window of a zstd frame, as a power of two: 128 MiB, which Kafka's producer uses at
/// the highest level.
const ZSTD_WINDOW: u32 = 27;

const UNDECODABLE: Unreadable = Unreadable("the batch of records cannot be decoded");
const DAMAGED: Unreadable = Unreadable("the batch of records is damaged");
const OLD: Unreadable = Unreadable("the record has a format of before Kafka 0.11");
const MALFORMED: Unreadable = Unreadable("the record is malformed");

/// What to read.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) from: i64,
    pub(super) aborted: Vec<Aborted>,
}

/// An aborted transaction: the records of this producer from this offset up to its next marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Aborted {
    pub(super) producer: i64,
    pub(super) first_offset: i64,
}

/// The parts of a record that a message is made of.
#[derive(Debug)]
pub(super) struct Raw<'a> {
    pub(super) offset: i64,
    /// In milliseconds since 1970.
    pub(super) written_at: i64,
    /// Truncated after the longest value that a message can have.
    pub(super) value: Option<&'a [u8]>,
    /// Only the headers that [`adapters_wire`] reads.
    pub(super) headers: &'a Headers,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) records: Vec<Record>,
    pub(super) next_offset: i64,
}

impl Found {
    /// Skips the record at this offset.
    pub(super) fn undecodable(offset: i64) -> Self {
        let records = vec![Record { offset, content: Err(UNDECODABLE) }];
        Self { records, next_offset: offset.saturating_add(1) }
    }
}

/// Whether a batch among these bytes is compressed. If so, reading them may take long.
pub(super) fn any_compressed(mut bytes: &[u8]) -> bool {
    while let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() {
        if rest.get(MAGIC) == Some(&2) && rest.get(10).is_some_and(|low| low & 7 != 0) {
            return true;
        }
        let size = usize::try_from(Head::read(*head).size).unwrap_or(usize::MAX);
        bytes = rest.get(size..).unwrap_or_default();
    }
    false
}

/// Reads batches from the next `length` bytes of `source`. The last batch may be incomplete.
///
/// Fails only if the source fails, or if `abandoned` is set.
pub(super) fn read(
    source: impl Read,
    mut length: u64,
    span: Span,
    abandoned: &AtomicBool,
    decode: impl FnMut(Raw<'_>) -> Result<Incoming, Unreadable>,
) -> io::Result<Found> {
    let mut source = Source { inner: source, left: 0, checksum: 0, failure: None };
    let mut reader = Reader::new(span, abandoned, decode);
    while let Some(left) = length.checked_sub(HEAD as u64) {
        source.left = HEAD as u64;
        let head = Head::read(source.array()?);
        let Some(size) = u64::try_from(head.size).ok().filter(|size| *size >= SMALLEST) else {
            // It is not known where the next batch begins.
            reader.step_over(head.base_offset, DAMAGED);
            break;
        };
        let Some(left) = left.checked_sub(size) else { break };
        length = left;
        source.left = size;
        if reader.batch(&mut source, head.base_offset)?.is_break() {
            break;
        }
    }
    Ok(Found { records: reader.records, next_offset: reader.next })
}

/// The length of the head: the first offset, and the length of the rest. It is the same in all
/// formats.
const HEAD: usize = 12;
/// The position of the format, after the head.
const MAGIC: usize = 4;
/// The shortest message of the oldest format, without the head.
const SMALLEST: u64 = 14;
/// The length of a batch of the current format before its records, without the head.
const FIXED: u64 = 49;

struct Head {
    base_offset: i64,
    size: i32,
}

impl Head {
    fn read(bytes: [u8; HEAD]) -> Self {
        let mut bytes = Fields(&bytes);
        Self {
            base_offset: i64::from_be_bytes(bytes.take()),
            size: i32::from_be_bytes(bytes.take()),
        }
    }
}

/// The fields of a batch before its records.
struct Batch {
    base_offset: i64,
    attributes: i16,
    last_offset: i64,
    base_time: i64,
    latest_time: i64,
    producer: i64,
    count: i32,
}

impl Batch {
    fn read(base_offset: i64, bytes: [u8; 40]) -> Self {
        let mut bytes = Fields(&bytes);
        let attributes = i16::from_be_bytes(bytes.take());
        let last_delta = i32::from_be_bytes(bytes.take()).max(0);
        let base_time = i64::from_be_bytes(bytes.take());
        let latest_time = i64::from_be_bytes(bytes.take());
        let producer = i64::from_be_bytes(bytes.take());
        let _epoch_and_sequence: [u8; 6] = bytes.take();
        let count = i32::from_be_bytes(bytes.take());
        let last_offset = base_offset.saturating_add(last_delta.into());
        Self { base_offset, attributes, last_offset, base_time, latest_time, producer, count }
    }

    fn codec(&self) -> i16 {
        self.attributes & 0b111
    }

    /// Whether the time of the records comes from the broker's clock.
    fn has_broker_time(&self) -> bool {
        self.attributes & 0b1000 != 0
    }

    fn is_transactional(&self) -> bool {
        self.attributes & 0b1_0000 != 0
    }

    /// Whether it contains the end of a transaction, and no records of a producer.
    fn is_control(&self) -> bool {
        self.attributes & 0b10_0000 != 0
    }
}

/// Takes fields of fixed length from a head.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("the fields are those of the head");
        self.0 = rest;
        *field
    }
}

/// Reads the rest of a batch and computes its checksum. Keeps an error of the source, which a
/// decompressor would hide.
struct Source<R> {
    inner: R,
    left: u64,
    checksum: u32,
    failure: Option<io::Error>,
}

impl<R: Read> Source<R> {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        match self.read_exact(&mut bytes) {
            Ok(()) => Ok(bytes),
            Err(error) => Err(self.failure.take().unwrap_or(error)),
        }
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        match io::copy(self, &mut io::sink()) {
            Ok(_) => Ok(()),
            Err(error) => Err(self.failure.take().unwrap_or(error)),
        }
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = match self.inner.read(&mut buffer[..most]) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            read => read,
        };
        match read {
            Ok(read) => {
                self.checksum = crc32c::crc32c_append(self.checksum, &buffer[..read]);
                self.left -= read as u64;
                Ok(read)
            }
            Err(error) => {
                let told = error.kind().into();
                self.failure.get_or_insert(error);
                Err(told)
            }
        }
    }
}

struct Reader<'a, F> {
    from: i64,
    /// In the order of their first offsets.
    aborted: std::iter::Peekable<std::vec::IntoIter<Aborted>>,
    /// The producers that have an aborted transaction here.
    rolled_back: Vec<i64>,
    abandoned: &'a AtomicBool,
    decode: F,
    records: Vec<Record>,
    /// The next offset to read.
    next: i64,
    // Buffers that each record uses again.
    value: Vec<u8>,
    text: Vec<u8>,
}

impl<'a, F: FnMut(Raw<'_>) -> Result<Incoming, Unreadable>> Reader<'a, F> {
    fn new(Span { from, mut aborted }: Span, abandoned: &'a AtomicBool, decode: F) -> Self {
        aborted.sort_by_key(|it| it.first_offset);
        Self {
            from,
            aborted: aborted.into_iter().peekable(),
            rolled_back: Vec::new(),
            abandoned,
            decode,
            records: Vec::new(),
            next: from,
            value: Vec::new(),
            text: Vec::new(),
        }
    }

    /// Reads a batch whose head was read. Returns whether another one may follow.
    fn batch(
        &mut self,
        source: &mut Source<impl Read>,
        base_offset: i64,
    ) -> io::Result<ControlFlow<()>> {
        let size = source.left;
        let start: [u8; MAGIC + 1] = source.array()?;
        match start[MAGIC] {
            2 if size >= FIXED => {}
            0 | 1 => {
                source.skip_rest()?;
                if base_offset >= self.next {
                    self.push(base_offset, Err(OLD));
                }
                return Ok(self.room());
            }
            _ => {
                self.step_over(base_offset, DAMAGED);
                return Ok(ControlFlow::Break(()));
            }
        }
        let checksum = u32::from_be_bytes(source.array()?);
        source.checksum = 0;
        let batch = Batch::read(base_offset, source.array()?);

        let (records_before, next_before) = (self.records.len(), self.next);
        let read = self.content(source, &batch);
        if self.abandoned.load(Ordering::Relaxed) {
            return Err(io::Error::other("the reader was abandoned"));
        }
        if let Some(failure) = source.failure.take() {
            return Err(failure);
        }
        source.skip_rest()?;
        if source.checksum != checksum {
            self.records.truncate(records_before);
            self.next = next_before;
            self.step_over(base_offset, DAMAGED);
            return Ok(ControlFlow::Break(()));
        }
        match read {
            Ok(ControlFlow::Break(())) => return Ok(ControlFlow::Break(())),
            Ok(ControlFlow::Continue(())) => {}
            // The records after it cannot be told apart.
            Err(_) => {
                while self.next <= batch.last_offset {
                    self.push(self.next, Err(UNDECODABLE));
                    if self.room().is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
            }
        }
        self.next = self.next.max(batch.last_offset.saturating_add(1));
        Ok(ControlFlow::Continue(()))
    }

    fn content(
        &mut self,
        source: &mut Source<impl Read>,
        batch: &Batch,
    ) -> io::Result<ControlFlow<()>> {
        while let Some(begun) = self.aborted.next_if(|it| it.first_offset <= batch.last_offset) {
            self.rolled_back.push(begun.producer);
        }
        let capacity = usize::try_from(source.left).unwrap_or(BUFFER).min(BUFFER);
        let mut body = BufReader::with_capacity(capacity, source);
        if batch.is_control() {
            if is_abort_marker(&mut body)? {
                self.rolled_back.retain(|producer| *producer != batch.producer);
            }
            return Ok(ControlFlow::Continue(()));
        }
        let rolled_back = batch.is_transactional() && self.rolled_back.contains(&batch.producer);
        if rolled_back || batch.last_offset < self.from || batch.count <= 0 {
            return Ok(ControlFlow::Continue(()));
        }
        match batch.codec() {
            0 => self.batch_records(&mut body, batch),
            1 => {
                let plain = MultiGzDecoder::new(&mut body);
                self.batch_records(&mut BufReader::with_capacity(BUFFER, plain), batch)
            }
            2 => self.batch_records(&mut SnappyReader::new(&mut body)?, batch),
            3 => {
                let plain = lz4::Decoder::new(&mut body)?;
                self.batch_records(&mut BufReader::with_capacity(BUFFER, plain), batch)
            }
            4 => {
                let mut plain = zstd::Decoder::with_buffer(&mut body)?;
                plain.window_log_max(ZSTD_WINDOW)?;
                self.batch_records(&mut BufReader::with_capacity(BUFFER, plain), batch)
            }
            _ => Err(malformed()),
        }
    }

    fn batch_records(
        &mut self,
        plain: &mut impl BufRead,
        batch: &Batch,
    ) -> io::Result<ControlFlow<()>> {
        for _ in 0..batch.count {
            let length = length(plain)?;
            let mut record = plain.by_ref().take(length);
            let _attributes = byte(&mut record)?;
            let time_delta = varint(&mut record)?;
            let offset = batch.base_offset.saturating_add(varint(&mut record)?);
            if offset > batch.last_offset {
                return Err(malformed());
            }
            // Compaction leaves gaps, and keeps the order.
            if offset >= self.next {
                let written_at = if batch.has_broker_time() {
                    batch.latest_time
                } else {
                    batch.base_time.saturating_add(time_delta)
                };
                if self.record(&mut record, offset, written_at).is_err() {
                    // If the rest of it cannot be read, the batch is damaged.
                    self.skip(&mut record)?;
                    self.push(offset, Err(MALFORMED));
                }
            }
            self.skip(&mut record)?;
            if self.room().is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn record(
        &mut self,
        record: &mut Take<impl BufRead>,
        offset: i64,
        written_at: i64,
    ) -> io::Result<()> {
        if let Some(key) = nullable_length(record)? {
            self.skip_some(record, key)?;
        }
        let value = nullable_length(record)?;
        if let Some(value) = value {
            hold(record, value.min(LONGEST_VALUE), &mut self.value)?;
            self.skip_some(record, value.saturating_sub(LONGEST_VALUE))?;
        }
        let headers = self.headers(record)?;
        let value = value.is_some().then_some(&*self.value);
        let content = (self.decode)(Raw { offset, written_at, value, headers: &headers });
        self.push(offset, content);
        Ok(())
    }

    /// Reads the headers. A header without a value counts as missing.
    fn headers(&mut self, record: &mut Take<impl BufRead>) -> io::Result<Headers> {
        let mut headers = Headers::new();
        let count = length(record)?;
        if count > MOST_HEADERS {
            return Err(malformed());
        }
        for _ in 0..count {
            let name = length(record)?;
            hold(record, name.min(LONGEST_HEADER), &mut self.text)?;
            self.skip_some(record, name.saturating_sub(LONGEST_HEADER))?;
            let known = header_that_is_read(&self.text);
            match (nullable_length(record)?, known) {
                (None, None) => {}
                (None, Some(name)) => {
                    headers.remove(name);
                }
                (Some(value), None) => self.skip_some(record, value)?,
                (Some(value), Some(name)) => {
                    let mut held = Vec::new();
                    hold(record, value.min(LONGEST_HEADER), &mut held)?;
                    self.skip_some(record, value.saturating_sub(LONGEST_HEADER))?;
                    headers.insert(name.to_owned(), held);
                }
            }
        }
        Ok(headers)
    }

    fn skip(&self, record: &mut Take<impl BufRead>) -> io::Result<()> {
        let left = record.limit();
        self.skip_some(record, left)
    }

    fn skip_some(&self, source: &mut impl BufRead, mut length: u64) -> io::Result<()> {
        while length > 0 {
            let chunk = some_of(source, length)?.len();
            source.consume(chunk);
            length -= chunk as u64;
            if self.abandoned.load(Ordering::Relaxed) {
                return Err(ErrorKind::Other.into());
            }
        }
        Ok(())
    }

    fn push(&mut self, offset: i64, content: Result<Incoming, Unreadable>) {
        self.records.push(Record { offset, content });
        self.next = offset.saturating_add(1);
    }

    /// Skips one offset only, because the end of the batch is not certain.
    fn step_over(&mut self, base_offset: i64, reason: Unreadable) {
        if base_offset.max(self.from) >= self.next {
            self.push(base_offset.max(self.next), Err(reason));
        }
    }

    fn room(&self) -> ControlFlow<()> {
        if self.records.len() < MOST_RECORDS {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    }
}

/// Whether a marker aborts its transaction. Its key is a version and a type, which is 0 for this.
fn is_abort_marker(body: &mut impl BufRead) -> io::Result<bool> {
    let length = length(body)?;
    let mut record = body.take(length);
    let _attributes = byte(&mut record)?;
    let _time = varint(&mut record)?;
    let _offset = varint(&mut record)?;
    if nullable_length(&mut record)?.is_none_or(|key| key < 4) {
        return Err(malformed());
    }
    let mut key = [0; 4];
    record.read_exact(&mut key)?;
    Ok(key[2..] == [0, 0])
}

fn malformed() -> io::Error {
    ErrorKind::InvalidData.into()
}

/// Returns the next bytes without consuming them: at least one, and at most `most`.
fn some_of(source: &mut impl BufRead, most: u64) -> io::Result<&[u8]> {
    let chunk = source.fill_buf()?;
    if chunk.is_empty() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    Ok(&chunk[..chunk.len().min(most)])
}

fn hold(source: &mut impl BufRead, mut length: u64, held: &mut Vec<u8>) -> io::Result<()> {
    held.clear();
    while length > 0 {
        let chunk = some_of(source, length)?;
        held.extend_from_slice(chunk);
        let taken = chunk.len();
        source.consume(taken);
        length -= taken as u64;
    }
    Ok(())
}

fn byte(source: &mut impl BufRead) -> io::Result<u8> {
    let byte = some_of(source, 1)?[0];
    source.consume(1);
    Ok(byte)
}

/// Reads a number in zigzag encoding, with seven bits in each byte.
fn varint(source: &mut impl BufRead) -> io::Result<i64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = byte(source)?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed());
        }
    }
    Err(malformed())
}

fn length(source: &mut impl BufRead) -> io::Result<u64> {
    u64::try_from(varint(source)?).map_err(|_| malformed())
}

fn nullable_length(source: &mut impl BufRead) -> io::Result<Option<u64>> {
    match varint(source)? {
        -1 => Ok(None),
        length => u64::try_from(length).map(Some).map_err(|_| malformed()),
    }
}
