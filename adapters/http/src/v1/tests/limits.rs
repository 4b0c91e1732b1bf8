use super::*;

#[tokio::test]
async fn exceeded_limit_is_described_by_the_headers_of_draft_11() {
    let mut outbox = MockOutbox::new();
    outbox.expect_enqueue().returning(|_| {
        let phone = violation("phone", 5, 3_600, 1_740);
        Ok(Enqueued::Limited(vec![phone, violation("ip", 50, 86_400, 2)]))
    });
    let router = parts().with_outbox(outbox).router();

    let body = r#"{"phone":"+79991234567","ip":"203.0.113.7"}"#;
    let told = ask(&router, post(START, body)).await;

    let extra = told.expect_problem(429, "quota-exceeded");
    assert_eq!(
        told.json()["type"],
        "https://iana.org/assignments/http-problem-types#quota-exceeded"
    );
    assert_eq!(extra["violated-policies"], json!(["phone-1h", "ip-1d"]));
    assert_eq!(extra["retry_after"], 1_740);
    assert_eq!(told.headers["retry-after"], "1740");
    assert_eq!(
        told.headers["ratelimit-policy"],
        "\"phone-1h\";q=5;w=3600, \"phone-1d\";q=10;w=86400, \"prefix-1h\";q=1000;w=3600, \
         \"ip-1h\";q=10;w=3600, \"ip-1d\";q=50;w=86400"
    );
    assert_eq!(told.headers["ratelimit"], "\"phone-1h\";r=0;t=1740, \"ip-1d\";r=0;t=2");
}

#[tokio::test]
async fn early_resend_and_exhausted_check_say_when_to_retry() {
    let mut verifications = trying(|| CheckOutcome::Exhausted {
        retry_after: Duration::from_millis(300_001),
        ttl: Duration::from_secs(600),
    });
    verifications
        .expect_find()
        .returning(|_| Ok(Some(Verification { read_at: after(20), ..pending() })));
    let router = Parts { verifications, ..parts() }.router();

    let early = ask(&router, post(&at("/resend"), Body::empty())).await;
    let extra = early.expect_problem(429, "quota-exceeded");
    assert_eq!(extra["violated-policies"], json!(["resend"]));
    assert_eq!(early.headers["retry-after"], "40");
    assert_eq!(early.headers["ratelimit"], "\"resend\";r=0;t=40");
    let policies = early.headers["ratelimit-policy"].to_str().unwrap();
    assert!(policies.ends_with(", \"resend\";q=1;w=60"), "{policies}");

    let spent = ask(&router, post(&at("/checks"), r#"{"code":"482915"}"#)).await;
    let extra = spent.expect_problem(429, "quota-exceeded");
    assert_eq!(extra["violated-policies"], json!(["attempts"]));
    assert_eq!(spent.headers["retry-after"], "301");
    assert_eq!(
        spent.headers["ratelimit-policy"],
        "\"check-1h\";q=10;w=3600, \"check-1d\";q=50;w=86400, \"attempts\";q=5;w=600"
    );

    let limited = || CheckOutcome::Limited(vec![violation("check", 10, 3_600, 9)]);
    let router = Parts { verifications: trying(limited), ..parts() }.router();
    let body = r#"{"phone":"79991234567","code":"482915"}"#;
    let told = ask(&router, post("/v1/verifications/check", body)).await;
    let extra = told.expect_problem(429, "quota-exceeded");
    assert_eq!(extra["violated-policies"], json!(["check-1h"]));
    assert_eq!(told.headers["retry-after"], "9");
}

#[tokio::test]
async fn each_limit_that_a_request_has_reached_is_counted_once() {
    let mut outbox = MockOutbox::new();
    outbox.expect_enqueue().returning(|_| {
        let hour = violation("phone", 5, 3_600, 1_740);
        let day = violation("phone", 9, 86_400, 1_740);
        Ok(Enqueued::Limited(vec![hour, day, violation("ip", 50, 86_400, 2)]))
    });
    let mut parts = parts().with_outbox(outbox);
    let device: domain::CustomLimit = "my-device".parse().unwrap();
    parts.settings.limits.custom.insert(device, "3/1h".parse().unwrap());
    let (router, registry) = parts.counted();

    ask(&router, post(START, r#"{"phone":"+79991234567"}"#)).await;

    let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    for (limit, count) in [("phone", 1), ("ip", 1), ("prefix", 0), ("my-device", 0)] {
        let line =
            format!("messager_limits_reached_total{{limit=\"{limit}\",origin=\"v1\"}} {count}\n");
        assert!(text.contains(&line), "{line} is not in {text}");
    }
}
