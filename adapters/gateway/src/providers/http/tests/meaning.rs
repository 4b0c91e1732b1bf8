//! The outcomes of answers.

use super::*;

#[track_caller]
fn outcome(settings: &Json, status: u16, body: &str) -> String {
    match judge(&*made(&SPEC, settings), status, body) {
        Ok(accepted) => format!("accepted {:?}", accepted.reference.unwrap_or_default()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn error_inside_a_200_has_the_outcome_of_its_rule() {
    let settings = form_settings("https://a.example");
    for (body, expected) in [
        ("result=ok&msgid=a-1", "accepted \"a-1\""),
        ("result=error&err=11", "rejected: status 200, code 11"),
        ("result=error&err=20", "throttled: status 200, code 20"),
        ("result=error&err=31", "misconfigured: status 200, code 31"),
        ("result=error&err=40", "unroutable: status 200, code 40"),
        ("result=error&err=99", "ambiguous: status 200, code 99: no rule matches"),
        (
            "result=ok&msgid=",
            "ambiguous: status 200: no rule matches, and the answer has no message id",
        ),
        ("", "ambiguous: status 200: no rule matches"),
        ("<html>79991234567 482915</html>", "ambiguous: status 200: no rule matches"),
    ] {
        let outcome = outcome(&settings, 200, body);
        assert!(outcome.starts_with(expected), "{body}: {outcome}");
    }
}

#[test]
fn answers_in_json_are_judged_by_rules_and_then_by_status() {
    let settings = json_settings("https://a.example");
    for (status, body, expected) in [
        (200, r#"{"data":[{"id":17}]}"#, "accepted \"17\""),
        (202, r#"{"data":[{"id":"x"}]}"#, "accepted \"x\""),
        (200, r#"{"data":[{"id":17}],"error":null}"#, "accepted \"17\""),
        (200, r#"{"error":{"code":"bad_number"}}"#, "rejected: status 200, code bad_number"),
        (
            200,
            r#"{"data":[]}"#,
            "ambiguous: status 200: no rule matches, and the answer has no message id",
        ),
        (200, "", "ambiguous: status 200: the body cannot be read"),
        (200, "<html>", "ambiguous: status 200: the body cannot be read"),
        (204, "", "ambiguous: status 204: no rule matches, and the answer has no message id"),
        (302, "", "misconfigured: status 302"),
        (400, r#"{"error":{"code":"low_balance"}}"#, "misconfigured: status 400, code low_balance"),
        (400, r#"{"error":{"code":"bad"}}"#, "unroutable: status 400, code bad"),
        (400, "<html>", "unroutable: status 400"),
        (401, "", "misconfigured: status 401"),
        (404, "", "misconfigured: status 404"),
        (408, "", "ambiguous: status 408"),
        (
            422,
            r#"{"error":{"code":"region_blocked"}}"#,
            "unroutable: status 422, code region_blocked",
        ),
        (422, r#"{"error":{"code":"79991234567"}}"#, "unroutable: status 422"),
        (429, "", "throttled: status 429"),
        (500, r#"{"data":[{"id":17}]}"#, "ambiguous: status 500"),
        (503, "", "unavailable: status 503"),
    ] {
        assert_eq!(outcome(&settings, status, body), expected, "{status} {body}");
    }
}

#[test]
fn answer_whose_body_was_not_read_is_ambiguous_if_a_rule_or_the_id_needs_it() {
    let unread = |settings: &Json, status| judge_with(&*made(&SPEC, settings), status, &[], None);
    let by_rule = json!({
        "url": "https://a.example/x",
        "rules": [
            {"status": "2xx", "path": "error", "exists": true, "outcome": "rejected"},
            {"status": "2xx", "outcome": "accepted"},
        ],
    });
    let by_status = json!({"url": "https://a.example/x"});
    let by_body = json!({
        "url": "https://a.example/x", "answer": "text",
        "rules": [{"body_contains": "ERR", "outcome": "rejected"}],
    });

    let ambiguous = Err(SendError::Ambiguous("status 200: the body cannot be read".to_owned()));
    assert_eq!(unread(&json_settings("https://a.example"), 200), ambiguous);
    assert_eq!(unread(&by_rule, 200), ambiguous);
    assert_eq!(unread(&by_body, 200), ambiguous);
    assert_eq!(unread(&by_status, 200), Ok(Accepted::default()));
    assert_eq!(unread(&by_rule, 400), Err(SendError::Unroutable("status 400".to_owned())));
    assert_eq!(judge(&*made(&SPEC, &by_rule), 200, "{}"), Ok(Accepted::default()));
}

#[test]
fn first_rule_that_fits_counts_and_has_the_retry_time() {
    let settings = json!({
        "url": "https://a.example/x",
        "rules": [
            {"status": [500, "502-504"], "path": "busy", "equals": true, "outcome": "throttled"},
            {"status": 500, "outcome": "unavailable"},
            {"path": "done", "equals": [1, "yes"], "outcome": "accepted"},
            {"status": "2xx", "path": "text", "contains": "queue", "outcome": "ambiguous"},
            {"status": 200, "path": "text", "exists": false, "outcome": "misconfigured"},
        ],
    });
    for (status, body, expected) in [
        (500, r#"{"busy":true}"#, "throttled: status 500"),
        (503, r#"{"busy":"true"}"#, "throttled: status 503"),
        (501, r#"{"busy":true}"#, "ambiguous: status 501"),
        (500, r#"{"busy":false}"#, "unavailable: status 500"),
        (500, "", "unavailable: status 500"),
        (400, r#"{"done":1}"#, "accepted \"\""),
        (200, r#"{"done":"yes"}"#, "accepted \"\""),
        (200, r#"{"text":"in the queue"}"#, "ambiguous: status 200"),
        (200, r#"{"text":"sent"}"#, "accepted \"\""),
        (200, "{}", "misconfigured: status 200"),
    ] {
        assert_eq!(outcome(&settings, status, body), expected, "{status} {body}");
    }
    let later = judge_with(
        &*made(&SPEC, &settings),
        500,
        &[("retry-after", "7")],
        Some(r#"{"busy":true}"#),
    );
    let retry_after = Some(Duration::from_secs(7));
    assert_eq!(later, Err(SendError::Throttled { detail: "status 500".to_owned(), retry_after }));
}

#[test]
fn rule_takes_the_wait_from_the_body_and_otherwise_from_the_header() {
    let settings = json!({
        "url": "https://a.example/x", "answer": "form",
        "rules": [
            {"path": "result", "equals": "busy", "outcome": "throttled", "retry_after": "again"},
            {"path": "result", "equals": "down", "outcome": "unavailable", "retry_after": "again"},
        ],
    });
    let provider = made(&SPEC, &settings);
    let wait = |headers: &[(&str, &str)], body: &str| match judge_with(
        &*provider,
        200,
        headers,
        Some(body),
    ) {
        Err(
            SendError::Throttled { retry_after, .. } | SendError::Unavailable { retry_after, .. },
        ) => retry_after.map(|wait| wait.as_millis()),
        other => panic!("{other:?}"),
    };
    let header: &[(&str, &str)] = &[("retry-after", "9")];

    for result in ["busy", "down"] {
        let body = |again: &str| format!("result={result}&again={again}");
        assert_eq!(wait(header, &body("7")), Some(7_000));
        assert_eq!(wait(&[], &body("0.25")), Some(250));
        assert_eq!(wait(&[], &body("9999999")), Some(86_400_000));
        for unusable in ["", "soon", "-1"] {
            assert_eq!(wait(header, &body(unusable)), Some(9_000));
            assert_eq!(wait(&[], &body(unusable)), None);
        }
    }
    let json = json!({
        "url": "https://a.example/x",
        "rules": [{"status": 429, "outcome": "throttled", "retry_after": "retry.in"}],
    });
    let later = judge(&*made(&SPEC, &json), 429, r#"{"retry":{"in":1.5}}"#);
    let retry_after = Some(Duration::from_millis(1_500));
    assert_eq!(later, Err(SendError::Throttled { detail: "status 429".to_owned(), retry_after }));
}

#[test]
fn id_follows_its_mark_in_a_text() {
    let settings = json!({
        "url": "https://a.example/x", "answer": "text", "message_id_after": "OK - ",
    });
    for (body, expected) in [
        ("OK - 17", "accepted \"17\""),
        ("+OK - a-1, 2 SMS\r\n", "accepted \"a-1\""),
        ("OK -  x;y", "accepted \"x\""),
        ("OK - ", "ambiguous: status 200: no rule matches, and the answer has no message id"),
        ("OK 17", "ambiguous: status 200: no rule matches, and the answer has no message id"),
    ] {
        assert_eq!(outcome(&settings, 200, body), expected, "{body}");
    }
    let unsent = json!({"url": "https://a.example/x"});
    assert_eq!(outcome(&unsent, 200, "whatever"), "accepted \"\"");
}

#[tokio::test]
async fn long_answer_and_lost_connection_are_ambiguous() {
    let huge = format!("{{\"data\":[{{\"id\":17}}],\"x\":\"{}\"}}", "x".repeat(100_000));
    for (reply, expected) in [
        (Reply::text(200, &huge), "ambiguous: status 200"),
        (Reply::Close, "ambiguous: no answer came back"),
        (Reply::text(200, r#"{"data":[{"id":17}]}"#), "17"),
    ] {
        let fake = Fake::scripted([reply]).await;
        let gateway = http_gateway(made(&SPEC, &json_settings(fake.url())), AMPLE);

        let outcome = match gateway.send(&sms()).await {
            Ok(accepted) => accepted.reference.unwrap(),
            Err(error) => error.to_string(),
        };

        assert!(outcome.starts_with(expected), "{outcome}");
    }
}
