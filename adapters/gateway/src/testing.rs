//! Helpers of the tests of the webhook and the event sink.

use std::time::Duration;

use tokio::{io::AsyncReadExt, net::TcpStream};

/// A limit for answers that come, on a machine of any speed.
pub(crate) const AMPLE: Duration = Duration::from_secs(20);

/// A limit for answers that never come.
pub(crate) const SHORT: Duration = Duration::from_millis(200);

/// Reads the bytes of one request, head and body.
pub(crate) async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    loop {
        let read = stream.read_buf(&mut request).await.unwrap();
        assert_ne!(read, 0, "the request breaks off: {}", request.escape_ascii());
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if body.len() >= length.parse().unwrap() {
            return text.into_owned();
        }
    }
}
