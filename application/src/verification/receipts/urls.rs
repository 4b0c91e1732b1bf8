use std::sync::Arc;

use domain::{GatewayName, MessageId};

use crate::{Vault, VaultClosed};

/// The URLs at which providers report deliveries, each with the token of its gateway.
///
/// A token is derived from a pepper, so all processes make the same ones, and a restart changes none.
/// New URLs have the token of the first pepper. The tokens of the others are accepted too.
#[derive(Debug, Clone, Default)]
pub struct ReceiptUrls {
    public_url: Option<Arc<str>>,
    vault: Vault,
}

impl ReceiptUrls {
    /// `public_url` is where providers reach this service. Without it, no provider is given a URL, but
    /// tokens are still accepted.
    pub fn new(public_url: Option<&str>, vault: Vault) -> Self {
        let public_url = public_url.map(|url| url.trim_end_matches('/').into());
        Self { public_url, vault }
    }

    /// Returns where the provider of `gateway` reports the delivery of `message`.
    ///
    /// `None` without a public URL, or while the vault has no pepper.
    pub fn of_message(&self, gateway: &GatewayName, message: MessageId) -> Option<String> {
        let token = self.token(gateway)?;
        Some(format!("{}?id={message}&token={token}", self.path(gateway)?))
    }

    /// Returns where the provider of `gateway` reports deliveries, for settings that name one URL for
    /// all messages. `None` as in [`of_message`](Self::of_message).
    pub fn of_gateway(&self, gateway: &GatewayName) -> Option<String> {
        let token = self.token(gateway)?;
        Some(format!("{}?token={token}", self.path(gateway)?))
    }

    /// Returns the URL that a provider called, with `query` as it came. Some providers sign it.
    ///
    /// Without a public URL it is only the path.
    pub fn called(&self, gateway: &GatewayName, query: &str) -> String {
        let path = self.path(gateway).unwrap_or_else(|| path("", gateway));
        if query.is_empty() { path } else { format!("{path}?{query}") }
    }

    /// Whether `token` is a token of `gateway`.
    pub fn accept(&self, gateway: &GatewayName, token: &str) -> Result<bool, VaultClosed> {
        Ok(self.vault.peppers()?.accept_receipt_token(gateway, token))
    }

    fn path(&self, gateway: &GatewayName) -> Option<String> {
        Some(path(self.public_url.as_deref()?, gateway))
    }

    fn token(&self, gateway: &GatewayName) -> Option<String> {
        Some(self.vault.peppers().ok()?.first().receipt_token(gateway))
    }
}

fn path(public_url: &str, gateway: &GatewayName) -> String {
    format!("{public_url}/v1/receipts/{gateway}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Keys, testing};

    fn main() -> GatewayName {
        "main".parse().unwrap()
    }

    fn message() -> MessageId {
        "6f2c1a52-9d3f-4f0e-8a55-0d2f6f3b9c01".parse().unwrap()
    }

    fn vault() -> Vault {
        Vault::of(Keys { peppers: Some(testing::peppers()), payload: None })
    }

    #[test]
    fn urls_name_the_gateway_and_have_its_token() {
        let urls = ReceiptUrls::new(Some("https://sms.example/messager/"), vault());
        let token = testing::peppers().first().receipt_token(&main());

        let base = "https://sms.example/messager/v1/receipts/main";
        assert_eq!(urls.of_gateway(&main()).unwrap(), format!("{base}?token={token}"));
        assert_eq!(
            urls.of_message(&main(), message()).unwrap(),
            format!("{base}?id=6f2c1a52-9d3f-4f0e-8a55-0d2f6f3b9c01&token={token}")
        );
        assert_eq!(urls.called(&main(), "a=b%20c"), format!("{base}?a=b%20c"));
        assert_eq!(urls.called(&main(), ""), base);
        assert_eq!(urls.accept(&main(), &token), Ok(true));
        assert_eq!(urls.accept(&"other".parse().unwrap(), &token), Ok(false));
    }

    #[test]
    fn no_url_is_made_without_a_public_one_or_a_pepper() {
        let closed = ReceiptUrls::new(Some("https://sms.example"), Vault::default());
        let private = ReceiptUrls::new(None, vault());

        for urls in [&closed, &private] {
            assert_eq!(urls.of_gateway(&main()), None);
            assert_eq!(urls.of_message(&main(), message()), None);
        }
        assert_eq!(closed.accept(&main(), "token"), Err(VaultClosed));
        assert_eq!(private.accept(&main(), "token"), Ok(false));
        assert_eq!(private.called(&main(), "a=b"), "/v1/receipts/main?a=b");
    }
}
