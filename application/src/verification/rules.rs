use std::sync::Arc;

use domain::{
    Counter, NumberRefused, NumberRules, Origin, PhoneNumber, Recipient, SendLimits, SendOf,
};

use super::{Admission, Caller, Guard, SendPermit};
use crate::Budgets;

/// The rules for messages of one origin, `/v1` or `/api`.
///
/// Both origins apply the same rules in the same order: the rules for numbers, the budgets of gateways,
/// the guard, and the limits.
/// Only the settings differ.
#[derive(Debug, Clone, Default)]
pub struct SendRules {
    pub numbers: NumberRules,
    /// Whether digits that no numbering plan contains are refused.
    pub refuse_unreadable: bool,
    pub limits: SendLimits,
    pub counting: Counting,
    /// `None`: no message is refused for a budget.
    pub budgets: Option<Budgets>,
}

/// The counters that an origin uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Counting {
    /// The counters of both origins.
    #[default]
    Shared,
    /// The counters of both origins, except separate counters of phones, because the origins limit
    /// phones differently.
    PhonesApart,
    /// Separate counters only, because callers of this origin are less identified.
    Apart,
}

/// The reason why no message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Number(NumberRefused),
    Budget,
    Guard,
}

impl SendRules {
    /// Refuses nothing and counts nothing.
    pub const NONE: Self = Self {
        numbers: NumberRules::NONE,
        refuse_unreadable: false,
        limits: SendLimits::OFF,
        counting: Counting::Shared,
        budgets: None,
    };

    /// Decides whether a message may be sent. `written` is the form of the number that the gateway
    /// gets. The permit counts the message once it is sent.
    pub(crate) fn admit(
        &self,
        guard: &Arc<Guard>,
        origin: Origin,
        to: &Recipient,
        written: &PhoneNumber,
    ) -> Result<SendPermit, Refusal> {
        match to {
            Recipient::Number(number) => {
                self.numbers.check(number.region, number.kind).map_err(Refusal::Number)?;
            }
            Recipient::Unreadable(_) if self.refuse_unreadable => {
                return Err(Refusal::Number(NumberRefused::Unreadable));
            }
            Recipient::Unreadable(_) => {}
        }
        self.afford(origin, written)?;
        match guard.decide(origin, to.phone(), to.region()) {
            Admission::Passed(permit) => Ok(permit),
            Admission::Blocked => Err(Refusal::Guard),
        }
    }

    /// Refuses a message if every gateway that can take it has used its daily budget up.
    pub(crate) fn afford(&self, origin: Origin, written: &PhoneNumber) -> Result<(), Refusal> {
        match &self.budgets {
            Some(budgets) if budgets.refuse(origin, written) => Err(Refusal::Budget),
            _ => Ok(()),
        }
    }

    /// Returns the counters of a message besides its phone.
    pub(crate) fn counters(&self, to: &Recipient, caller: &Caller) -> Vec<Counter> {
        let mut counters = self.limits.counters(SendOf {
            ip: caller.ip,
            prefix: &to.prefix_key(),
            region: to.region_key(),
            api_key: caller.api_key,
            custom: &caller.custom,
        });
        if self.counting == Counting::Apart {
            for counter in &mut counters {
                counter.key.insert_str(0, "api:");
            }
        }
        counters
    }

    /// Whether this origin has separate windows for phones.
    pub(crate) const fn phones_apart(&self) -> bool {
        matches!(self.counting, Counting::PhonesApart | Counting::Apart)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use domain::{GuardMode, GuardRule, Number, NumberType, VerificationId};

    use super::*;
    use crate::testing::no_budget;

    fn guard() -> Arc<Guard> {
        let rule = GuardRule::parse("prefix:3:10", GuardMode::Enforce).unwrap();
        Arc::new(Guard::new(vec![rule], Duration::from_secs(3_600)))
    }

    fn number(phone: &str, kind: NumberType) -> Recipient {
        let (phone, region) = (phone.parse().unwrap(), "RU".parse().ok());
        Recipient::Number(Number { phone, region, kind })
    }

    fn mobile() -> Recipient {
        number("79991234567", NumberType::Mobile)
    }

    fn unreadable() -> Recipient {
        Recipient::Unreadable("89999999999".parse().unwrap())
    }

    #[test]
    fn the_rules_for_numbers_apply_to_both_origins() {
        let premium = number("78091234567", NumberType::PremiumRate);
        let numbers =
            NumberRules { refused: [NumberType::PremiumRate].into(), ..NumberRules::NONE };
        let rules = SendRules { numbers, refuse_unreadable: true, ..SendRules::NONE };
        for origin in [Origin::V1, Origin::Api] {
            let admit = |to: &Recipient| rules.admit(&guard(), origin, to, to.phone()).map(|_| ());

            assert_eq!(admit(&premium), Err(Refusal::Number(NumberRefused::Type)));
            assert_eq!(admit(&unreadable()), Err(Refusal::Number(NumberRefused::Unreadable)));
            assert_eq!(admit(&mobile()), Ok(()));
        }
        for to in [premium, unreadable()] {
            assert!(SendRules::NONE.admit(&guard(), Origin::Api, &to, to.phone()).is_ok());
        }
    }

    #[test]
    fn a_budget_refuses_before_the_guard_and_after_the_rules_for_numbers() {
        let guard = guard();
        for (origin, numbers, expected) in [
            (Origin::V1, NumberRules::NONE, Refusal::Budget),
            (Origin::Api, NumberRules::NONE, Refusal::Budget),
            (
                Origin::V1,
                NumberRules { refused: [NumberType::Mobile].into(), ..NumberRules::NONE },
                Refusal::Number(NumberRefused::Type),
            ),
        ] {
            let rules = SendRules { numbers, budgets: Some(no_budget()), ..SendRules::NONE };
            for _ in 0..10 {
                let refused = rules.admit(&guard, origin, &mobile(), mobile().phone());
                assert_eq!(refused.map(|_| ()), Err(expected));
            }
        }

        let to = mobile();
        let passed = SendRules::NONE.admit(&guard, Origin::V1, &to, to.phone());
        assert!(passed.is_ok(), "the guard has counted nothing");
    }

    #[test]
    fn the_guard_applies_to_api_once_its_codes_are_checked_and_separately_from_v1() {
        let guard = guard();
        let send = |origin| {
            let permit = SendRules::NONE.admit(&guard, origin, &mobile(), mobile().phone())?;
            permit.sent(VerificationId::NIL);
            Ok::<_, Refusal>(())
        };
        for _ in 0..100 {
            send(Origin::Api).unwrap();
        }
        let elsewhere = "4915112345678".parse().unwrap();
        for _ in 0..19 {
            guard.approved(Origin::V1, &elsewhere, None);
            guard.approved(Origin::Api, &elsewhere, None);
        }
        send(Origin::Api).unwrap();
        guard.approved(Origin::Api, &elsewhere, None);
        send(Origin::Api).unwrap();

        // 21 approvals are a fifth of 102 messages.
        guard.approved(Origin::Api, &elsewhere, None);
        let through = (0..50).take_while(|_| send(Origin::Api).is_ok()).count();

        assert_eq!(through, 3);
        assert_eq!(send(Origin::V1), Ok(()), "messages of /api block no caller of /v1");
    }

    #[test]
    fn a_message_is_counted_by_prefix_region_and_api_key() {
        let limits = |text: &str| text.parse().unwrap();
        let limits = SendLimits {
            prefix: limits("9/1h"),
            region: limits("9/1h"),
            key: limits("9/1h"),
            ..SendLimits::OFF
        };
        let api_key = "6f2c1a529d3f4f0e8a550d2f6f3b9c00".parse().ok();
        let caller = Caller { api_key, ..Caller::default() };
        let keys = |counting, to: &Recipient| -> Vec<String> {
            let rules = SendRules { limits: limits.clone(), counting, ..SendRules::NONE };
            rules.counters(to, &caller).into_iter().map(|counter| counter.key).collect()
        };
        let key = api_key.unwrap().to_string();

        assert_eq!(keys(Counting::Shared, &mobile()), ["7999123", "RU", &key]);
        assert_eq!(keys(Counting::PhonesApart, &mobile()), ["7999123", "RU", &key]);
        assert_eq!(keys(Counting::Shared, &unreadable()), ["?8999999", "?", &key]);
        let apart = keys(Counting::Apart, &mobile());
        assert_eq!(apart, ["api:7999123", "api:RU", &format!("api:{key}")]);
    }
}
