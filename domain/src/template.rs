use std::str::FromStr;

use crate::Code;

/// The text of an SMS, with `{code}` standing where the code goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmsTemplate {
    before: String,
    after: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an SMS template has {PLACEHOLDER} exactly once")]
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
    fn puts_the_code_in_its_place() {
        let template: SmsTemplate = "Your code: {code}. Tell nobody.".parse().unwrap();

        assert_eq!(template.render(&"0042".parse().unwrap()), "Your code: 0042. Tell nobody.");
    }

    #[test]
    fn needs_the_placeholder_once() {
        for text in ["", "Your code", "{code} {code}", "{ code }", "{CODE}"] {
            assert_eq!(text.parse::<SmsTemplate>(), Err(InvalidSmsTemplate), "{text:?}");
        }
    }
}
