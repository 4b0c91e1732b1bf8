//! The server answers any bytes in HTTP or closes the connection, and serves the next client.

use proptest::{collection, prelude::*, sample::Index};

use super::*;

const PHONE: &str = "89999999999";

/// Returns a request with some bytes replaced, some removed, and some added after it.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let changes = collection::vec((any::<Index>(), any::<u8>()), 0..4);
    let cut = collection::vec(any::<(Index, Index)>(), 0..2);
    let rest = collection::vec(any::<u8>(), 0..20);
    (changes, cut, rest).prop_map(|(changes, cut, rest)| {
        let mut bytes = [REQUEST, REQUEST].concat().into_bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for (from, length) in cut {
            let from = from.index(bytes.len());
            let length = length.index(bytes.len() - from);
            bytes.drain(from..from + length);
        }
        bytes.extend(rest);
        bytes
    })
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let head = "(POST|GET|[A-Z]{1,9}) (/api|[ -~]{0,20}) HTTP/[0-9].[0-9]\r\n";
    let lines = "([A-Za-z-]{1,16}: ?[ -~]{0,20}\r\n){0,6}(\r\n)?[ -~]{0,40}";
    let length = (any::<u64>(), any::<bool>()).prop_map(|(length, chunked)| {
        let more = if chunked { "Transfer-Encoding: chunked\r\n" } else { "" };
        REQUEST.replace("Content-Length: 23\r\n", &format!("Content-Length: {length}\r\n{more}"))
    });
    let chunks = "[0-9a-f]{0,20}(\r\n|;a=b\r\n)[ -~]{0,30}(\r\n)?(0\r\n\r\n)?".prop_map(|chunks| {
        let (head, _) = REQUEST.split_once("\r\n\r\n").unwrap();
        let head = head.replace("Content-Length: 23", "Transfer-Encoding: chunked");
        format!("{head}\r\n\r\n{chunks}")
    });
    let long = (0_usize..80_000, any::<bool>()).prop_map(|(length, is_path)| {
        let long = "a".repeat(length);
        if is_path {
            REQUEST.replace("/api", &format!("/{long}"))
        } else {
            REQUEST.replace("Host: h", &format!("Host: h\r\nLong: {long}"))
        }
    });
    prop_oneof![
        4 => mutated(),
        1 => collection::vec(any::<u8>(), 0..400),
        2 => (head, lines).prop_map(|(head, lines)| (head + &lines).into_bytes()),
        1 => length.prop_map(String::into_bytes),
        1 => chunks.prop_map(String::into_bytes),
        1 => long.prop_map(String::into_bytes),
    ]
}

proptest! {
    #[test]
    fn any_bytes_get_an_http_answer_or_a_close(bytes in any_bytes()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (text, after) = runtime.block_on(async {
            let server = open_server().await;
            let mut stream = server.connect().await;
            // The server may close the connection before it has read all bytes.
            let _ = within(stream.write_all(&bytes)).await;
            let _ = stream.shutdown().await;
            let text = rest(&mut stream).await;

            let mut next = server.connect().await;
            send(&mut next, REQUEST).await;
            let after = answer(&mut next).await;
            drop(next);
            server.stopped().await;
            (text, after)
        });

        prop_assert!(after.starts_with("HTTP/1.1 200 OK\r\n"), "{after}");
        prop_assert!(!text.contains(PHONE), "{text}");
        let statuses = ["200", "400", "404", "405", "414", "431"];
        let mut lines = text.lines().filter(|line| line.starts_with("HTTP/"));
        let known = |line: &str| statuses.contains(&line.split(' ').nth(1).unwrap_or_default());
        prop_assert!(lines.all(known), "{text}");
        prop_assert!(text.is_empty() || text.starts_with("HTTP/1."), "{text}");
    }
}
