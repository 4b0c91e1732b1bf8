//! Splits the records of a partition into requests.

use std::ops::Range;

use rskafka::record::Record;

/// Requests between these two sizes take 40 ms on a loopback interface, all others less than 1 ms
/// (measured: 85 records 0.23 ms, 90 to 500 records 40.8 ms, 700 and more 0.57 ms).
///
/// rskafka writes a frame's length and its body through a buffer of 8 KiB and sets no
/// `TCP_NODELAY`. A larger body does not fit behind the four bytes of the length, so these go out
/// alone; Nagle's algorithm then holds the body back until they are acknowledged, which the
/// receiver delays, unless the body fills a segment (64 KiB on loopback).
const SMALL: usize = 7_680;
const LARGE: usize = 64 * 1024;

/// Well below 1 MiB, the default limit of a broker.
const LARGEST: usize = 512 * 1024;

/// Returns the requests for records of these sizes, each as a range of records.
pub(super) fn split(sizes: &[usize], large_too: bool) -> Vec<Range<usize>> {
    let total: usize = sizes.iter().sum();
    if large_too && total >= LARGE {
        // In equal parts: the rest after full requests could have one of the slow sizes.
        let target = total.div_ceil(total.div_ceil(LARGEST));
        cut(sizes, |size, next| size > 0 && size + next / 2 > target)
    } else {
        cut(sizes, |size, next| size > 0 && size + next > SMALL)
    }
}

/// Returns the size of a record in a request, or a little more.
pub(super) fn size(record: &Record) -> usize {
    // Length, attributes, the two deltas, and the lengths of key, value and headers.
    const FIXED: usize = 24;
    const PER_HEADER: usize = 4;
    record.approximate_size() + FIXED + PER_HEADER * record.headers.len()
}

/// Starts a new request before each record for which `is_full(size so far, size of the record)`.
fn cut(sizes: &[usize], is_full: impl Fn(usize, usize) -> bool) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut so_far) = (0, 0);
    for (place, next) in sizes.iter().enumerate() {
        if is_full(so_far, *next) {
            ranges.push(start..place);
            (start, so_far) = (place, 0);
        }
        so_far += next;
    }
    if start < sizes.len() {
        ranges.push(start..sizes.len());
    }
    ranges
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;

    fn request_sizes(sizes: &[usize], large_too: bool) -> Vec<usize> {
        split(sizes, large_too).into_iter().map(|range| sizes[range].iter().sum()).collect()
    }

    #[test]
    fn few_records_are_one_request() {
        assert_eq!(request_sizes(&[400; 19], true), [7_600]);
    }

    #[test]
    fn records_of_a_slow_size_are_sent_in_small_requests() {
        assert_eq!(request_sizes(&[400; 100], true), [7_600, 7_600, 7_600, 7_600, 7_600, 2_000]);
    }

    #[test]
    fn many_records_are_one_request() {
        assert_eq!(request_sizes(&[400; 250], true), [100_000]);
    }

    #[test]
    fn records_slightly_too_large_for_one_request_are_halved() {
        assert_eq!(request_sizes(&[400; 1_320], true), [264_000, 264_000]);
    }

    #[test]
    fn broker_that_refuses_large_requests_gets_small_ones() {
        assert!(request_sizes(&[400; 1_320], false).iter().all(|size| *size <= SMALL));
    }

    proptest! {
        #[test]
        fn requests_contain_all_records_in_order_and_have_no_slow_size(
            sizes in collection::vec(300_usize..700, 0..4_000),
        ) {
            let ranges = split(&sizes, true);

            let all: Vec<usize> = ranges.iter().cloned().flatten().collect();
            prop_assert_eq!(all, (0..sizes.len()).collect::<Vec<_>>());
            for range in ranges {
                let size: usize = sizes[range].iter().sum();
                prop_assert!(size <= SMALL || (LARGE..=LARGEST + 700).contains(&size), "{size}");
            }
        }
    }
}
