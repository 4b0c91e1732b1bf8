use super::*;

#[tokio::test]
async fn document_is_openapi_3_1_and_complete() {
    let (outbox, _) = accepting();
    let router = parts().with_outbox(outbox).router();

    let told = ask(&router, get("/openapi.json")).await;

    assert_eq!((told.status, &told.headers[CONTENT_TYPE]), (200, &JSON));
    let document = told.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    for endpoint in ENDPOINTS {
        let method = endpoint.method.as_str().to_ascii_lowercase();
        let described = &document["paths"][endpoint.route][&method];
        assert!(described["operationId"].is_string(), "{}", endpoint.operation_id);
        let responses = described["responses"].as_object().unwrap();
        assert!(responses.contains_key(endpoint.success.as_str()), "{}", endpoint.operation_id);
        for (status, codes) in problems_of(endpoint) {
            let content = &responses[*status]["content"]["application/problem+json"];
            assert_eq!(content["schema"], json!({"$ref": "#/components/schemas/Problem"}));
            for code in *codes {
                let example = &content["examples"][code]["value"];
                assert_eq!(example["code"], *code, "{} {status}", endpoint.operation_id);
                assert_eq!(
                    example["status"].to_string(),
                    *status,
                    "{} {code}",
                    endpoint.operation_id
                );
            }
        }
    }
    let links = &document["paths"][START]["post"]["responses"]["202"]["links"];
    for (name, endpoint) in
        [("getVerification", &find::ENDPOINT), ("checkCode", &crate::v1::check::ENDPOINT)]
    {
        assert_eq!(links[name]["operationId"], name);
        assert_eq!(links[name]["parameters"]["id"], "$response.body#/id");
        let method = endpoint.method.as_str().to_ascii_lowercase();
        assert_eq!(document["paths"][endpoint.route][&method]["operationId"], name);
    }
    let start = &document["components"]["schemas"]["Start"];
    assert_eq!(start["required"], json!(["phone"]));
    let properties = &start["properties"];
    assert_eq!(
        (&properties["ttl"]["minimum"], &properties["ttl"]["maximum"]),
        (&json!(60), &json!(3600))
    );
    for (name, has) in [("template", "default, login"), ("limits", "device")] {
        let described = properties[name]["description"].as_str().unwrap();
        assert!(described.contains(&format!("This server has: {has}.")), "{described}");
    }
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        assert!(schema.is_object(), "{name}");
    }
    assert_refs(&document, &document);
}

/// Client generators fail on these keywords, or make clients that break later: ADR 47.
#[tokio::test]
async fn document_has_nothing_that_breaks_generated_clients() {
    const NOT_ANYWHERE: [&str; 7] =
        ["default", "oneOf", "anyOf", "allOf", "not", "const", "discriminator"];
    const NOT_IN_ANSWERS: [&str; 6] =
        ["enum", "pattern", "maximum", "maxLength", "maxItems", "additionalProperties"];

    let document = ask(&parts().router(), get("/openapi.json")).await.json();
    let schemas = &document["components"]["schemas"];
    each_schema(&document["paths"], &mut |schema| lacks(schema, &NOT_ANYWHERE));
    each_schema(schemas, &mut |schema| lacks(schema, &NOT_ANYWHERE));
    for name in
        ["Verification", "VerificationEvent", "Checked", "CheckedByPhone", "Problem", "Fault"]
    {
        let mut schema = schemas[name].clone();
        assert!(schema["properties"].is_object(), "{name}");
        if let Some(metadata) = schema["properties"].get_mut("metadata") {
            // A map has nothing but members of one type.
            metadata.as_object_mut().unwrap().remove("additionalProperties");
        }
        each_schema(&schema, &mut |schema| lacks(schema, &NOT_IN_ANSWERS));
    }
    let required = |name: &str| schemas[name]["required"].clone();
    assert_eq!(required("Checked"), json!(["valid", "status"]));
    assert_eq!(required("CheckedByPhone"), json!(["valid"]));
    assert_eq!(schemas["Checked"]["properties"]["valid"]["type"], "boolean");
    assert_eq!(schemas["Checked"]["properties"]["attempts_left"]["type"], "integer");
}

#[track_caller]
fn lacks(schema: &Map<String, Value>, banned: &[&str]) {
    for word in banned {
        assert!(!schema.contains_key(*word), "{word} in {schema:?}");
    }
}

/// Calls for each object that is no map of names to schemas, and no example.
fn each_schema(part: &Value, act: &mut impl FnMut(&Map<String, Value>)) {
    match part {
        Value::Object(members) => {
            act(members);
            for (name, part) in members {
                match (name.as_str(), part) {
                    ("example" | "examples", _) => {}
                    ("properties", Value::Object(properties)) => {
                        properties.values().for_each(|part| each_schema(part, act));
                    }
                    _ => each_schema(part, act),
                }
            }
        }
        Value::Array(parts) => parts.iter().for_each(|part| each_schema(part, act)),
        _ => {}
    }
}

/// Only what it says to people depends on the settings: a client is generated once, and used with
/// servers that are set up otherwise.
#[tokio::test]
async fn only_descriptions_and_security_depend_on_the_settings() {
    let document = async |change: fn(&mut V1Settings)| {
        let mut parts = parts();
        change(&mut parts.settings);
        let mut document = ask(&parts.router(), get("/openapi.json")).await.json();
        without(&mut document, "description");
        without(&mut document, "security");
        document
    };

    let usual = document(|_| {}).await;
    let other = document(|settings| {
        settings.auth = ApiAuth::All;
        settings.ttl = Duration::from_secs(7_200);
        settings.code_length = CodeLength::try_from(8).unwrap();
        settings.pacing = "1,2,3,4,5,6".parse().unwrap();
        settings.limits.custom.clear();
        settings.templates = Arc::new(Templates::new("{code} is it".parse().unwrap()));
    })
    .await;

    assert_eq!(usual, other);
}

fn without(part: &mut Value, name: &str) {
    match part {
        Value::Object(members) => {
            members.remove(name);
            members.values_mut().for_each(|part| without(part, name));
        }
        Value::Array(parts) => parts.iter_mut().for_each(|part| without(part, name)),
        _ => {}
    }
}

/// Returns the problems that the design lists for an operation, by status.
fn problems_of(endpoint: &Endpoint) -> &'static [(&'static str, &'static [&'static str])] {
    match endpoint.operation_id {
        "startVerification" => &[
            ("400", &["malformed-body"]),
            ("401", &["unauthorized"]),
            (
                "403",
                &[
                    "forbidden",
                    "region-not-allowed",
                    "number-type-not-allowed",
                    "abnormal-usage-detected",
                    "budget-exhausted",
                ],
            ),
            ("405", &["method-not-allowed"]),
            ("408", &["request-timeout"]),
            ("409", &["idempotency-running"]),
            ("413", &["too-large"]),
            ("415", &["unsupported-media-type"]),
            ("422", &["invalid", "idempotency-mismatch"]),
            ("429", &["quota-exceeded"]),
            ("500", &["internal"]),
            ("503", &["temporary-reduced-capacity"]),
        ],
        "getVerification" => &[
            ("401", &["unauthorized"]),
            ("403", &["forbidden"]),
            ("404", &["not-found"]),
            ("405", &["method-not-allowed"]),
            ("500", &["internal"]),
            ("503", &["temporary-reduced-capacity"]),
        ],
        "checkCode" => &[
            ("404", &["not-found"]),
            ("409", &["already-approved", "idempotency-running"]),
            ("410", &["gone"]),
            ("422", &["invalid", "idempotency-mismatch"]),
            ("429", &["quota-exceeded"]),
        ],
        "checkCodeByPhone" => &[
            ("409", &["idempotency-running"]),
            ("422", &["invalid", "idempotency-mismatch"]),
            ("429", &["quota-exceeded"]),
        ],
        "resendVerification" => &[
            ("403", &["forbidden", "abnormal-usage-detected", "budget-exhausted"]),
            ("404", &["not-found"]),
            ("409", &["already-approved", "idempotency-running"]),
            ("410", &["gone"]),
            ("429", &["quota-exceeded"]),
        ],
        "cancelVerification" => {
            &[("404", &["not-found"]), ("409", &["already-approved"]), ("410", &["gone"])]
        }
        "noteReceipt" => {
            &[("404", &["not-found"]), ("415", &["unsupported-media-type"]), ("422", &["invalid"])]
        }
        other => panic!("no problems are listed for {other}"),
    }
}

/// Every reference leads somewhere.
#[track_caller]
fn assert_refs(document: &Value, part: &Value) {
    match part {
        Value::Object(members) => {
            if let Some(Value::String(reference)) = members.get("$ref") {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference}");
            }
            members.values().for_each(|part| assert_refs(document, part));
        }
        Value::Array(parts) => parts.iter().for_each(|part| assert_refs(document, part)),
        _ => {}
    }
}

#[tokio::test]
async fn document_says_which_operations_need_a_key() {
    let security = async |auth| {
        let mut parts = parts();
        parts.settings.auth = auth;
        let document = ask(&parts.router(), get("/openapi.json")).await.json();
        let of = |path: &str| {
            let ways = document["paths"][path]["post"]["security"].as_array().unwrap().clone();
            // A client can send one in any case.
            assert_eq!(ways.last(), Some(&json!({"bearer": []})));
            !ways.contains(&json!({}))
        };
        (of(START), of("/api"))
    };

    assert_eq!(security(ApiAuth::None).await, (false, false));
    assert_eq!(security(ApiAuth::V1).await, (true, false));
    assert_eq!(security(ApiAuth::All).await, (true, true));
}
