//! `messager gateways test`: sends one real SMS.

use std::{
    collections::BTreeMap,
    io::Write,
    sync::Arc,
    time::{Duration, SystemTime},
};

use adapters_http::recipient;
use anyhow::{Context, bail};
use application::ports::{Accepted, SendError, Sms, SmsGateway};
use domain::{CarriedCode, Code, GatewayName, Message, MessageId, PhoneNumber, Recipient};

use super::{super::Output, ensure_is_configured};
use crate::{
    config::{Config, GatewayConfig, GatewaysConfig},
    random::seeded,
};

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Args {
    /// The number that gets the SMS, in international form, such as +79991234567.
    #[arg(long, value_parser = phone)]
    to: PhoneNumber,
    /// The gateway. Without it, the first gateway of the number's route.
    #[arg(long)]
    gateway: Option<GatewayName>,
    /// The text of the SMS. Without it, it is the text of the settings, with the code 123456.
    #[arg(long)]
    text: Option<String>,
}

/// The code that the SMS shows. No verification has it.
const CODE: &str = "123456";

/// How long the code is valid, as the provider is told.
const GOOD_FOR: Duration = Duration::from_secs(600);

/// The gateway that is tried, and what its route asks for.
struct Chosen<'a> {
    gateway: &'a GatewayConfig,
    sender: Option<Arc<str>>,
    params: Arc<BTreeMap<String, String>>,
}

/// Sends the SMS. Fails unless the gateway accepts it.
pub(super) async fn execute(config: &Config, args: Args) -> anyhow::Result<()> {
    config.gateways.check_secrets()?;
    let Args { to, gateway, text } = args;
    let chosen = choose(&config.gateways, &to, gateway.as_ref())?;
    let (name, provider) = (&chosen.gateway.name, chosen.gateway.provider);
    writeln!(Output, "sending to {} through {name} ({provider})", to.masked())?;
    let (gateway, _) = chosen.gateway.build()?;
    let code: Code = CODE.parse()?;
    let text = text.unwrap_or_else(|| config.texts.render(None, &code));
    let now = now();
    let id = MessageId::generate(now, &mut seeded()?);
    let carried = CarriedCode::Clear { code: code.clone(), template: None };
    let sms = Sms {
        message: Message { id, phone: to, code: carried },
        code,
        text,
        expires_at: now + GOOD_FOR,
        good_for: GOOD_FOR,
        trace: None,
        sender: chosen.sender,
        params: chosen.params,
        // No process knows the message, so a report of it would be refused.
        callback: None,
    };
    match gateway.send(&sms).await {
        Ok(accepted) => Ok(writeln!(Output, "{}", said(&accepted))?),
        Err(error) => bail!("{error}\n{}", advice(provider, &error)),
    }
}

fn choose<'a>(
    gateways: &'a GatewaysConfig,
    to: &PhoneNumber,
    named: Option<&GatewayName>,
) -> anyhow::Result<Chosen<'a>> {
    if let Some(name) = named {
        ensure_is_configured(gateways, name)?;
    }
    let region = match recipient(to, None) {
        Recipient::Number(number) => number.region,
        Recipient::Unreadable(_) => None,
    };
    let route = gateways.routes.iter().find(|route| route.matches(to, region));
    let first = route.and_then(|route| route.first());
    let name = named.or(first).context(
        "no route matches this number: name a gateway with --gateway, or add a [[route]] without \
         regions and prefixes",
    )?;
    let gateway = gateways.find(name).context("a route names no gateway that does not exist")?;
    Ok(Chosen {
        gateway,
        sender: route.and_then(|route| route.sender.clone()),
        params: route.map(|route| Arc::clone(&route.params)).unwrap_or_default(),
    })
}

fn said(accepted: &Accepted) -> String {
    let reference = accepted.reference.as_ref();
    let reference = reference.map_or(String::new(), |it| format!("; its id there is {it}"));
    format!(
        "accepted{reference}\nThe provider has taken the SMS. If it does not arrive within a minute, \
         look for it in the provider's log: the sender or the country may need a registration."
    )
}

/// Says what the operator can do about an outcome. The settings of the provider `http` decide what its
/// answers mean, so a rule may be missing.
fn advice(provider: &str, error: &SendError) -> String {
    let is_answer = provider == "http" && error.detail().starts_with("status ");
    let rule = match error {
        SendError::Ambiguous(_) if is_answer => return UNCLEAR_ANSWER.to_owned(),
        _ if is_answer => {
            " If the answer means something else, add a rule for it; error_code shows the provider's \
             code here."
        }
        _ => "",
    };
    format!("{}{rule}", usual_advice(error))
}

const UNCLEAR_ANSWER: &str = "The provider answered, and the settings do not say what the answer means. \
                              See whether the SMS arrives before you try again. Add a rule for this \
                              answer, or correct message_id; error_code shows the provider's code here.";

fn usual_advice(error: &SendError) -> &'static str {
    match error {
        SendError::Rejected(_) => {
            "The provider will never take this SMS. Check the number and the text. If both are good, \
             look up the code in the provider's documentation."
        }
        SendError::Unroutable(_) => {
            "The provider does not deliver to this number. Enable the country in your account there, \
             or add a route for it through another gateway."
        }
        SendError::Misconfigured(_) => {
            "The provider takes no SMS from this account. Check the credentials, the sender, the \
             credit and the URL of this gateway."
        }
        SendError::Throttled { .. } => {
            "The provider limits your rate. Try again later, and set max_per_second below its limit."
        }
        SendError::Unavailable { .. } => {
            "The provider could not be reached, and nothing was sent. Check the URL, the name service \
             and the firewall of this machine."
        }
        SendError::Ambiguous(_) => {
            "The outcome is not known. See whether it arrives before you try again. If \
             this happens often, a longer timeout may help."
        }
    }
}

/// Returns the time of this machine. It says when the code expires, which decides nothing here.
#[expect(clippy::disallowed_methods, reason = "there is no database whose clock could be asked")]
fn now() -> SystemTime {
    SystemTime::now()
}

fn phone(text: &str) -> Result<PhoneNumber, &'static str> {
    // The error does not show the text, which is personal.
    let digits = text.strip_prefix('+').unwrap_or(text);
    digits.parse().map_err(|_| "7 to 15 digits of a number in international form, after a +")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_that_the_settings_do_not_explain_needs_a_rule() {
        let unclear = SendError::Ambiguous("status 200, code 99: no rule matches".to_owned());
        let refused = SendError::Rejected("status 400, code 99".to_owned());
        let silent = SendError::Ambiguous("no answer came back in time".to_owned());

        assert!(
            advice("http", &unclear).contains("Add a rule for this answer, or correct message_id")
        );
        assert!(!advice("http", &unclear).contains("timeout"));
        assert!(advice("http", &refused).contains("add a rule"));
        assert!(advice("http", &silent).contains("a longer timeout"));
        assert!(!advice("twilio", &refused).contains("rule"));
    }

    #[test]
    fn outcome_is_told_with_what_to_do() {
        let accepted = Accepted { reference: Some("SM1".to_owned()), ..Accepted::default() };
        assert!(said(&accepted).starts_with("accepted; its id there is SM1\n"));
        assert!(said(&Accepted::default()).starts_with("accepted\n"));
        let detail = || "HTTP 400".to_owned();
        let all = [
            SendError::Rejected(detail()),
            SendError::Unroutable(detail()),
            SendError::Misconfigured(detail()),
            SendError::Throttled { detail: detail(), retry_after: None },
            SendError::Unavailable { detail: detail(), retry_after: None },
            SendError::Ambiguous(detail()),
        ];
        let advices: std::collections::BTreeSet<String> =
            all.iter().map(|error| advice("twilio", error)).collect();
        assert_eq!(advices.len(), all.len());
    }
}
