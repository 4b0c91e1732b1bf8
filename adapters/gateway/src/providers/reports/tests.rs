use application::ports::{Accepted, SendError};
use bytes::Bytes;
use http::Request;
use serde_json::json;

use super::*;
use crate::{
    answer::Answer,
    provider::{Outgoing, Provider},
    spec::{Field, FieldKind, ProviderSpec},
    testing::{
        made, problems,
        short::{ID, got, of_message, of_reference, posted},
    },
};

static SPEC: ProviderSpec = ProviderSpec {
    name: "reporting",
    title: "Reporting",
    sender: true,
    params: &[],
    fields: &[
        Field::with_default("receipt_id", FieldKind::Text, "id", "The field of the id"),
        Field::with_default("receipt_status", FieldKind::Text, "status", "The field of the state"),
        Field::with_default("delivered", FieldKind::Text, "DELIVERED, 1", "Final states"),
        Field::with_default("undelivered", FieldKind::Text, "failed,2", "Final states"),
    ],
    make: |fields| Some(Box::new(Reporting(Reports::of(fields)?))),
};

/// A provider that only reports.
#[derive(Debug)]
struct Reporting(Reports);

impl Provider for Reporting {
    fn request(&self, _: &Outgoing<'_>) -> Request<Bytes> {
        Request::default()
    }

    fn judge(&self, _: &Answer<'_>) -> Result<Accepted, SendError> {
        Ok(Accepted::default())
    }

    fn receipts(&self, call: &ReceiptCall<'_>) -> Result<Vec<GatewayReceipt>, ReceiptRefused> {
        self.0.receipts(call)
    }
}

#[test]
fn json_form_and_query_are_read() {
    let it = made(&SPEC, &json!({}));
    let delivered = Ok(vec![of_reference("7", Receipt::Delivered)]);

    assert_eq!(posted(&*it, "token=t", &[], r#"{"id":7,"status":"Delivered"}"#), delivered);
    assert_eq!(posted(&*it, "token=t", &[], r#"{"id":"7","status":1}"#), delivered);
    assert_eq!(posted(&*it, "token=t", &[], "id=7&status=delivered"), delivered);
    assert_eq!(got(&*it, "token=t&id=7&status=1"), delivered);
    let list = r#"[{"id":7,"status":1},{"id":8,"status":"sent"},{"id":9,"status":"FAILED"},3]"#;
    assert_eq!(
        posted(&*it, "token=t", &[], list),
        Ok(vec![of_reference("7", Receipt::Delivered), of_reference("9", Receipt::Undelivered)])
    );
}

#[test]
fn url_of_one_message_names_it() {
    let it = made(&SPEC, &json!({}));
    let ours = format!("id={ID}&token=t");
    let delivered = Ok(vec![of_message(Receipt::Delivered)]);

    assert_eq!(posted(&*it, &ours, &[], r#"{"id":7,"status":1}"#), delivered);
    assert_eq!(posted(&*it, &ours, &[], "id=7&status=1"), delivered);
    assert_eq!(got(&*it, &format!("{ours}&id=7&status=1")), delivered);
    let two = r#"[{"id":7,"status":1},{"id":8,"status":1}]"#;
    let read = posted(&*it, &ours, &[], two).unwrap();
    assert_eq!(read[1], of_reference("8", Receipt::Delivered));
}

#[test]
fn receipt_without_a_state_or_a_name_is_unreadable() {
    let it = made(&SPEC, &json!({}));

    for body in ["", "[]", r#"{"id":7}"#, r#"{"status":1}"#, r#"{"id":7,"status":{}}"#] {
        let read = posted(&*it, "", &[], body);
        assert_eq!(read, Err(ReceiptRefused::Unreadable), "{body}");
    }
    // An intermediate state needs no name.
    assert_eq!(posted(&*it, "", &[], r#"{"status":"sent"}"#), Ok(vec![]));
}

#[test]
fn settings_name_fields_and_states() {
    let table = json!({
        "receipt_id": "data.message.id", "receipt_status": "data.state", "delivered": "ok",
        "undelivered": "lost",
    });
    let it = made(&SPEC, &table);
    let read = |state: &str| {
        let body = json!({"data": {"message": {"id": "m"}, "state": state}});
        posted(&*it, "", &[], &body.to_string())
    };

    assert_eq!(read("OK"), Ok(vec![of_reference("m", Receipt::Delivered)]));
    assert_eq!(read("lost"), Ok(vec![of_reference("m", Receipt::Undelivered)]));
    assert_eq!(read("delivered"), Ok(vec![]));
}

#[test]
fn state_cannot_be_both() {
    let table = json!({"delivered": "1, read", "undelivered": "READ"});

    let expected = ["undelivered has a state that `delivered` has too"];
    assert_eq!(problems(&SPEC, &table), expected);
}
