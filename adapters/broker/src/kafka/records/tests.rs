use std::time::Duration;

use adapters_wire::{DecodeSettings, Place, decode};
use proptest::{collection, prelude::*, sample::Index};

use super::{
    super::batches::{BROKER_TIME, CODECS, Codec, TRANSACTIONAL, TestBatch, TestRecord, put},
    *,
};

const GOOD: &str = r#"{"phone":"79991234567","code":"1234"}"#;

fn found_in(bytes: &[u8], from: i64, aborted: Vec<Aborted>) -> Found {
    let abandoned = AtomicBool::new(false);
    let span = Span { from, aborted };
    read(bytes, bytes.len() as u64, span, &abandoned, |raw| {
        let Raw { offset, written_at, value, headers } = raw;
        let place = Place { topic: "message", partition: 0, offset, written_at };
        let default_ttl = Duration::from_secs(600);
        let settings = DecodeSettings { default_ttl, keys: None, require_sealed: false };
        decode(place, value, headers, settings)
    })
    .unwrap()
}

fn found(bytes: &[u8]) -> Found {
    found_in(bytes, 0, Vec::new())
}

/// Returns the offsets of the messages, and the offsets of unreadable records with the reasons.
fn summary(found: &Found) -> (Vec<i64>, Vec<(i64, &'static str)>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for Record { offset, content } in &found.records {
        match content {
            Ok(_) => good.push(*offset),
            Err(Unreadable(reason)) => bad.push((*offset, *reason)),
        }
    }
    (good, bad)
}

fn good(deltas: std::ops::Range<i32>) -> Vec<TestRecord> {
    deltas.map(|delta| TestRecord::of(delta, GOOD)).collect()
}

#[test]
fn batches_of_every_codec_are_read() {
    for codec in CODECS {
        let one = TestBatch::of(0, &good(0..300)).compressed(codec).bytes();
        let two = TestBatch::of(300, &good(0..2)).compressed(codec).bytes();

        let found = found(&[one.clone(), two].concat());

        assert_eq!(summary(&found), ((0..302).collect(), vec![]), "{codec:?}");
        assert_eq!(found.next_offset, 302);
        assert_eq!(any_compressed(&one), codec != Codec::Plain);
    }
}

#[test]
fn header_without_a_value_counts_as_missing() {
    let mut records = good(0..10);
    records[3].headers = vec![("note", None), ("ce_id", None), ("x", Some("y"))];
    records[4].headers = vec![("ce_type", Some("what")), ("ce_type", None)];
    for codec in CODECS {
        let bytes = TestBatch::of(0, &records).compressed(codec).bytes();

        assert_eq!(summary(&found(&bytes)), ((0..10).collect(), vec![]), "{codec:?}");
    }
}

#[test]
fn record_with_more_than_a_thousand_headers_is_malformed() {
    let mut records = good(0..4);
    records[1].headers = vec![("", None); 1_000];
    records[2].headers = vec![("", None); 1_001];

    let found = found(&TestBatch::of(0, &records).compressed(Codec::Zstd).bytes());

    assert_eq!(summary(&found), (vec![0, 1, 3], vec![(2, "the record is malformed")]));
}

#[test]
fn last_header_of_a_name_counts() {
    let id = "6f2c1a52-9d3f-4f0e-8a55-0d2f6f3b9c11";
    let headers = vec![("ce_id", Some("42")), ("other", Some("x")), ("ce_id", Some(id))];
    let record = TestRecord { headers, key: Some(vec![7; 100_000]), ..TestRecord::of(0, GOOD) };

    let found = found(&TestBatch::of(7, &[record]).bytes());

    assert_eq!(found.records[0].content.as_ref().unwrap().message.id.to_string(), id);
}

#[test]
fn record_has_the_time_of_its_producer_or_of_the_broker() {
    let accepted_at = |attributes| {
        let batch = TestBatch { attributes, ..TestBatch::of(0, &good(3..4)) };
        let found = found(&batch.bytes());
        let validity = found.records[0].content.as_ref().unwrap().validity.unwrap();
        validity.accepted_at.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_millis()
    };

    assert_eq!(accepted_at(0), 1_015);
    assert_eq!(accepted_at(BROKER_TIME), 2_000);
}

#[test]
fn too_large_parts_are_skipped_and_the_rest_is_read() {
    const LARGE: usize = 20 * 1024 * 1024;
    let mut records = good(0..5);
    records[1].value = Some(vec![0; LARGE]);
    records[2].key = Some(vec![0; LARGE]);
    records[3].headers = vec![("note", Some(Box::leak("x".repeat(LARGE).into_boxed_str())))];
    for codec in CODECS {
        let bytes = TestBatch::of(0, &records).compressed(codec).bytes();

        let found = found(&bytes);

        let expected = (vec![0, 2, 3, 4], vec![(1, "the value is too large")]);
        assert_eq!(summary(&found), expected, "{codec:?}");
    }
}

/// The bytes of a batch whose one record claims to be of 2 GiB, in whatever holds it.
#[test]
fn a_length_that_lies_costs_nothing() {
    for codec in CODECS {
        let mut batch = TestBatch::of(0, &good(0..2)).compressed(codec);
        put(&mut batch.body, i64::from(i32::MAX));
        batch.body.extend([0, 0, 4, 1]);
        put(&mut batch.body, i64::from(i32::MAX) - 100);
        (batch.count, batch.last_delta) = (3, 2);
        let behind = TestBatch::of(3, &good(0..1)).bytes();

        let found = found(&[batch.bytes(), behind].concat());

        let expected = (vec![0, 1, 3], vec![(2, "the batch of records cannot be decoded")]);
        assert_eq!(summary(&found), expected, "{codec:?}");
    }
}

#[test]
fn a_record_that_is_malformed_is_unreadable_alone() {
    let mut batch = TestBatch::of(0, &good(0..1));
    // A value of -2 bytes; a value longer than its record; a header more than there are.
    for record in [[0, 0, 2, 1, 3, 0].as_slice(), &[0, 0, 4, 1, 40, 0], &[0, 0, 6, 1, 1, 4]] {
        put(&mut batch.body, i64::try_from(record.len()).unwrap());
        batch.body.extend(record);
    }
    batch.body.extend(&TestBatch::of(0, &good(4..5)).body);
    (batch.count, batch.last_delta) = (5, 4);

    let found = found(&batch.bytes());

    let malformed = |offset| (offset, "the record is malformed");
    assert_eq!(summary(&found), (vec![0, 4], [1, 2, 3].map(malformed).to_vec()));
}

#[test]
fn batch_that_cannot_be_decompressed_is_unreadable_to_its_end() {
    for attributes in [1, 2, 3, 4, 5, 7] {
        let batch = TestBatch { attributes, ..TestBatch::of(4, &good(0..3)) };
        let behind = TestBatch::of(7, &good(0..1)).bytes();

        let found = found_in(&[batch.bytes(), behind].concat(), 5, Vec::new());

        let bad = |offset| (offset, "the batch of records cannot be decoded");
        assert_eq!(summary(&found), (vec![7], [5, 6].map(bad).to_vec()), "{attributes}");
    }
}

#[test]
fn a_batch_whose_checksum_is_wrong_is_stepped_over_offset_by_offset() {
    let mut bytes = TestBatch::of(4, &good(0..3)).bytes();
    *bytes.last_mut().unwrap() ^= 1;
    let behind = TestBatch::of(7, &good(0..1)).bytes();
    bytes.extend(&behind);

    for from in [2, 4, 5, 6] {
        let found = found_in(&bytes, from, Vec::new());

        let place = from.max(4);
        assert_eq!(summary(&found), (vec![], vec![(place, "the batch of records is damaged")]));
        assert_eq!(found.next_offset, place + 1);
    }
    assert_eq!(summary(&found_in(&behind, 7, Vec::new())), (vec![7], vec![]));
}

#[test]
fn messages_of_before_kafka_0_11_are_unreadable_one_by_one() {
    let mut bytes = Vec::new();
    for (offset, magic) in [(3_i64, 0), (4, 1)] {
        bytes.extend(offset.to_be_bytes());
        bytes.extend(30_i32.to_be_bytes());
        bytes.extend([0, 0, 0, 0, magic, 0]);
        bytes.extend([0; 24]);
    }
    bytes.extend(TestBatch::of(5, &good(0..1)).bytes());

    let found = found(&bytes);

    let old = |offset| (offset, "the record has a format of before Kafka 0.11");
    assert_eq!(summary(&found), (vec![5], [3, 4].map(old).to_vec()));
}

#[test]
fn reading_begins_within_a_batch_and_ends_behind_it() {
    // Compaction took 2 to 4 and what came last.
    let mut batch = TestBatch::of(10, &[good(0..2), good(5..8)].concat());
    batch.last_delta = 11;
    for codec in CODECS {
        let bytes = batch.clone().compressed(codec).bytes();

        let found = found_in(&bytes, 11, Vec::new());

        assert_eq!(summary(&found), (vec![11, 15, 16, 17], vec![]), "{codec:?}");
        assert_eq!(found.next_offset, 22);
    }
}

#[test]
fn many_records_come_in_portions() {
    let count = i32::try_from(MOST_RECORDS).unwrap() + 100;
    let bytes = TestBatch::of(0, &good(0..count)).compressed(Codec::Gzip).bytes();
    let most = i64::try_from(MOST_RECORDS).unwrap();

    let first = found(&bytes);
    let rest = found_in(&bytes, first.next_offset, Vec::new());

    assert_eq!(summary(&first).0, (0..most).collect::<Vec<_>>());
    assert_eq!(summary(&rest).0, (most..most + 100).collect::<Vec<_>>());
    assert_eq!(rest.next_offset, most + 100);
}

#[test]
fn a_batch_that_is_cut_off_is_left_for_the_next_fetch() {
    let whole = TestBatch::of(0, &good(0..2)).bytes();
    let next = TestBatch::of(2, &good(0..2)).bytes();
    for length in 0..next.len() {
        let found = found(&[&whole, &next[..length]].concat());

        assert_eq!((summary(&found).0, found.next_offset), (vec![0, 1], 2), "{length}");
    }
}

#[test]
fn records_of_aborted_transactions_are_skipped() {
    let of = |producer, base_offset| {
        let attributes = TRANSACTIONAL;
        TestBatch { attributes, producer, ..TestBatch::of(base_offset, &good(0..2)) }.bytes()
    };
    // Producer 7 rolls back, commits, and rolls back; 8 commits meanwhile, and a third one has no
    // transaction.
    let log = [
        of(7, 0),
        of(8, 2),
        TestBatch::of(4, &good(0..2)).bytes(),
        TestBatch::marker(6, 7, false).bytes(),
        of(7, 7),
        TestBatch::marker(9, 8, true).bytes(),
        TestBatch::marker(10, 7, true).bytes(),
        of(7, 11),
        of(8, 13),
        TestBatch::marker(15, 7, false).bytes(),
        TestBatch::marker(16, 8, true).bytes(),
    ];
    let aborted = |producer, first_offset| Aborted { producer, first_offset };

    let found = found_in(&log.concat(), 0, vec![aborted(7, 11), aborted(7, 0)]);
    assert_eq!(summary(&found), (vec![2, 3, 4, 5, 7, 8, 13, 14], vec![]));
    assert_eq!(found.next_offset, 17);

    let later = found_in(&log[7..].concat(), 12, vec![aborted(7, 11)]);
    assert_eq!(summary(&later), (vec![13, 14], vec![]));
}

#[test]
fn a_failing_source_is_no_fault_of_the_records() {
    let bytes = TestBatch::of(0, &good(0..9)).compressed(Codec::Gzip).bytes();
    for length in [5, 30, 80] {
        let span = Span { from: 0, aborted: Vec::new() };
        let cut = &bytes[..length];
        let whole = bytes.len() as u64;

        let read = read(cut, whole, span, &AtomicBool::new(false), |_| Err(MALFORMED));

        assert_eq!(read.unwrap_err().kind(), ErrorKind::UnexpectedEof, "{length}");
    }
}

#[test]
fn abandoned_reading_ends() {
    let bytes = TestBatch::of(0, &[TestRecord::of(0, vec![0; 1_000_000])]).bytes();
    let span = Span { from: 0, aborted: Vec::new() };

    let read = read(&*bytes, bytes.len() as u64, span, &AtomicBool::new(true), |_| Err(MALFORMED));

    assert!(read.is_err());
}

#[test]
fn snappy_blocks_may_be_empty_and_hold_any_kind_of_copy() {
    let plain = |compressed: &[u8]| {
        let mut plain = Vec::new();
        SnappyReader::new(compressed)?.read_to_end(&mut plain).map(|_| plain)
    };
    assert_eq!(plain(&[]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert_eq!(plain(&[0]).unwrap(), b"");
    // "abcd"; copies of 4 by one, two and four bytes of distance; one that repeats.
    let copies = b"\x13\x0cabcd\x01\x04\x0e\x04\x00\x0f\x04\x00\x00\x00\x0a\x01\x00";
    assert_eq!(plain(copies).unwrap(), b"abcdabcdabcdabcdddd");
    for broken in [
        b"\x04\x0cabc".as_slice(),
        b"\x02\x0cabcd",
        b"\x08\x0cabcd\x01\x00",
        b"\x08\x0cabcd\x01\x05",
        b"\xff\xff\xff\xff\xff\x01",
        b"\x05\xfc\xff\xff\xff\xffabcd",
    ] {
        assert!(plain(broken).is_err(), "{broken:?}");
    }
}

proptest! {
    #[test]
    fn snappy_is_read_as_it_was_written(
        parts in collection::vec((collection::vec(any::<u8>(), 0..50), 1_usize..3_000), 0..12),
    ) {
        let bytes: Vec<u8> = parts.iter().flat_map(|(part, times)| part.repeat(*times)).collect();
        let block = snap::raw::Encoder::new().compress_vec(&bytes).unwrap();

        let mut plain = Vec::new();
        SnappyReader::new(&*block).unwrap().read_to_end(&mut plain).unwrap();

        prop_assert!(plain == bytes);
    }

    /// Whatever a batch holds, reading goes on behind it, and what comes before is not lost.
    #[test]
    fn a_damaged_body_stops_nothing(
        codec in prop::sample::select(CODECS.to_vec()),
        changes in collection::vec((any::<Index>(), any::<u8>()), 1..5),
        count in 0..20_i32,
    ) {
        let mut batch = TestBatch::of(0, &good(0..10)).compressed(codec);
        batch.count = count;
        let mut bytes = batch.bytes();
        for (at, byte) in changes {
            let at = 61 + at.index(bytes.len() - 61);
            bytes[at] = byte;
        }
        let checksum = crc32c::crc32c(&bytes[21..]).to_be_bytes();
        bytes[17..21].copy_from_slice(&checksum);
        bytes.extend(TestBatch::of(10, &good(0..1)).bytes());

        let found = found(&bytes);

        prop_assert_eq!(found.next_offset, 11);
        prop_assert!(found.records.is_sorted_by(|one, next| one.offset < next.offset));
        prop_assert_eq!(found.records.last().map(|last| last.offset), Some(10));
    }

    #[test]
    fn any_bytes_are_read_or_stepped_over(
        bytes in collection::vec(any::<u8>(), 0..300),
        magic in 0..4_u8,
        from in 0..100_i64,
    ) {
        let mut bytes = bytes;
        if bytes.len() > 16 {
            bytes[..11].fill(0);
            bytes[16] = magic;
        }

        let found = found_in(&bytes, from, Vec::new());

        prop_assert!(found.next_offset >= from);
        prop_assert!(found.records.iter().all(|record| record.offset >= from));
    }
}
