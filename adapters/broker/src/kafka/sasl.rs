//! Opens connections to brokers, and logs in with SASL.

use std::ops::RangeInclusive;

use bytes::Bytes;
use kafka_protocol::{
    error::ResponseError,
    messages::{SaslAuthenticateRequest, SaslHandshakeRequest},
    protocol::StrBytes,
};
use rsasl::prelude::{Mechname, SASLClient, SASLConfig};

use super::{
    connection::Connection,
    error::{ConnectionError, check},
    security::{KafkaSasl, KafkaSecurity},
};

/// The versions of the two requests. Every broker since 1.0 knows them.
const HANDSHAKE: i16 = 1;
const AUTHENTICATE: i16 = 0;

/// The iteration counts of SCRAM that we accept. RFC 7677 and Kafka ask for at least 4096; a count
/// without an upper bound would let a broker keep a thread busy for hours.
const ITERATIONS: RangeInclusive<u64> = 4_096..=1_000_000;

/// Opens a connection, with TLS and a login if `security` has them.
pub(super) async fn connect(
    address: &str,
    client_id: &str,
    security: &KafkaSecurity,
) -> Result<Connection, ConnectionError> {
    let mut connection = Connection::open(address, client_id, security.tls.as_ref()).await?;
    if let Some(sasl) = &security.sasl {
        log_in(&mut connection, sasl).await?;
    }
    Ok(connection)
}

/// Logs in. `Display` of its errors contains no word of the broker and no secret.
async fn log_in(connection: &mut Connection, sasl: &KafkaSasl) -> Result<(), ConnectionError> {
    let mechanism = sasl.mechanism.name();
    let request =
        SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(mechanism));
    let answer = connection.ask(&request, HANDSHAKE).await.map_err(closed)?;
    match ResponseError::try_from_code(answer.error_code) {
        None => {}
        Some(ResponseError::UnsupportedSaslMechanism) => {
            let offered: Vec<_> = answer.mechanisms.iter().map(|it| &**it).collect();
            return Err(ConnectionError::Sasl(format!(
                "the broker does not offer {mechanism} (KAFKA_SASL_MECHANISM); it offers {}",
                offered.join(", ")
            )));
        }
        Some(ResponseError::IllegalSaslState) => {
            return Err(ConnectionError::Sasl(
                "this listener of the broker does not use SASL (KAFKA_SECURITY_PROTOCOL)".into(),
            ));
        }
        Some(error) => return Err(ConnectionError::Refused(error)),
    }

    let config = SASLConfig::with_credentials(None, sasl.username.clone(), sasl.password.clone());
    let client = SASLClient::new(config.map_err(|_| unusable())?);
    let name = Mechname::parse(mechanism.as_bytes()).map_err(|_| unusable())?;
    let mut session = client.start_suggested(&[name]).map_err(|_| unusable())?;
    let mut received: Option<Bytes> = None;
    loop {
        if let Some(count) = received.as_deref().and_then(iterations)
            && !ITERATIONS.contains(&count)
        {
            return Err(ConnectionError::Sasl(format!(
                "the broker asks for {count} iterations of SCRAM; from {} to {} are accepted",
                ITERATIONS.start(),
                ITERATIONS.end()
            )));
        }
        let mut message = Vec::new();
        let state = session.step(received.as_deref(), &mut message).map_err(|_| {
            if received.is_some() {
                ConnectionError::Sasl(
                    "the broker did not prove that it knows the password, or its answer is \
                     invalid"
                        .into(),
                )
            } else {
                unusable()
            }
        })?;
        if state.has_sent_message() {
            let request = SaslAuthenticateRequest::default().with_auth_bytes(message.into());
            let answer = connection.ask(&request, AUTHENTICATE).await.map_err(closed)?;
            match check(answer.error_code) {
                Err(error) if error.is(ResponseError::SaslAuthenticationFailed) => {
                    return Err(ConnectionError::Sasl(
                        "the broker refused the user name or the password (KAFKA_SASL_USERNAME, \
                         KAFKA_SASL_PASSWORD)"
                            .into(),
                    ));
                }
                checked => checked?,
            }
            received = Some(answer.auth_bytes);
        }
        if state.is_finished() {
            return Ok(());
        }
    }
}

/// Returns the iteration count of a server's first message of SCRAM (RFC 5802, section 7), or `None`
/// for any other message.
fn iterations(message: &[u8]) -> Option<u64> {
    let text = str::from_utf8(message).ok()?;
    let count = text.split(',').find_map(|attribute| attribute.strip_prefix("i="))?;
    Some(count.parse().unwrap_or(u64::MAX))
}

fn unusable() -> ConnectionError {
    ConnectionError::Sasl(
        "the user name or the password cannot be used (KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD)"
            .into(),
    )
}

/// A broker without SASL closes the connection at the first request of it.
fn closed(error: ConnectionError) -> ConnectionError {
    match error {
        ConnectionError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            ConnectionError::Sasl(
                "the broker closed the connection during the login; this listener may not use SASL \
                 (KAFKA_SECURITY_PROTOCOL)"
                    .into(),
            )
        }
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scram_iterations_are_bounded_on_both_sides() {
        for (message, is_accepted) in [
            ("r=nonce,s=c2FsdA==,i=4096", true),
            ("r=nonce,s=c2FsdA==,i=1000000", true),
            ("r=nonce,s=c2FsdA==,i=4095", false),
            ("r=nonce,s=c2FsdA==,i=4000000000", false),
            ("r=nonce,s=c2FsdA==,i=99999999999999999999999", false),
        ] {
            let count = iterations(message.as_bytes()).unwrap();
            assert_eq!(ITERATIONS.contains(&count), is_accepted, "{message}");
        }
        assert_eq!(iterations(b"v=cHJvb2Y="), None);
    }
}
