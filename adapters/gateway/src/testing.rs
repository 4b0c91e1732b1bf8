//! What the tests of all that posts share.

use std::time::Duration;

use tokio::{io::AsyncReadExt, net::TcpStream};

/// For answers that come, however slow the machine.
pub(crate) const AMPLE: Duration = Duration::from_secs(20);

/// For answers that never come.
pub(crate) const SHORT: Duration = Duration::from_millis(200);

/// Reads one request, head and body, as it is on the wire.
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
