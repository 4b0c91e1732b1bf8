//! Masks secrets in the values of settings.

/// Stands for a value that is not shown.
pub(super) const MASK: &str = "***";

/// Returns a URL with only its host: passwords and tokens stand before and behind it.
pub(super) fn host_of(url: &str) -> String {
    let Ok(url) = url.trim().parse::<http::Uri>() else { return MASK.to_owned() };
    let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return MASK.to_owned();
    };
    let (user, host) = match authority.as_str().rsplit_once('@') {
        Some((_, host)) => (format!("{MASK}@"), host),
        None => (String::new(), authority.as_str()),
    };
    let path = url.path_and_query().map_or("", |path| path.as_str());
    let path = if path.len() > 1 { format!("/{MASK}") } else { path.to_owned() };
    format!("{scheme}://{user}{host}{path}")
}

/// Masks what may be a password before a host, as in `user:password@host`.
pub(super) fn without_password(text: &str) -> String {
    let is_break = |c: char| c.is_whitespace() || c == ',';
    let parts = text.split_inclusive(is_break).map(|part| {
        let behind_scheme = part.find("://").map_or(0, |at| at + "://".len());
        match part[behind_scheme..].rsplit_once('@') {
            Some((user, host)) if user.contains(':') => {
                format!("{}{MASK}@{host}", &part[..behind_scheme])
            }
            _ => part.to_owned(),
        }
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_urls_and_lists_are_masked() {
        for (text, expected) in [
            ("https://user:secret@host:1/path?token=secret", "https://***@host:1/***"),
            ("https://user@host", "https://***@host/"),
            ("http://host/hook/secret", "http://host/***"),
            ("http://host:8080", "http://host:8080/"),
            ("not a URL with secret", "***"),
        ] {
            assert_eq!(host_of(text), expected);
        }
        for (text, expected) in [
            ("a:9092,user:se@cret@b:9092 c:1", "a:9092,***@b:9092 c:1"),
            ("SASL://user:secret@b:9092", "SASL://***@b:9092"),
            ("@host #{code}", "@host #{code}"),
            ("Code {code} for us@example.com: now", "Code {code} for us@example.com: now"),
        ] {
            assert_eq!(without_password(text), expected);
        }
    }
}
