//! The providers that are called over HTTP, one file each.

mod aws;
mod devino;
mod digest;
mod exolve;
mod http;
mod infobip;
mod kannel;
mod messagebird;
mod messaggio;
mod plivo;
mod reports;
mod sinch;
mod smsaero;
mod smsc;
mod smsgate;
mod smsru;
mod telegram;
mod telnyx;
mod twilio;
mod vonage;
mod webhook;

use crate::spec::ProviderSpec;

/// All providers that are called over HTTP. A new provider is one file, and one line here.
pub static PROVIDERS: &[&ProviderSpec] = &[
    &aws::SPEC,
    &devino::SPEC,
    &exolve::SPEC,
    &http::SPEC,
    &infobip::SPEC,
    &kannel::SPEC,
    &messagebird::SPEC,
    &messaggio::SPEC,
    &plivo::SPEC,
    &sinch::SPEC,
    &smsaero::SPEC,
    &smsc::SPEC,
    &smsgate::SPEC,
    &smsru::SPEC,
    &telegram::SPEC,
    &telnyx::SPEC,
    &twilio::SPEC,
    &vonage::SPEC,
    &webhook::SPEC,
];
