use std::{
    fmt,
    io::{self, Write},
    sync::{Mutex, PoisonError},
};

use application::ports::{Accepted, SendError, Sms, SmsGateway};
use autometrics::autometrics;

/// Prints every SMS with its number and its code, for developers.
///
/// Not for production: everyone who can read the output can read the codes.
pub struct ConsoleGateway {
    output: Mutex<Box<dyn Write + Send>>,
}

impl ConsoleGateway {
    /// Prints to the standard output of the process.
    pub fn stdout() -> Self {
        Self::new(io::stdout())
    }

    /// Prints to `output`, one line for each SMS.
    pub fn new(output: impl Write + Send + 'static) -> Self {
        Self { output: Mutex::new(Box::new(output)) }
    }
}

impl SmsGateway for ConsoleGateway {
    #[autometrics(struct_name = "ConsoleGateway")]
    async fn send(&self, sms: &Sms) -> Result<Accepted, SendError> {
        let line = format!("SMS to {}: {}\n", sms.message.phone.as_str(), sms.text);
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        match output.write_all(line.as_bytes()).and_then(|()| output.flush()) {
            Ok(()) => Ok(Accepted::default()),
            Err(error) => Err(SendError::Unavailable {
                detail: format!("writing to the console failed: {}", error.kind()),
                retry_after: None,
            }),
        }
    }

    /// True, because a line that is printed twice does no harm.
    fn deduplicates(&self) -> bool {
        true
    }
}

impl fmt::Debug for ConsoleGateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleGateway").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::sms;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn prints_one_line_for_each_sms() {
        let paper = Paper::default();
        let gateway = ConsoleGateway::new(paper.clone());

        let accepted = gateway.send(&sms()).await;
        gateway.send(&sms()).await.unwrap();

        assert_eq!(accepted, Ok(Accepted::default()));
        assert!(gateway.deduplicates());
        let printed = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        assert_eq!(printed, "SMS to 79991234567: Your code: 482915\n".repeat(2));
    }

    #[tokio::test]
    async fn failed_write_is_unavailable() {
        let refused = ConsoleGateway::new(Closed).send(&sms()).await.unwrap_err();

        assert_eq!(refused.to_string(), "unavailable: writing to the console failed: broken pipe");
    }
}
