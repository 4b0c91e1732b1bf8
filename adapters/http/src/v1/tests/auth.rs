use super::*;
use crate::v1::endpoint::Method;

#[tokio::test(start_paused = true)]
async fn body_of_an_unauthorized_request_is_read_for_one_second_at_most() {
    let mut parts = parts();
    parts.settings.auth = ApiAuth::V1;
    let router = parts.router();
    let body = futures_util::stream::pending::<Result<axum::body::Bytes, std::io::Error>>();
    let mut request = post(START, "");
    *request.body_mut() = Body::from_stream(body);
    let begun = tokio::time::Instant::now();

    let told = ask(&router, request).await;

    told.expect_problem(401, "unauthorized");
    assert_eq!(begun.elapsed().as_secs(), 1);
}

#[tokio::test]
async fn every_operation_requires_its_scope() {
    let key = |scope: Scope| ApiKeyText::generate(&mut StdRng::seed_from_u64(scope as u64));
    let mut keys = MockApiKeys::new();
    keys.expect_all().returning(move || {
        let known = |scope: Scope| ApiKey {
            id: key(scope).id(),
            name: scope.as_str().to_owned(),
            hash: key(scope).hash(),
            scopes: scope.as_str().parse().unwrap(),
            created_at: now(),
            last_used_at: None,
            revoked_at: None,
        };
        Ok(Scope::ALL.map(known).into())
    });
    let (outbox, stored) = accepting();
    let mut verifications = trying(|| wrong(1));
    verifications.expect_history().returning(|_| Ok(Some(history(pending()))));
    verifications.expect_cancel().returning(|_| {
        let status = VerificationStatus::Canceled;
        Ok(Some(history(Verification { status, ..pending() })))
    });
    verifications
        .expect_find()
        .returning(|_| Ok(Some(Verification { read_at: after(60), ..pending() })));
    verifications.expect_resend().returning(|_| Ok(Resent::Sent(Box::new(pending()))));
    verifications.expect_note_receipt().returning(|_, _| Ok(Noted::Repeated));
    let mut parts = Parts { verifications, keys, ..parts() }.with_outbox(outbox);
    parts.settings.auth = ApiAuth::V1;
    let router = parts.router();
    let check = r#"{"phone":"79991234567","code":"000000"}"#;
    let request = |endpoint: &Endpoint| {
        let path = endpoint.route.replace("{id}", ID);
        let body = match endpoint.operation_id {
            "startVerification" => PHONE,
            "noteReceipt" => RECEIPT,
            _ => check,
        };
        match endpoint.method {
            Method::Get => get(&path),
            Method::Post => post(&path, body),
        }
    };

    for endpoint in ENDPOINTS {
        let told = ask(&router, request(endpoint)).await;
        told.expect_problem(401, "unauthorized");
        assert_eq!(told.headers["www-authenticate"], "Bearer");
        for bad in ["Bearer", "Bearer msk_1", "Basic Zm9v"] {
            let told = ask(&router, with(request(endpoint), "authorization", bad)).await;
            told.expect_problem(401, "unauthorized");
        }
        for scope in Scope::ALL {
            let shown = format!("Bearer {}", key(scope).reveal());
            let told = ask(&router, with(request(endpoint), "authorization", &shown)).await;
            if scope == endpoint.scope || scope == Scope::Admin {
                assert_eq!(told.status, endpoint.success.as_u16(), "{}", told.text);
            } else {
                let extra = told.expect_problem(403, "forbidden");
                assert_eq!(extra["scope"], endpoint.scope.as_str());
            }
        }
    }

    let whose: Vec<_> =
        stored.lock().unwrap().iter().map(|send| send.verification.api_key).collect();
    assert_eq!(whose, [Some(key(Scope::Send).id()), Some(key(Scope::Admin).id())]);
    let told = ask(&router, post(START, "{")).await;
    told.expect_problem(401, "unauthorized");
    assert_eq!(ask(&router, get("/openapi.json")).await.status, 200);
}

#[tokio::test]
async fn unreadable_api_keys_are_503() {
    let mut keys = MockApiKeys::new();
    keys.expect_all().returning(|| Err(StoreError::Full));
    let mut parts = Parts { keys, ..parts() };
    parts.settings.auth = ApiAuth::V1;
    let shown = ApiKeyText::generate(&mut StdRng::seed_from_u64(1)).reveal();

    let request = with(post(START, PHONE), "authorization", &format!("Bearer {shown}"));
    let told = ask(&parts.router(), request).await;

    told.expect_problem(503, "temporary-reduced-capacity");
}
