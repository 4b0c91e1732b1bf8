//! AWS Signature Version 4 of a request to the root path without a query, which is all that the
//! JSON protocol of AWS needs.

use std::time::SystemTime;

use chrono::{DateTime, Utc};
use ring::hmac::HMAC_SHA256;

use super::{hex, hmac, sha256_hex};

/// Who signs, and for which service.
#[derive(Clone, Copy)]
pub(crate) struct Signer<'a> {
    pub(crate) access_key_id: &'a str,
    pub(crate) secret_access_key: &'a str,
    pub(crate) region: &'a str,
    pub(crate) service: &'a str,
}

/// Returns the time as `X-Amz-Date` has it.
pub(crate) fn amz_date(now: SystemTime) -> String {
    DateTime::<Utc>::from(now).format("%Y%m%dT%H%M%SZ").to_string()
}

impl Signer<'_> {
    /// Returns the header `Authorization` of a request with this method, `headers` and `body`.
    ///
    /// `headers` are all that are signed: lower-case, sorted by name, without spaces around their
    /// values; among them `host` and `x-amz-date`, which is `date`.
    pub(crate) fn authorization(
        &self,
        method: &str,
        headers: &[(&str, &str)],
        date: &str,
        body: &[u8],
    ) -> String {
        let names: Vec<&str> = headers.iter().map(|&(name, _)| name).collect();
        let names = names.join(";");
        let lines: String =
            headers.iter().flat_map(|&(name, value)| [name, ":", value, "\n"]).collect();
        let request = format!("{method}\n/\n\n{lines}\n{names}\n{}", sha256_hex(body));

        let day = date.get(..8).unwrap_or_default();
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256_hex(request.as_bytes()));
        let signature = hex(hmac(HMAC_SHA256, &self.key(day), &[text.as_bytes()]).as_ref());
        format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            self.access_key_id
        )
    }

    /// Derives the key of a day.
    fn key(&self, day: &str) -> Vec<u8> {
        let secret = format!("AWS4{}", self.secret_access_key).into_bytes();
        [day, self.region, self.service, "aws4_request"]
            .iter()
            .fold(secret, |key, part| hmac(HMAC_SHA256, &key, &[part.as_bytes()]).as_ref().to_vec())
    }
}

/// The vectors are those of the test suite that AWS publishes for Signature Version 4.
#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DATE: &str = "20150830T123600Z";
    const SIGNER: Signer<'_> = Signer {
        access_key_id: "AKIDEXAMPLE",
        secret_access_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
        region: "us-east-1",
        service: "service",
    };
    const HOST: (&str, &str) = ("host", "example.amazonaws.com");

    #[track_caller]
    fn check(method: &str, headers: &[(&str, &str)], body: &str, signature: &str) {
        let authorization = SIGNER.authorization(method, headers, DATE, body.as_bytes());
        let (_, found) = authorization.split_once("Signature=").unwrap();
        assert_eq!(found, signature);
    }

    #[test]
    fn header_names_credential_scope_and_signed_headers() {
        let header = SIGNER.authorization("GET", &[HOST, ("x-amz-date", DATE)], DATE, b"");

        assert_eq!(
            header,
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, \
             Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
    }

    #[test]
    fn post_vanilla() {
        let signature = "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b";
        check("POST", &[HOST, ("x-amz-date", DATE)], "", signature);
    }

    #[test]
    fn post_with_a_body() {
        let headers = [
            ("content-length", "13"),
            ("content-type", "application/x-www-form-urlencoded"),
            HOST,
            (
                "x-amz-content-sha256",
                "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e",
            ),
            ("x-amz-date", DATE),
        ];
        let signature = "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b";
        check("POST", &headers, "Param1=value1", signature);
    }

    #[test]
    fn get_with_a_session_token() {
        let token = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267";
        let headers = [HOST, ("x-amz-date", DATE), ("x-amz-security-token", token)];
        let signature = "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8";
        check("GET", &headers, "", signature);
    }

    #[test]
    fn date_is_written_without_separators() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160);

        assert_eq!(amz_date(at), DATE);
    }
}
