//! Batches of records as different producers write them, for tests.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};

/// A record of a batch.
#[derive(Debug, Clone, Default)]
pub(super) struct TestRecord {
    pub(super) delta: i32,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) headers: Vec<(&'static str, Option<&'static str>)>,
}

/// A batch of records in the format of Kafka 0.11 and later.
#[derive(Debug, Clone)]
pub(super) struct TestBatch {
    pub(super) base_offset: i64,
    pub(super) codec: Codec,
    /// The attributes without the codec.
    pub(super) attributes: i16,
    pub(super) base_time: i64,
    pub(super) latest_time: i64,
    pub(super) producer: i64,
    pub(super) epoch: i16,
    pub(super) sequence: i32,
    pub(super) last_delta: i32,
    pub(super) count: i32,
    /// The records, not compressed.
    pub(super) body: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    Plain,
    Gzip,
    /// In a frame, as Kafka's client writes it.
    Snappy,
    /// Without a frame, as other clients write it.
    RawSnappy,
    Lz4,
    Zstd,
}

pub(super) const CODECS: [Codec; 6] =
    [Codec::Plain, Codec::Gzip, Codec::Snappy, Codec::RawSnappy, Codec::Lz4, Codec::Zstd];

pub(super) const BROKER_TIME: i16 = 0b1000;
pub(super) const TRANSACTIONAL: i16 = 0b1_0000;
pub(super) const CONTROL: i16 = 0b10_0000;

impl TestRecord {
    pub(super) fn of(delta: i32, value: impl Into<Vec<u8>>) -> Self {
        Self { delta, value: Some(value.into()), ..Self::default() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut record = vec![0];
        put(&mut record, 5 * i64::from(self.delta));
        put(&mut record, self.delta.into());
        put_bytes(&mut record, self.key.as_deref());
        put_bytes(&mut record, self.value.as_deref());
        put(&mut record, i64::try_from(self.headers.len()).unwrap());
        for (name, value) in &self.headers {
            put_bytes(&mut record, Some(name.as_bytes()));
            put_bytes(&mut record, value.map(str::as_bytes));
        }
        record
    }
}

impl TestBatch {
    pub(super) fn of(base_offset: i64, records: &[TestRecord]) -> Self {
        let mut body = Vec::new();
        for record in records {
            put_bytes(&mut body, Some(&record.bytes()));
        }
        Self {
            base_offset,
            codec: Codec::Plain,
            attributes: 0,
            base_time: 1_000,
            latest_time: 2_000,
            producer: -1,
            epoch: -1,
            sequence: -1,
            last_delta: records.iter().map(|record| record.delta).max().unwrap_or_default(),
            count: i32::try_from(records.len()).unwrap(),
            body,
        }
    }

    pub(super) fn compressed(self, codec: Codec) -> Self {
        Self { codec, ..self }
    }

    /// The end of a transaction.
    pub(super) fn marker(base_offset: i64, producer: i64, commits: bool) -> Self {
        let key = vec![0, 0, 0, u8::from(commits)];
        let record = TestRecord { key: Some(key), ..TestRecord::of(0, [0; 6]) };
        let attributes = TRANSACTIONAL | CONTROL;
        Self { attributes, producer, ..Self::of(base_offset, &[record]) }
    }

    /// Returns the bytes on the topic and in requests.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let (codec, body) = match self.codec {
            Codec::Plain => (0, self.body.clone()),
            Codec::Gzip => (1, gzip(&self.body)),
            Codec::Snappy => (2, framed_snappy(&self.body)),
            Codec::RawSnappy => (2, snap::raw::Encoder::new().compress_vec(&self.body).unwrap()),
            Codec::Lz4 => (3, lz4(&self.body)),
            Codec::Zstd => (4, zstd::encode_all(&*self.body, 3).unwrap()),
        };
        let mut summed = Vec::new();
        summed.extend((self.attributes | codec).to_be_bytes());
        summed.extend(self.last_delta.to_be_bytes());
        summed.extend(self.base_time.to_be_bytes());
        summed.extend(self.latest_time.to_be_bytes());
        summed.extend(self.producer.to_be_bytes());
        summed.extend(self.epoch.to_be_bytes());
        summed.extend(self.sequence.to_be_bytes());
        summed.extend(self.count.to_be_bytes());
        summed.extend(body);

        let mut batch = Vec::new();
        batch.extend(self.base_offset.to_be_bytes());
        batch.extend(i32::try_from(summed.len() + 9).unwrap().to_be_bytes());
        batch.extend((-1_i32).to_be_bytes());
        batch.push(2);
        batch.extend(crc32c::crc32c(&summed).to_be_bytes());
        batch.extend(summed);
        batch
    }
}

pub(super) fn put(bytes: &mut Vec<u8>, number: i64) {
    let mut zigzag = (number << 1).cast_unsigned() ^ (number >> 63).cast_unsigned();
    while zigzag >= 0x80 {
        bytes.push(zigzag.to_le_bytes()[0] | 0x80);
        zigzag >>= 7;
    }
    bytes.push(zigzag.to_le_bytes()[0]);
}

fn put_bytes(bytes: &mut Vec<u8>, more: Option<&[u8]>) {
    put(bytes, more.map_or(-1, |more| i64::try_from(more.len()).unwrap()));
    bytes.extend(more.unwrap_or_default());
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn lz4(bytes: &[u8]) -> Vec<u8> {
    // Kafka accepts only these blocks.
    let independent = lz4::BlockMode::Independent;
    let mut encoder = lz4::EncoderBuilder::new().block_mode(independent).build(Vec::new()).unwrap();
    encoder.write_all(bytes).unwrap();
    let (compressed, done) = encoder.finish();
    done.unwrap();
    compressed
}

fn framed_snappy(bytes: &[u8]) -> Vec<u8> {
    let mut framed = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
    for chunk in bytes.chunks(32 * 1024) {
        let block = snap::raw::Encoder::new().compress_vec(chunk).unwrap();
        framed.extend(u32::try_from(block.len()).unwrap().to_be_bytes());
        framed.extend(block);
    }
    framed
}
