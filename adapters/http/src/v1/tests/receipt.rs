use super::*;

#[tokio::test]
async fn receipt_is_204_for_a_known_message_and_404_otherwise() {
    let id: VerificationId = ID.parse().unwrap();
    let undelivered = RECEIPT.replace("delivered", "undelivered");
    for (body, receipt, known) in [
        (RECEIPT, Receipt::Delivered, true),
        (RECEIPT, Receipt::Delivered, false),
        (&*undelivered, Receipt::Undelivered, true),
    ] {
        let mut verifications = MockVerifications::new();
        verifications
            .expect_note_receipt()
            .withf(move |message, told| *message == id.message(1) && *told == receipt)
            .once()
            .returning(move |_, _| Ok(if known { Noted::Repeated } else { Noted::Unknown }));
        let router = Parts { verifications, ..parts() }.router();

        let told = ask(&router, post("/v1/receipts", body.to_owned())).await;

        if known {
            assert_eq!((told.status, &*told.text), (204, ""));
            assert!(!told.headers.contains_key(CONTENT_TYPE));
        } else {
            told.expect_problem(404, "not-found");
        }
    }
}

#[tokio::test]
async fn invalid_receipt_is_refused() {
    let router = parts().router();
    for (body, pointers) in [
        ("{}", &["/id", "/status"][..]),
        (r#"{"id":1,"status":null}"#, &["/id", "/status"]),
        (r#"{"id":"ver_6f2c1a529d3f4f0e8a550d2f6f3b9c00","status":"delivered"}"#, &["/id"]),
        (r#"{"id":"6f2c1a52-9d3f-4f0e-8a55-0d2f6f3b9c01","status":"sent"}"#, &["/status"]),
    ] {
        assert_eq!(ask(&router, post("/v1/receipts", body)).await.pointers(), pointers);
    }
    let told = ask(&router, post("/v1/receipts", "[]")).await;
    told.expect_problem(400, "malformed-body");
}

#[tokio::test]
async fn receipt_is_503_if_the_database_is_busy() {
    let mut verifications = MockVerifications::new();
    verifications.expect_note_receipt().returning(|_, _| Err(StoreError::Full));
    let router = Parts { verifications, ..parts() }.router();

    let told = ask(&router, post("/v1/receipts", RECEIPT)).await;

    told.expect_problem(503, "temporary-reduced-capacity");
    assert!(told.headers.contains_key("retry-after"));
}
