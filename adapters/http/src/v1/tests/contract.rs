use super::*;

#[tokio::test]
async fn answers_match_the_contract_to_the_byte() {
    let (outbox, stored) = accepting();
    let mut verifications = checking(|attempt| compared(attempt, 2));
    verifications.expect_history().returning(|_| Ok(Some(history(pending()))));
    verifications
        .expect_find()
        .returning(|_| Ok(Some(Verification { read_at: after(60), ..pending() })));
    verifications.expect_resend().returning(|_| {
        let sent = Verification { sends: 2, sent_at: after(60), ..pending() };
        Ok(Resent::Sent(Box::new(sent)))
    });
    verifications.expect_cancel().times(2).returning(|_| {
        let status = VerificationStatus::Canceled;
        Ok(Some(history(Verification { status, secret: None, ..pending() })))
    });
    let router = Parts { verifications, ..parts() }.with_outbox(outbox).router();

    let started = ask(&router, post(START, PHONE)).await;
    let id = VerificationId::of(stored.lock().unwrap()[0].message.id).to_string();
    let expected = json!({
        "id": id, "status": "pending", "phone": "+7999*****67", "channel": "sms",
        "expires_at": "2026-11-23T10:10:00.123Z", "resend_after": "2026-11-23T10:01:00.123Z",
        "attempts_left": 5, "sends_left": 3,
        "events": [
            {"type": "created", "at": "2026-11-23T10:00:00.123Z"},
            {"type": "queued", "at": "2026-11-23T10:00:00.123Z"},
        ],
    });
    started.expect(202, &expected);
    assert_eq!(started.headers["location"], format!("/v1/verifications/{id}"));

    let seen = json!({
        "id": ID, "status": "pending", "phone": "+7999*****67", "channel": "telegram",
        "expires_at": "2026-11-23T10:10:00.123Z", "resend_after": "2026-11-23T10:01:00.123Z",
        "attempts_left": 5, "sends_left": 3,
        "events": [
            {"type": "created", "at": "2026-11-23T10:00:00.123Z"},
            {
                "type": "sent", "at": "2026-11-23T10:00:01.123Z", "gateway": "main",
                "channel": "telegram",
            },
        ],
    });
    ask(&router, get(&at(""))).await.expect(200, &seen);
    ask(&router, post(&at("/resend"), Body::empty())).await.expect(202, &seen);
    let mut canceled = seen;
    canceled["status"] = json!("canceled");
    canceled["resend_after"] = Value::Null;
    ask(&router, post(&at("/cancel"), Body::empty())).await.expect(200, &canceled);
    ask(&router, post(&at("/cancel"), Body::empty())).await.expect(200, &canceled);

    let right = r#"{"valid":true,"status":"approved"}"#;
    let told = ask(&router, post(&at("/checks"), r#"{"code":"482915"}"#)).await;
    assert_eq!((told.status, &*told.text), (200, right));
    let told = ask(&router, post(&at("/checks"), r#"{"code":"000000"}"#)).await;
    let wrong = r#"{"valid":false,"status":"pending","attempts_left":3}"#;
    assert_eq!((told.status, &*told.text), (200, wrong));
    let check = "/v1/verifications/check";
    let told = ask(&router, post(check, r#"{"phone":"79991234567","code":"482915"}"#)).await;
    assert_eq!((told.status, &*told.text), (200, right));
    let told = ask(&router, post(check, r#"{"phone":"79991234567","code":"000000"}"#)).await;
    assert_eq!((told.status, &*told.text), (200, r#"{"valid":false}"#));
}
