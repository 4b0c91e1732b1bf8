//! Any request is answered within the contract, and no answer repeats values of its request.

use proptest::{collection, option, prelude::*, sample::select};
// axum has one too.
use proptest::prelude::any;
use tokio::runtime;

use super::*;

const MARKED: &str = "4915123456789";

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(json!(MARKED)),
        Just(json!(CODE)),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            collection::btree_map("[a-z/~]{0,3}|device", inner, 0..4)
                .prop_map(|map| map.into_iter().collect()),
        ]
    })
}

fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let names = vec![
        "phone",
        "code",
        "locale",
        "ttl",
        "code_length",
        "template",
        "ip",
        "metadata",
        "limits",
        "other",
    ];
    let object = collection::btree_map(select(names), any_value(), 0..6);
    let object =
        (object, option::weighted(0.7, Just(json!(MARKED)))).prop_map(|(object, phone)| {
            let mut body = json!(object);
            if let Some(phone) = phone {
                body["phone"] = phone;
            }
            body.to_string().into_bytes()
        });
    let receipt = Just(RECEIPT.as_bytes().to_vec());
    prop_oneof![6 => object, 1 => receipt, 1 => collection::vec(any::<u8>(), 0..200)]
}

fn any_path() -> impl Strategy<Value = String> {
    let endpoint = select(ENDPOINTS.to_vec());
    let id = prop_oneof![3 => Just(ID.to_owned()), 1 => "[a-z0-9_%]{0,36}"];
    prop_oneof![
        6 => (endpoint, id).prop_map(|(endpoint, id)| endpoint.route.replace("{id}", &id)),
        1 => "/v1(/[a-z/]{0,12})?",
    ]
    .prop_filter("a URI", |path| path.parse::<axum::http::Uri>().is_ok())
}

proptest! {
    #[test]
    fn every_request_is_answered_within_the_contract(
        method in "POST|POST|POST|GET|DELETE|[A-Z]{1,6}",
        path in any_path(),
        key in option::weighted(0.3, "[ -~]{0,5}"),
        body in any_body(),
    ) {
        let (outbox, stored) = accepting();
        let mut verifications = checking(|attempt| compared(attempt, 1));
        verifications.expect_history().returning(|_| Ok(Some(history(pending()))));
        verifications.expect_cancel().returning(|_| Ok(None));
        verifications.expect_note_receipt().returning(|_, _| Ok(Noted::Repeated));
        verifications.expect_find().returning(|_| Ok(Some(pending())));
        let parts = Parts { verifications, ..parts() }.with_outbox(outbox);
        let router = parts.with_answers(idempotency::Book::default()).router();
        let mut request =
            Request::builder().method(&*method).uri(&*path).header(CONTENT_TYPE, "application/json");
        if let Some(key) = &key {
            request = request.header("idempotency-key", key);
        }
        let request = request.body(Body::from(body)).unwrap();
        let runtime = runtime::Builder::new_current_thread().enable_time().build().unwrap();

        let told = runtime.block_on(ask(&router, request));

        let expected = [200, 202, 204, 400, 404, 405, 422, 429];
        prop_assert!(expected.contains(&told.status), "{told:?}");
        let kind = if told.status < 300 { "application/json" } else { "application/problem+json" };
        prop_assert!(told.status == 204 || told.headers[CONTENT_TYPE] == kind, "{told:?}");
        if method != "HEAD" && told.status != 204 {
            prop_assert!(serde_json::from_str::<Value>(&told.text).is_ok(), "{told:?}");
        }
        let shown = format!("{told:?}");
        prop_assert!(!shown.contains(MARKED) && !shown.contains(CODE) || told.status == 202, "{shown}");
        let stored = stored.lock().unwrap();
        prop_assert_eq!(stored.len(), usize::from(told.status == 202));
    }
}
