use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use domain::{
    Budget, GatewayName, Origin, Peppers, Prices, Seed, VerificationId, VerificationStatus,
};

use crate::{
    Budgets, Keys, Preference, Route, Tariff, Vault,
    ports::{AnswerClaim, CodeSecret, History, Verification},
};

pub(crate) const PEPPER: &str = "p1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
pub(crate) const PAYLOAD_KEY: &str = "k1:Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";

pub(crate) fn peppers() -> Peppers {
    PEPPER.parse().unwrap()
}

/// A vault without a payload key: codes are carried in clear text.
pub(crate) fn vault() -> Vault {
    Vault::of(Keys { peppers: Some(peppers()), payload: None })
}

pub(crate) fn sealing_vault() -> Vault {
    Vault::of(Keys { peppers: Some(peppers()), payload: Some(PAYLOAD_KEY.parse().unwrap()) })
}

/// The time at which tests begin.
pub(crate) const START: SystemTime = SystemTime::UNIX_EPOCH;

/// A verification right after its first message.
pub(crate) fn pending() -> Verification {
    Verification {
        id: "ver_6f2c1a529d3f4f0e8a550d2f6f3b9c00".parse().unwrap(),
        origin: Origin::V1,
        phone: "79991234567".parse().unwrap(),
        region: "RU".parse().ok(),
        status: VerificationStatus::Pending,
        attempts: 0,
        sends: 1,
        extra_sends: 0,
        created_at: START,
        sent_at: START,
        expires_at: START + Duration::from_secs(600),
        ended_at: None,
        read_at: START,
        code_length: 6.try_into().unwrap(),
        template: None,
        metadata: None,
        api_key: None,
        secret: Some(CodeSecret {
            pepper: peppers().first().id().clone(),
            seed: Seed::from_bytes([7; 16]),
        }),
    }
}

/// That verification in another state, without events.
pub(crate) fn history(status: VerificationStatus) -> History {
    History { verification: Verification { status, ..pending() }, events: Vec::new() }
}

/// Returns the claim of a request that is new.
pub(crate) fn claim() -> AnswerClaim {
    AnswerClaim { key: [1; 32], holder: [2; 16], first: [2; 16], done: None }
}

/// The same claim, taken over from a holder that did not return.
pub(crate) fn taken_over(done: Option<VerificationId>) -> AnswerClaim {
    AnswerClaim { holder: [3; 16], done, ..claim() }
}

/// One gateway for all numbers, whose daily budget is used up.
pub(crate) fn no_budget() -> Budgets {
    let name = GatewayName::default();
    let budget = Budget { total: "0".parse().ok(), ..Budget::default() };
    let prices = Prices { default: "1".parse().ok(), ..Prices::default() };
    let gateways = Preference::InOrder(vec![name.clone()]);
    let budgets = Budgets::new(Arc::new(|_| None));
    let tariff = Tariff { prices, budget, home: None };
    budgets.replace(vec![Route { gateways, ..Route::default() }], [(name, tariff)]);
    budgets
}
