use std::str::FromStr;

use crate::Code;

/// The text of an SMS, with `{code}` in place of the code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmsTemplate {
    before: String,
    after: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an SMS template must contain {PLACEHOLDER} exactly once")]
pub struct InvalidSmsTemplate;

const PLACEHOLDER: &str = "{code}";

impl SmsTemplate {
    pub fn render(&self, code: &Code) -> String {
        [&self.before, code.as_str(), &self.after].concat()
    }
}

impl FromStr for SmsTemplate {
    type Err = InvalidSmsTemplate;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(PLACEHOLDER) {
            Some((before, after)) if !after.contains(PLACEHOLDER) => {
                Ok(Self { before: before.to_owned(), after: after.to_owned() })
            }
            _ => Err(InvalidSmsTemplate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_replaces_the_placeholder() {
        let template: SmsTemplate = "Your code: {code}. Do not share it.".parse().unwrap();

        assert_eq!(template.render(&"0042".parse().unwrap()), "Your code: 0042. Do not share it.");
    }

    #[test]
    fn a_template_without_exactly_one_placeholder_is_refused() {
        for text in ["", "Your code", "{code} {code}", "{ code }", "{CODE}"] {
            assert_eq!(text.parse::<SmsTemplate>(), Err(InvalidSmsTemplate), "{text:?}");
        }
    }
}
