use super::*;

#[tokio::test]
async fn ended_verification_is_409_or_410_and_unknown_one_is_404() {
    let status = |status| move || Ok(Some(Verification { status, secret: None, ..pending() }));
    let check = || post(&at("/checks"), r#"{"code":"482915"}"#);
    let resend = || post(&at("/resend"), Body::empty());
    let cancel = || post(&at("/cancel"), Body::empty());

    let mut unknown = trying(|| CheckOutcome::Unknown);
    unknown.expect_find().returning(|_| Ok(None));
    unknown.expect_history().returning(|_| Ok(None));
    unknown.expect_cancel().returning(|_| Ok(None));
    let router = Parts { verifications: unknown, ..parts() }.router();
    for request in [check(), resend(), cancel(), get(&at(""))] {
        ask(&router, request).await.expect_problem(404, "not-found");
    }

    for (ended, code, shown) in [
        (VerificationStatus::Approved, "already-approved", None),
        (VerificationStatus::Expired, "gone", Some("expired")),
        (VerificationStatus::Canceled, "gone", Some("canceled")),
    ] {
        let mut verifications = trying(move || match ended {
            VerificationStatus::Approved => CheckOutcome::Approved,
            ended => CheckOutcome::Gone(ended),
        });
        let find = status(ended);
        verifications.expect_find().returning(move |_| find());
        verifications.expect_cancel().returning(move |_| {
            Ok(Some(history(Verification { status: ended, secret: None, ..pending() })))
        });
        let router = Parts { verifications, ..parts() }.router();
        let number = if shown.is_some() { 410 } else { 409 };
        let mut requests = vec![check(), resend()];
        if ended != VerificationStatus::Canceled {
            requests.push(cancel());
        }
        for request in requests {
            let extra = ask(&router, request).await.expect_problem(number, code);
            assert_eq!(extra.get("verification_status").and_then(Value::as_str), shown);
        }
    }
}

#[tokio::test]
async fn exhausted_verification_shows_no_attempts_and_no_sends() {
    let mut verifications = MockVerifications::new();
    verifications.expect_history().returning(|_| {
        let metadata = Some(Metadata::new(r#"{"user":"42"}"#.to_owned()));
        let origin = Origin::Test;
        Ok(Some(history(Verification { attempts: 5, sends: 4, metadata, origin, ..pending() })))
    });
    let router = Parts { verifications, ..parts() }.router();

    let told = ask(&router, get(&at(""))).await.json();

    assert_eq!((&told["attempts_left"], &told["sends_left"]), (&json!(0), &json!(0)));
    assert_eq!(told["resend_after"], Value::Null);
    assert_eq!((&told["metadata"], &told["test"]), (&json!({"user": "42"}), &json!(true)));
}

#[tokio::test]
async fn extra_message_shows_its_reason_and_takes_no_send() {
    let mut verifications = MockVerifications::new();
    verifications.expect_history().returning(|_| {
        let mut history = history(Verification { sends: 3, extra_sends: 2, ..pending() });
        let (gateway, reason) =
            ("main".parse().ok(), Some(EventReason::Rerouting(Rerouting::NoReceipt)));
        let rerouted = Event::new(EventKind::Rerouted, after(20));
        history.events.push(Event { gateway, reason, ..rerouted });
        Ok(Some(history))
    });
    let router = Parts { verifications, ..parts() }.router();

    let told = ask(&router, get(&at(""))).await.json();

    assert_eq!(told["sends_left"], 3);
    assert_ne!(told["resend_after"], Value::Null);
    let event = &told["events"][2];
    assert_eq!((&event["type"], &event["gateway"]), (&json!("rerouted"), &json!("main")));
    assert_eq!(event["reason"], "no-receipt");
    assert_eq!(told["events"][1].get("reason"), None);
}

#[tokio::test]
async fn metadata_is_shown_to_read_keys_and_to_the_key_that_started() {
    let key = |seed| ApiKeyText::generate(&mut StdRng::seed_from_u64(seed));
    let (own, other, admin) = (key(1), key(2), key(3));
    let known = [(&own, "send"), (&other, "send,check"), (&admin, "send,read")];
    let known = known.map(|(key, scopes)| ApiKey {
        id: key.id(),
        name: scopes.to_owned(),
        hash: key.hash(),
        scopes: scopes.parse().unwrap(),
        created_at: now(),
        last_used_at: None,
        revoked_at: None,
    });
    let mut keys = MockApiKeys::new();
    keys.expect_all().returning(move || Ok(known.clone().into()));
    let begun = Verification {
        metadata: Some(domain::Metadata::new(r#"{"user":"42"}"#.to_owned())),
        api_key: Some(own.id()),
        read_at: after(60),
        ..pending()
    };
    let mut outbox = MockOutbox::new();
    let already = begun.clone();
    outbox.expect_enqueue().returning(move |_| Ok(Enqueued::Pending(Box::new(already.clone()))));
    let mut verifications = MockVerifications::new();
    let [found, sent, told, ended] = std::array::from_fn(|_| begun.clone());
    verifications.expect_find().returning(move |_| Ok(Some(found.clone())));
    verifications.expect_resend().returning(move |_| Ok(Resent::Sent(Box::new(sent.clone()))));
    verifications.expect_history().returning(move |_| Ok(Some(history(told.clone()))));
    verifications.expect_cancel().returning(move |_| {
        let status = VerificationStatus::Canceled;
        Ok(Some(history(Verification { status, ..ended.clone() })))
    });
    let mut parts = Parts { verifications, keys, ..parts() }.with_outbox(outbox);
    parts.settings.auth = ApiAuth::V1;
    let router = parts.router();

    for (key, sees) in [(&own, true), (&other, false), (&admin, true)] {
        let shown = format!("Bearer {}", key.reveal());
        for path in [START.to_owned(), at("/resend"), at("/cancel")] {
            let told = ask(&router, with(post(&path, PHONE), "authorization", &shown)).await;
            assert_eq!(told.status / 100, 2, "{}", told.text);
            assert_eq!(told.json().get("metadata").is_some(), sees, "{path}: {}", told.text);
        }
    }
}
