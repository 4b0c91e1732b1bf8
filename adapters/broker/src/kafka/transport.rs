//! The bytes of a connection, with or without TLS, and why TLS fails.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use rustls::{CertificateError, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{error::ConnectionError, security::KafkaTls};

/// A connection to a broker.
#[derive(Debug)]
pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    pub(super) async fn open(
        address: &str,
        tls: Option<&KafkaTls>,
    ) -> Result<Self, ConnectionError> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let Some(KafkaTls { config, .. }) = tls else { return Ok(Self::Plain(stream)) };
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(|_| {
            ConnectionError::Tls("the host of the broker is not a name that TLS can verify".into())
        })?;
        let connected = TlsConnector::from(config.clone()).connect(name, stream).await;
        match connected {
            Ok(stream) => Ok(Self::Tls(Box::new(stream))),
            Err(error) => Err(tls_error(&error).unwrap_or_else(|| handshake_error(error))),
        }
    }
}

/// Says what a failure of TLS means, if `error` is one.
///
/// With TLS 1.3 a broker refuses a client certificate after the handshake, so that the first read
/// fails.
pub(super) fn tls_error(error: &io::Error) -> Option<ConnectionError> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(ConnectionError::Tls(match error {
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "the certificate of the broker is not signed by a trusted authority; KAFKA_SSL_CA \
              must contain the authority that signs it"
            .into(),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "the certificate of the broker is not valid for this host name; connect by a name \
              that the certificate has"
            .into(),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "the certificate of the broker has expired".into(),
        rustls::Error::InvalidCertificate(other) => {
            format!("the certificate of the broker is not accepted: {other}").into()
        }
        rustls::Error::AlertReceived(alert) => format!(
            "the broker refused the TLS connection ({alert:?}); it may want another client \
             certificate (KAFKA_SSL_CERT, KAFKA_SSL_KEY)"
        )
        .into(),
        other => format!("TLS failed: {other}").into(),
    }))
}

fn handshake_error(error: io::Error) -> ConnectionError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return ConnectionError::Tls(
            "the broker closed the connection during the TLS handshake; this listener may not use \
             TLS (KAFKA_SECURITY_PROTOCOL)"
                .into(),
        );
    }
    error.into()
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
