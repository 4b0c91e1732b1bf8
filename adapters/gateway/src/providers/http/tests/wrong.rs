//! Settings that are wrong.

use super::*;

#[track_caller]
fn check(more: &Json, expected: &[&str]) {
    let mut settings = json!({"url": "https://a.example/x"});
    settings.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());

    let problems = problems(&SPEC, &settings);

    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.starts_with(expected), "{problem:?} instead of {expected:?}");
    }
}

#[test]
fn url_has_a_fixed_host_and_no_credentials() {
    let expected = &["url must begin with http:// or https:// and a fixed host"];
    for url in [
        "a.example/x",
        "ftp://a.example/",
        "https://{{ username }}.example/",
        "https://a.example{{ id }}",
        "https://a.example:{{ id }}/",
        "https://u:p@a.example/",
        "https://a.example:0/",
        "https://a.example/#{{ id }}",
        "{{ callback }}",
    ] {
        check(&json!({"url": url}), expected);
    }
    for url in ["http://a.example", "https://a.example:81/{{ id }}", "https://a.example?x={{ id }}"]
    {
        check(&json!({"url": url}), &[]);
    }
    check(&json!({"url": ""}), &["url is missing"]);
    check(&json!({"url": "https://a.example/a b"}), &["url gives no URL"]);
}

#[test]
fn each_bad_template_has_its_place() {
    check(
        &json!({
            "url": "https://a.example/{{ idd }}",
            "query": {"a": "{{ phone", "b": {"c": "x"}},
            "headers": {"x-a": "{{ x }}", "x b": "1", "x-c": ["1"]},
            "body": {"deep": [{"er": "{{ phone | nothing }}"}], "also": "{% if %}"},
            "signature": {"header": "x-s", "sign": "{{ headers }}"},
            "secret": "s",
        }),
        &[
            "url uses idd, which does not exist; the variables are phone, e164, text",
            "query.a is not a template: ",
            "headers.x-a uses x, which does not exist",
            "body.also is not a template: ",
            "signature.sign uses headers, which does not exist",
        ],
    );
    check(&json!({"query": {"b": {"c": "x"}}}), &["query.b must be a text, or a list of texts"]);
    check(
        &json!({"headers": {"x b": "1", "x-c": ["1"]}}),
        &["headers.x b is not the name of a header", "headers.x-c must be a text"],
    );
}

#[test]
fn template_that_cannot_be_rendered_is_found_at_the_start() {
    check(
        &json!({"body": {"a": ["{{ phone | nothing }}"], "b": "{{ text | int }}"}}),
        &["body.a[1] cannot be rendered: ", "body.b cannot be rendered: "],
    );
    // Only a text in Cyrillic takes this branch.
    check(
        &json!({"body": {"a": "{% if unicode %}{{ 1 // 0 }}{% endif %}"}}),
        &["body.a cannot be rendered: "],
    );
}

#[test]
fn what_belongs_together_is_checked() {
    check(&json!({"auth": "basic"}), &["username is missing: auth = \"basic\" needs it"]);
    check(&json!({"auth": "bearer"}), &["token is missing: auth = \"bearer\" needs it"]);
    check(&json!({"auth": "digest"}), &["auth must be one of: none, basic, bearer"]);
    check(
        &json!({"method": "GET", "body": {"a": 1}}),
        &["body must not be set with the method GET"],
    );
    check(&json!({"method": "DELETE"}), &["method must be one of: POST, GET, PUT, PATCH"]);
    check(&json!({"deduplicates": true}), &["deduplicates needs {{ id }} in the request"]);
    check(&json!({"deduplicates": true, "query": {"key": "{{ id }}"}}), &[]);
    check(
        &json!({"message_id": "a", "message_id_after": "b"}),
        &["message_id_after must not be set together with message_id"],
    );
    check(&json!({"message_id": "a..b"}), &["message_id must be a path such as data.0.id"]);
    check(
        &json!({"answer": "text", "error_code": "a"}),
        &["error_code needs an answer in JSON or as a form"],
    );
    check(&json!({"body": "{\"a\": {{ phone }}}"}), &["body must be a table or a list"]);
    check(&json!({"body": "{\"a\": \"{{ phone }}\"}"}), &[]);
    check(&json!({"body_format": "form", "body": [1]}), &["body must be a table"]);
    check(&json!({"bodi": {}}), &["bodi is not a field; the fields are url, method"]);
}

#[test]
fn each_bad_rule_has_its_place() {
    check(&json!({"rules": {}}), &["rules must be a list of tables"]);
    check(
        &json!({"rules": [
            {"outcome": "rejected"},
            {"status": "5x", "outcome": "maybe"},
            {"status": 200},
            {"path": "a", "outcome": "accepted"},
            {"equals": 1, "outcome": "accepted"},
            {"path": "a", "equals": {}, "exists": "yes", "outcome": "accepted"},
            "x",
            {"status": 200, "outcome": "accepted", "kontains": "x"},
            {"status": 200, "outcome": "rejected", "retry_after": "again"},
            {"status": 200, "outcome": "throttled", "retry_after": "a..b"},
        ]}),
        &[
            "rules[1] has no condition, so it fits every answer; a condition is status, path",
            "rules[2].status must be a status such as 400",
            "rules[2].outcome must be one of: accepted, rejected",
            "rules[3].outcome is missing",
            "rules[4].path needs one of: equals, contains, exists",
            "rules[4] has no condition",
            "rules[5].path is missing: equals needs it",
            "rules[5] has no condition",
            "rules[6].equals must be a text, a number or a boolean",
            "rules[6].exists must be true or false",
            "rules[6] has no condition",
            "rules[7] must be a table",
            "rules[8].kontains is not a field; the fields are status, path",
            "rules[9].retry_after needs the outcome throttled or unavailable",
            "rules[10].retry_after must be a path",
        ],
    );
}

#[test]
fn rules_for_a_text_name_no_path() {
    check(
        &json!({"answer": "text", "rules": [
            {"body_contains": "ERR", "outcome": "rejected"},
            {"path": "a", "exists": true, "outcome": "throttled", "retry_after": "b"},
        ]}),
        &[
            "rules[2].path needs an answer in JSON or as a form",
            "rules[2].retry_after needs an answer in JSON or as a form",
        ],
    );
}

#[test]
fn each_bad_field_of_a_signature_has_its_place() {
    check(
        &json!({"signature": {"header": "x s", "algorithm": "md5", "encoding": "b64", "key": "k"}}),
        &[
            "signature.key is not a field; the fields are header, prefix",
            "signature.header must be the name of a header",
            "signature.algorithm must be one of: sha256, sha512, sha1",
            "signature.encoding must be one of: hex, HEX, base64",
            "signature.sign is missing",
            "signature.header needs the field secret, which has the key",
        ],
    );
    check(
        &json!({"secret": "xyz", "signature": {"header": "x", "sign": "a", "key_encoding": "hex"}}),
        &["signature.key_encoding does not fit: secret is not encoded so"],
    );
    check(&json!({"signature": 1}), &["signature must be a table"]);
}

#[test]
fn each_bad_field_of_receipts_has_its_place() {
    check(
        &json!({"receipts": {}}),
        &[
            "receipts.state is missing",
            "receipts.delivered is missing",
            "receipts.undelivered is missing",
        ],
    );
    let receipts = |more: Json| {
        let mut receipts = json!({"state": "s", "delivered": ["d", "x"], "undelivered": "u"});
        receipts.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        json!({"receipts": receipts, "secret": "s"})
    };
    check(&receipts(json!({"undelivered": ["X"]})), &["receipts.undelivered must have no word of"]);
    check(
        &receipts(json!({"list": "a", "format": "form", "id": "a"})),
        &["receipts.list needs the format json"],
    );
    check(&receipts(json!({"list": "a"})), &["receipts.id is missing: a list needs"]);
    check(&receipts(json!({"message_id": "a"})), &["message_id is missing: the receipts name"]);
    check(
        &receipts(json!({"format": "xml"})),
        &["receipts.format must be one of: json, form, query"],
    );
    check(&receipts(json!({"state": "a."})), &["receipts.state must be a path"]);
    check(&receipts(json!({"states": "a"})), &["receipts.states is not a field"]);
}

#[test]
fn signature_of_receipts_covers_what_names_the_message() {
    let signed = |format: &str, sign: &str, more: Json| {
        let mut receipts = json!({
            "format": format, "state": "s", "delivered": "d", "undelivered": "u",
            "signature": {"header": "x-s", "sign": sign},
        });
        receipts.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        json!({"receipts": receipts, "secret": "s"})
    };
    let id = json!({"id": "id"});
    check(&signed("json", "{{ body }}", id.clone()), &[]);
    check(&signed("query", "{{ query }}", id.clone()), &[]);
    check(&signed("query", "{{ url }}", json!({})), &[]);
    check(&signed("json", "{{ url }}{{ body }}", json!({})), &[]);
    check(
        &signed("json", "{{ body }}", json!({})),
        &["receipts.signature.sign must use {{ query }} or {{ url }}"],
    );
    check(
        &signed("query", "{{ body }}", id.clone()),
        &["receipts.signature.sign must use {{ query }} or {{ url }}"],
    );
    check(
        &signed("json", "{{ url }}", id.clone()),
        &["receipts.signature.sign must use {{ body }}, which has the state"],
    );
    check(
        &signed("json", "{{ method }}", id),
        &[
            "receipts.signature.sign must use {{ body }}, which names the message",
            "receipts.signature.sign must use {{ body }}, which has the state",
        ],
    );
    check(
        &json!({"receipts": {
            "state": "s", "delivered": "d", "undelivered": "u", "id": "id",
            "signature": {"header": "x-s", "sign": "{{ body }}"},
        }}),
        &["receipts.signature.header needs the field receipt_secret or secret"],
    );
}
