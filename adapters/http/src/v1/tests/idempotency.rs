use super::*;

/// Answers in memory.
#[derive(Clone, Default)]
pub(super) struct Book {
    entries: Arc<Mutex<HashMap<[u8; 32], Entry>>>,
    /// What every takeover finds done.
    done: Option<VerificationId>,
}

#[derive(Clone)]
struct Entry {
    body: [u8; 32],
    answer: Option<Answer>,
    is_given_up: bool,
}

impl Answers for Book {
    async fn begin(&self, key: [u8; 32], body: [u8; 32]) -> Result<Begun, StoreError> {
        let mut entries = self.entries.lock().unwrap();
        let claim = AnswerClaim { key, holder: [1; 16], first: [1; 16], done: None };
        if let Some(entry) = entries.get_mut(&key) {
            if entry.is_given_up && entry.body == body {
                entry.is_given_up = false;
                return Ok(Begun::Ours(AnswerClaim { holder: [2; 16], ..claim }));
            }
            return Ok(match &entry.answer {
                _ if entry.body != body => Begun::Other,
                None => Begun::Running,
                Some(answer) => Begun::Answered(answer.clone()),
            });
        }
        entries.insert(key, Entry { body, answer: None, is_given_up: false });
        Ok(Begun::Ours(claim))
    }

    async fn done(&self, _: &AnswerClaim) -> Result<Option<VerificationId>, StoreError> {
        Ok(self.done)
    }

    async fn keep(&self, claim: &AnswerClaim, answer: &Answer) -> Result<(), StoreError> {
        let mut entries = self.entries.lock().unwrap();
        entries.get_mut(&claim.key).unwrap().answer = Some(answer.clone());
        Ok(())
    }

    async fn forget(&self, claim: &AnswerClaim) -> Result<(), StoreError> {
        self.entries.lock().unwrap().remove(&claim.key);
        Ok(())
    }

    async fn give_up(&self, claim: &AnswerClaim) -> Result<(), StoreError> {
        self.entries.lock().unwrap().get_mut(&claim.key).unwrap().is_given_up = true;
        Ok(())
    }
}

#[tokio::test]
async fn repeated_check_spends_no_attempt() {
    let mut verifications = MockVerifications::new();
    verifications.expect_newest().once().returning(|_| Ok(newest()));
    verifications.expect_check().times(2).returning(|_, _| Ok(wrong(1)));
    let router = Parts { verifications, ..parts() }.with_answers(Book::default()).router();
    let by_phone = r#"{"phone":"79991234567","code":"000000"}"#;

    for (path, body) in
        [(at("/checks"), r#"{"code":"000000"}"#), ("/v1/verifications/check".to_owned(), by_phone)]
    {
        let first = ask(&router, keyed(post(&path, body))).await;
        let again = ask(&router, keyed(post(&path, body))).await;

        assert_eq!((first.status, &first.text), (200, &again.text));
        assert!(!first.headers.contains_key("idempotent-replayed"));
        assert_eq!(
            (again.status, &again.headers["idempotent-replayed"]),
            (200, &"true".parse().unwrap())
        );
        assert_eq!(again.headers[CONTENT_TYPE], "application/json");
    }
}

#[tokio::test]
async fn repeated_start_and_resend_send_once() {
    let mut outbox = MockOutbox::new();
    outbox.expect_enqueue().once().returning(|_| Ok(Enqueued::Accepted { at: now() }));
    let mut verifications = MockVerifications::new();
    verifications
        .expect_find()
        .returning(|_| Ok(Some(Verification { read_at: after(60), ..pending() })));
    verifications.expect_resend().once().returning(|_| Ok(Resent::Sent(Box::new(pending()))));
    verifications.expect_history().returning(|_| Ok(Some(history(pending()))));
    let parts = Parts { verifications, ..parts() }.with_outbox(outbox);
    let router = parts.with_answers(Book::default()).router();

    for path in [START.to_owned(), at("/resend")] {
        let first = ask(&router, keyed(post(&path, PHONE))).await;
        let again = ask(&router, keyed(post(&path, PHONE))).await;

        assert_eq!((first.status, again.status, &first.text), (202, 202, &again.text));
        assert_eq!(first.headers.get("location"), again.headers.get("location"));
        assert_eq!(again.headers["idempotent-replayed"], "true");
    }
}

#[tokio::test]
async fn retry_after_503_finds_what_the_first_request_stored() {
    let mut outbox = MockOutbox::new();
    outbox.expect_enqueue().once().returning(|_| Err(StoreError::Unavailable("late".into())));
    let begun = VerificationId::of_drawn([1; 16]);
    let mut verifications = MockVerifications::new();
    verifications
        .expect_history()
        .withf(move |id| *id == begun)
        .once()
        .returning(move |id| Ok(Some(history(Verification { id, ..pending() }))));
    let parts = Parts { verifications, ..parts() }.with_outbox(outbox);
    let router = parts.with_answers(Book::default()).router();

    let first = ask(&router, keyed(post(START, PHONE))).await;
    first.expect_problem(503, "temporary-reduced-capacity");
    let again = ask(&router, keyed(post(START, PHONE))).await;

    assert_eq!((again.status, &again.json()["id"]), (202, &json!(begun.to_string())));
    assert_eq!(again.headers["location"], format!("/v1/verifications/{begun}"));
}

/// A statement that timed out for its caller may still commit.
#[tokio::test]
async fn takeover_learns_that_the_earlier_check_was_right() {
    let mut verifications = MockVerifications::new();
    let mut tries = 0;
    verifications.expect_check().times(2).returning(move |_, _| {
        tries += 1;
        if tries == 1 {
            Err(StoreError::Unavailable("late".into()))
        } else {
            Ok(CheckOutcome::Approved)
        }
    });
    let book = Book { done: ID.parse().ok(), ..Book::default() };
    let router = Parts { verifications, ..parts() }.with_answers(book).router();
    let check = || keyed(post(&at("/checks"), r#"{"code":"482915"}"#));

    ask(&router, check()).await.expect_problem(503, "temporary-reduced-capacity");
    let told = ask(&router, check()).await;

    assert_eq!((told.status, &told.json()["valid"]), (200, &json!(true)));
}

#[tokio::test]
async fn other_body_under_the_same_key_is_refused() {
    let mut verifications = MockVerifications::new();
    verifications.expect_check().once().returning(|_, _| Ok(wrong(1)));
    let router = Parts { verifications, ..parts() }.with_answers(Book::default()).router();

    ask(&router, keyed(post(&at("/checks"), r#"{"code":"000000"}"#))).await;
    let told = ask(&router, keyed(post(&at("/checks"), r#"{"code":"000001"}"#))).await;

    assert!(told.expect_problem(422, "idempotency-mismatch").is_empty());
}

#[tokio::test]
async fn validation_error_is_kept_and_temporary_errors_are_not() {
    let mut verifications = MockVerifications::new();
    verifications.expect_history().returning(|_| Ok(None));
    let parts = Parts { verifications, ..parts() }.with_outbox(Rounds::default());
    let router = parts.with_answers(Book::default()).router();

    ask(&router, keyed(post(START, PHONE))).await.expect_problem(429, "quota-exceeded");
    ask(&router, keyed(post(START, PHONE))).await.expect_problem(503, "temporary-reduced-capacity");
    ask(&router, keyed(post(START, PHONE))).await.expect_problem(500, "internal");
    let wrong_kind = Request::post(START).header(CONTENT_TYPE, "text/plain");
    let told = ask(&router, keyed(wrong_kind.body(PHONE.into()).unwrap())).await;
    told.expect_problem(415, "unsupported-media-type");
    assert_eq!(ask(&router, keyed(post(START, PHONE))).await.status, 202);
    let again = ask(&router, keyed(post(START, PHONE))).await;
    assert_eq!(
        (again.status, again.headers["idempotent-replayed"].as_bytes()),
        (202, &b"true"[..])
    );

    // A rule may change, and the guard opens again by itself.
    let premium = r#"{"phone":"+19005551234"}"#;
    let second = |request| with(request, "idempotency-key", "k-2");
    for _ in 0..2 {
        let told = ask(&router, second(post(START, premium))).await;
        told.expect_problem(403, "number-type-not-allowed");
        assert!(!told.headers.contains_key("idempotent-replayed"));
    }

    let third = |request| with(request, "idempotency-key", "k-3");
    ask(&router, third(post(START, "{}"))).await.expect_problem(422, "invalid");
    let again = ask(&router, third(post(START, "{}"))).await;
    again.expect_problem(422, "invalid");
    assert_eq!(again.headers["idempotent-replayed"], "true");
}

/// Limited, then full, then a panic, then accepting.
#[derive(Default)]
struct Rounds(std::sync::atomic::AtomicU32);

impl Outbox for Rounds {
    async fn enqueue(&self, _: NewSend) -> Result<Enqueued, StoreError> {
        match self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => Ok(Enqueued::Limited(vec![violation("phone", 5, 3_600, 1)])),
            1 => Err(StoreError::Full),
            2 => panic!("on purpose"),
            _ => Ok(Enqueued::Accepted { at: now() }),
        }
    }
}

#[tokio::test]
async fn invalid_key_is_refused_where_keys_are_honoured() {
    let mut verifications = MockVerifications::new();
    verifications.expect_history().returning(|_| Ok(Some(history(pending()))));
    let router = Parts { verifications, ..parts() }.router();

    let told = ask(&router, with(post(START, PHONE), "idempotency-key", "a b")).await;
    let extra = told.expect_problem(422, "invalid");
    assert_eq!(extra["errors"][0]["header"], "idempotency-key");
    assert!(extra["errors"][0].get("pointer").is_none());

    let told = ask(&router, with(get(&at("")), "idempotency-key", "a b")).await;
    assert_eq!(told.status, 200);
}

#[tokio::test]
async fn key_is_503_if_the_database_is_busy() {
    let mut answers = MockAnswers::new();
    answers.expect_begin().returning(|_, _| Err(StoreError::Full));
    let router = Parts { answers, ..parts() }.router();

    let told = ask(&router, keyed(post(START, PHONE))).await;

    told.expect_problem(503, "temporary-reduced-capacity");
}

/// An outbox that stores a send when the test opens it.
struct Gate {
    entered: mpsc::UnboundedSender<()>,
    open: Arc<Notify>,
}

impl Outbox for Gate {
    async fn enqueue(&self, _: NewSend) -> Result<Enqueued, StoreError> {
        self.entered.send(()).unwrap();
        self.open.notified().await;
        Ok(Enqueued::Accepted { at: now() })
    }
}

#[tokio::test]
async fn disconnect_does_not_interrupt_the_work() {
    let (sender, mut entered) = mpsc::unbounded_channel();
    let open = Arc::new(Notify::new());
    let gate = Gate { entered: sender, open: Arc::clone(&open) };
    let book = Book::default();
    let router = parts().with_outbox(gate).with_answers(book.clone()).router();

    let leaving = ask(&router, keyed(post(START, PHONE)));
    tokio::select! {
        told = leaving => panic!("{told:?}"),
        entered = entered.recv() => entered.unwrap(),
    }
    let told = ask(&router, keyed(post(START, PHONE))).await;
    assert!(told.expect_problem(409, "idempotency-running").is_empty());
    assert_eq!(told.headers["retry-after"], "1");
    open.notify_one();

    let kept = || book.entries.lock().unwrap().values().any(|entry| entry.answer.is_some());
    tokio::time::timeout(Duration::from_secs(20), async {
        while !kept() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let told = ask(&router, keyed(post(START, PHONE))).await;
    assert_eq!((told.status, told.headers["idempotent-replayed"].as_bytes()), (202, &b"true"[..]));
}
