use super::*;

#[test]
fn typed_codes_are_accepted() {
    for code in ["482915", "٤٨٢٩١٥", "482 915", "482-915\r\n", "\u{200e}482915"] {
        let read = crate::v1::check::parse(json!({ "code": code }).to_string().as_bytes()).unwrap();
        assert_eq!(read.as_str(), "482915", "{}", code.escape_unicode());
    }
}

#[tokio::test]
async fn wrong_code_and_unknown_phone_have_the_same_answer() {
    let check = || post("/v1/verifications/check", r#"{"phone":"79991234567","code":"000000"}"#);
    let right = || post("/v1/verifications/check", r#"{"phone":"79991234567","code":"482915"}"#);
    let first = Parts { verifications: trying(|| wrong(1)), ..parts() }.router();
    let fifth = Parts { verifications: trying(|| wrong(5)), ..parts() }.router();
    let mut unknown = MockVerifications::new();
    unknown.expect_newest().returning(|_| Ok(Newest::default()));
    unknown.expect_check().returning(|_, _| Ok(CheckOutcome::Nothing));
    let unknown = Parts { verifications: unknown, ..parts() }.router();
    let pepper = "gone".parse().unwrap();
    let gone = trying(move || CheckOutcome::Wrong { attempts: 1, pepper: KeyId::clone(&pepper) });
    let gone = Parts { verifications: gone, ..parts() }.router();

    let expected = ask(&first, check()).await;
    let others = [
        ask(&fifth, check()).await,
        ask(&unknown, check()).await,
        ask(&unknown, right()).await,
        ask(&gone, right()).await,
    ];

    assert_eq!((expected.status, &*expected.text), (200, r#"{"valid":false}"#));
    for told in others {
        assert_eq!((told.status, told.text), (expected.status, expected.text.clone()));
        assert_eq!(told.headers, expected.headers);
    }
}

#[tokio::test]
async fn check_by_phone_accepts_numbers_that_only_api_accepts() {
    let mut verifications = MockVerifications::new();
    verifications
        .expect_newest()
        .withf(|phone| *phone == "89999999999".parse().unwrap())
        .returning(|_| Ok(Newest::default()));
    verifications.expect_check().returning(|_, _| Ok(CheckOutcome::Nothing));
    let router = Parts { verifications, ..parts() }.router();

    let body = r#"{"phone":"89999999999","code":"482915"}"#;
    let told = ask(&router, post("/v1/verifications/check", body)).await;

    assert_eq!((told.status, &*told.text), (200, r#"{"valid":false}"#));
}

#[tokio::test]
async fn checks_are_counted_by_result() {
    let verifications = checking(|attempt| compared(attempt, 1));
    let (router, registry) = Parts { verifications, ..parts() }.counted();

    for code in ["482915", "000000", "000000"] {
        let body = format!(r#"{{"phone":"79991234567","code":"{code}"}}"#);
        ask(&router, post("/v1/verifications/check", body)).await;
    }

    let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    for line in [r#"{result="approved"} 1"#, r#"{result="wrong"} 2"#] {
        assert!(text.contains(&format!("messager_checks_total{line}\n")), "{text}");
    }
}

#[tokio::test]
async fn verifications_are_counted_by_region_once_they_start_and_once_they_are_approved() {
    let verifications = checking(|attempt| compared(attempt, 1));
    let (router, registry) =
        Parts { verifications, ..parts() }.with_outbox(accepting().0).counted();
    let shown = || TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    let series = |region: &str, event: &str| {
        format!(r#"messager_verifications_total{{event="{event}",origin="v1",region="{region}"}} "#)
    };
    assert!(shown().contains(&format!("{}0\n", series("unknown", "started"))), "{}", shown());

    for body in [r#"{"phone":"+79991234567"}"#, r#"{"phone":"+4915112345678"}"#] {
        assert_eq!(ask(&router, post(START, body)).await.status, 202);
    }
    ask(&router, post(&at("/checks"), r#"{"code":"482915"}"#)).await;

    for (region, event, count) in
        [("RU", "started", 1), ("RU", "approved", 1), ("DE", "started", 1), ("DE", "approved", 0)]
    {
        let line = format!("{}{count}\n", series(region, event));
        assert!(shown().contains(&line), "{line} is not in {}", shown());
    }
}
