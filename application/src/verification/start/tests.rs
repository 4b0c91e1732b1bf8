use std::{sync::Mutex, time::SystemTime};

use domain::{
    CarriedCode, GuardMode, GuardRule, Policy, VerificationId, VerificationStatus, Window,
};
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    Guard, SendSettings, Vault,
    ports::{EventKind, MockOutbox, MockVerifications, NewSend, Resent, Verification},
    testing::{START, claim, no_budget, pending, peppers, taken_over, vault},
};

type Starter = StartVerification<MockOutbox, MockVerifications, StdRng>;

fn starter(outbox: MockOutbox, verifications: MockVerifications) -> Starter {
    with_rules(outbox, verifications, &[])
}

fn with_rules(
    outbox: MockOutbox,
    verifications: MockVerifications,
    rules: &[GuardRule],
) -> Starter {
    with_settings(outbox, verifications, SendSettings::default(), rules)
}

fn with_settings(
    outbox: MockOutbox,
    verifications: MockVerifications,
    settings: SendSettings,
    rules: &[GuardRule],
) -> Starter {
    let guard = Arc::new(Guard::new(rules.to_vec(), Duration::from_secs(3_600)));
    let rng = StdRng::seed_from_u64(1);
    let verifications = Arc::new(verifications);
    let sender = CodeSender::new(verifications, || START, rng, vault(), guard, settings);
    StartVerification::new(outbox, Arc::new(sender))
}

fn number(phone: &str) -> Number {
    let kind = domain::NumberType::Mobile;
    Number { phone: phone.parse().unwrap(), region: "RU".parse().ok(), kind }
}

fn request() -> StartRequest {
    StartRequest {
        number: number("79991234567"),
        ttl: Duration::from_secs(300),
        code_length: 8.try_into().unwrap(),
        template: "login/de".parse().ok(),
        metadata: Some(Metadata::new(r#"{"user":"42"}"#.to_owned())),
        caller: Caller { ip: "203.0.113.7".parse().ok(), ..Caller::default() },
        test_code: None,
    }
}

fn accepting() -> (MockOutbox, Arc<Mutex<Vec<NewSend>>>) {
    let mut outbox = MockOutbox::new();
    let book = Arc::new(Mutex::new(Vec::new()));
    let entries = Arc::clone(&book);
    outbox.expect_enqueue().returning(move |send| {
        entries.lock().unwrap().push(send);
        Ok(Enqueued::Accepted { at: START })
    });
    (outbox, book)
}

fn answering(enqueued: Enqueued) -> MockOutbox {
    let mut outbox = MockOutbox::new();
    outbox.expect_enqueue().returning(move |_| Ok(enqueued.clone()));
    outbox
}

fn at(seconds: u64) -> SystemTime {
    START + Duration::from_secs(seconds)
}

#[tokio::test]
async fn a_new_verification_has_the_properties_of_its_request() {
    let (outbox, stored) = accepting();

    let starter = starter(outbox, MockVerifications::new());
    let History { verification, events } = starter.execute(request()).await.unwrap();

    let stored = stored.lock().unwrap();
    let NewSend { message, verification: new, extra, .. } = &stored[0];
    assert_eq!(verification.id.message(1), message.id);
    assert_eq!(verification.expires_at, at(300));
    assert_eq!((verification.attempts, verification.sends), (0, 1));
    assert_eq!(verification.metadata, request().metadata);
    let kinds: Vec<_> = events.iter().map(|event| (event.kind, event.at)).collect();
    assert_eq!(kinds, [(EventKind::Created, START), (EventKind::Queued, START)]);
    assert_eq!((new.origin, new.region), (Origin::V1, request().number.region));
    let CarriedCode::Clear { code, template } = &message.code else { panic!() };
    assert_eq!((code.as_str().len(), template), (8, &request().template));
    let keys: Vec<_> = extra.iter().map(|counter| counter.key.as_str()).collect();
    assert_eq!(keys, ["203.0.113.7", "203.0.113.7", "7999123"]);
}

#[tokio::test]
async fn a_second_start_is_a_resend_with_the_same_code() {
    let rested = Verification { read_at: at(60), ..pending() };
    let secret = rested.secret.clone().unwrap();
    let length = rested.code_length;
    let mut verifications = MockVerifications::new();
    verifications
        .expect_resend()
        .withf(move |again| {
            let id = pending().id;
            let code = peppers().first().derive(id, &secret.seed, length);
            let code = CarriedCode::Clear { code, template: pending().template };
            again.message.id == id.message(2) && again.message.code == code
        })
        .once()
        .returning(|_| Ok(Resent::Sent(Box::new(Verification { sends: 2, ..pending() }))));
    verifications.expect_history().returning(|_| Ok(None));

    let starter = starter(answering(Enqueued::Pending(Box::new(rested))), verifications);
    let history = starter.execute(request()).await.unwrap();

    assert_eq!((history.verification.id, history.verification.sends), (pending().id, 2));
}

#[tokio::test]
async fn a_second_start_before_the_wait_ends_is_limited() {
    let early = Verification { read_at: at(20), ..pending() };
    let outbox = answering(Enqueued::Pending(Box::new(early)));

    let error = starter(outbox, MockVerifications::new()).execute(request()).await.unwrap_err();

    let StartError::Limited(violations) = error else { panic!("{error:?}") };
    assert_eq!(violations[0].policy.name.as_str(), "resend");
    assert_eq!(violations[0].retry_after, Duration::from_secs(40));
}

fn under(claim: AnswerClaim) -> StartRequest {
    StartRequest { caller: Caller { claim: Some(claim), ..request().caller }, ..request() }
}

#[tokio::test]
async fn a_start_that_is_taken_over_returns_the_verification_that_began() {
    for (claim, id) in
        [(taken_over(None), claim().begins()), (taken_over(Some(pending().id)), pending().id)]
    {
        let begun = begun(Verification { id, ..pending() });
        let found = begun.clone();
        let mut verifications = MockVerifications::new();
        verifications
            .expect_history()
            .withf(move |asked| *asked == id)
            .once()
            .returning(move |_| Ok(Some(found.clone())));

        let starter = starter(MockOutbox::new(), verifications);

        assert_eq!(starter.execute(under(claim)).await.unwrap(), begun);
    }
}

/// A start that timed out for its caller may still be in progress in the database.
#[tokio::test]
async fn a_start_that_commits_late_is_found_by_the_holder_that_took_it_over() {
    let begun = Verification { id: claim().begins(), ..pending() };
    let pending = begun.clone();
    let mut outbox = MockOutbox::new();
    outbox
        .expect_enqueue()
        .once()
        .returning(move |_| Ok(Enqueued::Pending(Box::new(pending.clone()))));
    let mut verifications = MockVerifications::new();
    verifications.expect_history().returning(|_| Ok(None));

    let starter = starter(outbox, verifications);
    let history = starter.execute(under(taken_over(None))).await.unwrap();

    assert_eq!(history.verification, begun);
}

#[tokio::test]
async fn every_holder_of_a_claim_starts_the_same_id() {
    for (claim, looks) in [(claim(), 0), (taken_over(None), 1)] {
        let (outbox, stored) = accepting();
        let mut verifications = MockVerifications::new();
        verifications.expect_history().times(looks).returning(|_| Ok(None));

        let history = starter(outbox, verifications).execute(under(claim)).await.unwrap();

        let id = crate::testing::claim().begins();
        assert_eq!(history.verification.id, id);
        assert_eq!(stored.lock().unwrap()[0].message.id, id.message(1));
    }
}

#[tokio::test]
async fn a_start_is_not_repeated_while_its_state_is_unknown() {
    let mut verifications = MockVerifications::new();
    verifications.expect_history().returning(|_| Err(StoreError::Unavailable("down".into())));

    let starter = starter(MockOutbox::new(), verifications);
    let error = starter.execute(under(taken_over(None))).await.unwrap_err();

    assert!(matches!(error, StartError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn a_verification_that_ended_in_between_is_replaced() {
    let ended = Verification { status: VerificationStatus::Expired, ..pending() };
    let mut outbox = MockOutbox::new();
    let mut rounds = mockall::Sequence::new();
    outbox
        .expect_enqueue()
        .once()
        .in_sequence(&mut rounds)
        .returning(move |_| Ok(Enqueued::Pending(Box::new(ended.clone()))));
    outbox
        .expect_enqueue()
        .once()
        .in_sequence(&mut rounds)
        .returning(|_| Ok(Enqueued::Accepted { at: START }));

    let starter = starter(outbox, MockVerifications::new());
    let history = starter.execute(request()).await.unwrap();

    assert_ne!(history.verification.id, pending().id);
}

#[tokio::test]
async fn the_error_says_why_nothing_was_stored() {
    let window = Window { quota: 5, period: Duration::from_secs(3_600) };
    let policy = Policy::new("phone", window);
    let violations = vec![Violation { policy, retry_after: Duration::from_secs(9) }];
    let limited = answering(Enqueued::Limited(violations.clone()));
    let error = starter(limited, MockVerifications::new()).execute(request()).await.unwrap_err();
    assert!(matches!(error, StartError::Limited(found) if found == violations));

    let mut full = MockOutbox::new();
    full.expect_enqueue().returning(|_| Err(StoreError::Full));
    let error = starter(full, MockVerifications::new()).execute(request()).await.unwrap_err();
    assert!(matches!(error, StartError::Full));
}

#[tokio::test]
async fn nothing_is_stored_before_the_keys_are_loaded() {
    let guard = Arc::new(Guard::new(Vec::new(), Duration::from_secs(3_600)));
    let (rng, settings) = (StdRng::seed_from_u64(1), SendSettings::default());
    let verifications = Arc::new(MockVerifications::new());
    let vault = Vault::default();
    let sender = CodeSender::new(verifications, || START, rng, vault, guard, settings);
    let starter = StartVerification::new(MockOutbox::new(), Arc::new(sender));

    let error = starter.execute(request()).await.unwrap_err();

    assert!(matches!(error, StartError::Unavailable(_)));
}

#[tokio::test]
async fn the_guard_blocks_a_flood_in_enforce_mode_only() {
    let rule = |mode| GuardRule::parse("prefix:3:10", mode).unwrap();
    let mut sent = Vec::new();
    for mode in [GuardMode::Enforce, GuardMode::Shadow] {
        let (outbox, stored) = accepting();
        let starter = with_rules(outbox, MockVerifications::new(), &[rule(mode)]);
        for number in 0..10 {
            let number = self::number(&format!("7999123000{number}"));
            let answer = starter.execute(StartRequest { number, ..request() }).await;
            assert!(matches!(answer, Ok(_) | Err(StartError::Blocked)));
        }
        sent.push(stored.lock().unwrap().len());
    }

    assert_eq!(sent, [3, 10]);
}

#[tokio::test]
async fn a_start_that_no_gateway_can_afford_is_not_stored() {
    let mut settings = SendSettings::default();
    settings.rules.budgets = Some(no_budget());
    let starter = with_settings(MockOutbox::new(), MockVerifications::new(), settings, &[]);

    let error = starter.execute(request()).await.unwrap_err();

    assert!(matches!(error, StartError::BudgetExhausted), "{error:?}");
}

#[tokio::test]
async fn a_test_number_has_its_fixed_code_and_gets_no_message() {
    let mut verifications = MockVerifications::new();
    verifications
        .expect_start_test()
        .withf(|test| {
            let hash = peppers().first().hash(test.id, &"000000".parse().unwrap());
            test.verification.origin == Origin::Test
                && hash.as_bytes() == test.verification.secret.code_hash.as_bytes()
        })
        .returning(|test| {
            let ttl = test.ttl;
            Ok(Verification::begun(test.id, test.phone, ttl, &test.verification, START))
        });
    let request = StartRequest { test_code: "000000".parse().ok(), ..request() };

    let starter = starter(MockOutbox::new(), verifications);
    let history = starter.execute(request).await.unwrap();

    assert!(history.verification.is_test());
    let kinds: Vec<_> = history.events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Created]);
    assert_eq!(VerificationId::of(history.verification.id.message(1)), history.verification.id);
}
