//! Whatever a gateway answers, nothing that is no acceptance is taken for one.

use proptest::{
    collection,
    prelude::*,
    sample::{Index, select},
};
use tokio::time::Instant;

use super::*;

fn any_status() -> impl Strategy<Value = u16> {
    prop_oneof![
        3 => 100_u16..1000,
        1 => select(vec![200, 202, 204, 401, 408, 429, 500, 503]),
    ]
}

fn any_response() -> impl Strategy<Value = Vec<u8>> {
    let header = prop_oneof![
        "content-length: [0-9]{1,20}",
        "content-length: [0-9]{1,2}",
        Just("transfer-encoding: chunked".to_owned()),
        "retry-after: ([0-9]{1,30}|[A-Za-z0-9 ,:-]{0,30})",
        "location: /[a-z]{0,5}",
        "connection: (close|upgrade|keep-alive)",
        "[a-z-]{0,12}:? ?[ -~]{0,20}",
    ];
    let body = prop_oneof![
        Just(format!(r#"{{"message_id":"{PHONE}"}}"#)),
        Just(format!("{PHONE} {CODE}")),
        "[0-9a-f]{0,17}\r\n[ -~]{0,20}\r\n0\r\n\r\n",
        "[ -~\r\n]{0,60}",
    ];
    let version = prop_oneof![9 => Just("1.1".to_owned()), 1 => "[0-9].[0-9]"];
    (version, any_status(), collection::vec(header, 0..4), body).prop_map(
        |(version, status, headers, body)| {
            let headers: String = headers.into_iter().map(|header| header + "\r\n").collect();
            format!("HTTP/{version} {status} {PHONE}\r\n{headers}\r\n{body}").into_bytes()
        },
    )
}

fn any_answer() -> impl Strategy<Value = Vec<u8>> {
    let mutated = (any_response(), collection::vec((any::<Index>(), any::<u8>()), 1..4)).prop_map(
        |(mut answer, changes)| {
            for (at, byte) in changes {
                let at = at.index(answer.len());
                answer[at] = byte;
            }
            answer
        },
    );
    let cut = (any_response(), any::<Index>()).prop_map(|(mut answer, at)| {
        answer.truncate(at.index(answer.len()));
        answer
    });
    let two = (any_response(), any_response()).prop_map(|(first, second)| [first, second].concat());
    prop_oneof![
        3 => any_response(),
        3 => mutated,
        2 => cut,
        1 => two,
        1 => collection::vec(any::<u8>(), 0..200),
    ]
}

/// Every status that the answer could be read to have.
fn statuses(answer: &[u8]) -> Vec<u16> {
    let is_version = |bytes: &[u8]| matches!(bytes, b"HTTP/1.0 " | b"HTTP/1.1 ");
    let status = |bytes: &[u8]| str::from_utf8(bytes).ok()?.parse().ok();
    let windows = answer.windows(12).filter(|window| is_version(&window[..9]));
    windows.filter_map(|window| status(&window[9..])).collect()
}

fn is_misconfigured(status: u16) -> bool {
    matches!(status, 300..=399 | 401..=406 | 410 | 415)
}

/// Whether `outcome` is the outcome of one of `statuses`.
fn is_justified(outcome: &Result<Accepted, SendError>, statuses: &[u16]) -> bool {
    if matches!(outcome, Err(SendError::Ambiguous(_))) {
        return true;
    }
    let says = |status: &u16, detail: &str| detail == format!("status {status}");
    statuses.iter().any(|status| match outcome {
        Ok(_) => (200..300).contains(status),
        Err(SendError::Rejected(detail)) => {
            says(status, detail)
                && (100..500).contains(status)
                && !(200..400).contains(status)
                && !is_misconfigured(*status)
                && ![408, 429].contains(status)
        }
        Err(SendError::Misconfigured(detail)) => says(status, detail) && is_misconfigured(*status),
        Err(SendError::Throttled { detail, .. }) => says(status, detail) && *status == 429,
        Err(SendError::Unavailable { detail, .. }) => says(status, detail) && *status == 503,
        Err(SendError::Unroutable(_) | SendError::Ambiguous(_)) => false,
    })
}

proptest! {
    #[test]
    fn any_answer_is_judged_by_its_status(answer in any_answer(), hangs in prop::bool::weighted(0.05)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let begun = Instant::now();
        let outcome = runtime.block_on(async {
            let (listener, url) = listen().await;
            let bytes = answer.clone();
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                read_request(&mut stream).await;
                let _ = stream.write_all(&bytes).await;
                if !hangs {
                    let _ = stream.shutdown().await;
                }
                let _ = stream.read(&mut [0]).await;
            });
            let gateway = gateway(&url, if hangs { SHORT } else { AMPLE });
            let outcome = gateway.send(&sms()).await;
            drop(gateway);
            server.await.unwrap();
            outcome
        });

        let shown = answer.escape_ascii();
        prop_assert!(begun.elapsed() < AMPLE / 2, "{shown}");
        prop_assert!(is_justified(&outcome, &statuses(&answer)), "{shown}: {outcome:?}");
        if let Err(error) = &outcome {
            let text = format!("{error} {error:?}");
            prop_assert!(!text.contains(PHONE) && !text.contains(CODE), "{text}");
        }
    }

    #[test]
    fn a_whole_head_is_judged_whatever_follows(
        status in any_status(),
        body in collection::vec(any::<u8>(), 0..100),
    ) {
        prop_assume!(status > 199);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let head = format!("HTTP/1.1 {status} {PHONE}\r\n\r\n").into_bytes();

        let outcome = runtime.block_on(answer_to([head, body].concat()));

        prop_assert_eq!(outcome.is_ok(), (200..300).contains(&status), "{:?}", outcome);
    }
}
