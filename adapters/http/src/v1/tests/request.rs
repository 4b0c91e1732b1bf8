use super::*;

#[tokio::test]
async fn problems_have_stable_types_and_pointers() {
    let router = parts().router();
    let check = "/v1/verifications/check";
    let long = |length| "x".repeat(length);
    let pairs = |count: usize| -> BTreeMap<String, &str> {
        (0..count).map(|at| (format!("k{at}"), "v")).collect()
    };
    let phone = "+79991234567";
    let cases = [
        (START, json!({}), vec!["/phone"]),
        (START, json!({"phone": null}), vec!["/phone"]),
        (START, json!({"phone": 79_991_234_567_u64}), vec!["/phone"]),
        (START, json!({"phone": ""}), vec!["/phone"]),
        (START, json!({"phone": "+89999999999"}), vec!["/phone"]),
        (START, json!({"phone": "+7 999 123-45-67 ext. 8"}), vec!["/phone"]),
        (START, json!({"phone": format!("+79991234567{}", " ".repeat(64))}), vec!["/phone"]),
        (START, json!({"phone": phone, "ttl": 59}), vec!["/ttl"]),
        (START, json!({"phone": phone, "ttl": 3601}), vec!["/ttl"]),
        (START, json!({"phone": phone, "ttl": 60.5}), vec!["/ttl"]),
        (START, json!({"phone": phone, "ttl": -60}), vec!["/ttl"]),
        (START, json!({"phone": phone, "ttl": 1e30}), vec!["/ttl"]),
        (START, json!({"phone": phone, "ttl": "600"}), vec!["/ttl"]),
        (START, json!({"phone": phone, "code_length": 3}), vec!["/code_length"]),
        (START, json!({"phone": phone, "code_length": 11}), vec!["/code_length"]),
        (START, json!({"phone": phone, "locale": "d"}), vec!["/locale"]),
        (START, json!({"phone": phone, "locale": "de AT"}), vec!["/locale"]),
        (START, json!({"phone": phone, "locale": "de-"}), vec!["/locale"]),
        (START, json!({"phone": phone, "template": "nothing"}), vec!["/template"]),
        (START, json!({"phone": phone, "ip": "203.0.113"}), vec!["/ip"]),
        (START, json!({"phone": phone, "ip": "2001:db8::/64"}), vec!["/ip"]),
        (START, json!({"phone": phone, "metadata": []}), vec!["/metadata"]),
        (START, json!({"phone": phone, "metadata": pairs(17)}), vec!["/metadata"]),
        (START, json!({"phone": phone, "metadata": {long(41): "v"}}), vec!["/metadata"]),
        (START, json!({"phone": phone, "metadata": {"": "v"}}), vec!["/metadata"]),
        (
            START,
            json!({"phone": phone, "metadata": {"a/b~": 1, "c": long(257), "d": long(256)}}),
            vec!["/metadata/a~1b~0", "/metadata/c"],
        ),
        (START, json!({"phone": phone, "limits": {"other": "v"}}), vec!["/limits"]),
        (START, json!({"phone": phone, "limits": {"phone": "v"}}), vec!["/limits"]),
        (START, json!({"phone": phone, "limits": "device"}), vec!["/limits"]),
        (START, json!({"phone": phone, "limits": {"device": ""}}), vec!["/limits/device"]),
        (START, json!({"phone": phone, "limits": {"device": "\0"}}), vec!["/limits/device"]),
        (START, json!({"phone": phone, "limits": {"device": long(129)}}), vec!["/limits/device"]),
        (START, json!({"ttl": 1, "ip": 1, "locale": 1}), vec!["/phone", "/locale", "/ttl", "/ip"]),
        (check, json!({}), vec!["/phone", "/code"]),
        (check, json!({"phone": "+7999", "code": "482915"}), vec!["/phone"]),
        (check, json!({"phone": phone, "code": 482_915}), vec!["/code"]),
        (&at("/checks"), json!({"code": "123"}), vec!["/code"]),
        (&at("/checks"), json!({"code": "12345678901"}), vec!["/code"]),
        (&at("/checks"), json!({"code": "12345x"}), vec!["/code"]),
        (&at("/checks"), json!({"phone": phone}), vec!["/code"]),
    ];

    for (path, body, pointers) in &cases {
        let told = ask(&router, post(path, body.to_string())).await;
        assert_eq!(&told.pointers(), pointers, "{body}");
    }
    for (member, pointer) in [
        (r#""metadata":{"a":"1","b":"2","a":"1"}"#, "/metadata/a"),
        (r#""limits":{"device":"1","device":"2"}"#, "/limits/device"),
    ] {
        let told = ask(&router, post(START, format!(r#"{{"phone":"{phone}",{member}}}"#))).await;
        assert_eq!(told.pointers(), [pointer], "{member}");
    }
}

#[tokio::test]
async fn malformed_body_is_400_and_invalid_body_is_422() {
    let router = parts().router();
    let bodies: &[&[u8]] = &[
        b"",
        b" ",
        b"null",
        b"[]",
        br#"{"phone":"+79991234567","metadata":{"a":"\ud800"}}"#,
        br#"{"phone":"+79991234567","limits":{"device":1e999}}"#,
        br#"["+79991234567"]"#,
        br#""+79991234567""#,
        br#"{"phone":"+79991234567""#,
        br#"{"phone":"+79991234567"}{}"#,
        br#"{"phone":"+79991234567","phone":"+79991234567""#,
        b"\xef\xbb\xbf{\"phone\":\"+79991234567\"}",
        b"{\"phone\":\"+79991234567\",\"name\":\"\xff\"}",
    ];

    for &body in bodies {
        let told = ask(&router, post(START, body)).await;
        assert_eq!(told.status, 400, "{}", body.escape_ascii());
        assert!(told.expect_problem(400, "malformed-body").is_empty());
    }
    let twice = r#"{"phone":"+79991234567","ttl":60,"phone":"+79991234567","ttl":61,"ttl":62}"#;
    let told = ask(&router, post(START, twice)).await;
    assert_eq!(told.pointers(), ["/phone", "/ttl"]);
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp"] {
        let request = Request::post(START).header(CONTENT_TYPE, kind);
        let told = ask(&router, request.body(PHONE.into()).unwrap()).await;
        told.expect_problem(415, "unsupported-media-type");
    }
    let told = ask(&router, Request::post(START).body(PHONE.into()).unwrap()).await;
    told.expect_problem(415, "unsupported-media-type");
    for length in [16 * 1024 + 1, 8 * 1024 * 1024] {
        let told = ask(&router, post(START, " ".repeat(length))).await;
        told.expect_problem(413, "too-large");
    }
    let told = ask(&router, post(&at("/cancel"), " ".repeat(16 * 1024 + 1))).await;
    told.expect_problem(413, "too-large");
}

#[tokio::test(start_paused = true)]
async fn slow_body_is_408() {
    let never = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());

    let told = ask(&parts().router(), post(START, never)).await;

    told.expect_problem(408, "request-timeout");
    assert_eq!(told.headers["connection"], "close");
}

#[tokio::test]
async fn problems_repeat_nothing_of_the_request() {
    let router = parts().router();
    let secret = "secret5550123";
    let body = json!({
        "phone": secret, "locale": secret, "ttl": secret, "code_length": secret, "code": secret,
        "template": secret, "ip": secret, "metadata": {"a": [secret]}, "limits": {secret: secret},
    });

    for path in [START, "/v1/verifications/check"] {
        let told = ask(&router, post(path, body.to_string())).await;
        assert_eq!(told.status, 422);
        assert!(!told.text.contains(secret), "{}", told.text);
    }
    for text in [secret.to_owned(), format!("{{\"phone\":\"{secret}")] {
        let told = ask(&router, post(START, text)).await;
        assert!(!told.text.contains(secret), "{}", told.text);
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems() {
    let (router, registry) = parts().counted();

    for path in ["/v1", "/v1/", "/v1/verification", "/v1/verifications/", &at("/"), &at("/check")] {
        let told = ask(&router, get(path)).await;
        told.expect_problem(404, "not-found");
        assert_eq!(told.json()["instance"], path);
    }
    for (method, path, allow) in [
        ("GET", START.to_owned(), "POST"),
        ("DELETE", at(""), "GET,HEAD"),
        ("PUT", at("/checks"), "POST"),
        ("GET", at("/resend"), "POST"),
        ("OPTIONS", at("/cancel"), "POST"),
        ("GET", "/v1/verifications/check".to_owned(), "POST"),
        ("POST", "/openapi.json".to_owned(), "GET,HEAD"),
    ] {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let told = ask(&router, request).await;
        told.expect_problem(405, "method-not-allowed");
        assert_eq!(told.headers[ALLOW], allow);
    }

    let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    let count =
        r#"messager_v1_requests_total{route="/v1/verifications/{id}/checks",status="405"} 1"#;
    assert!(text.contains(count), "{text}");
}

#[tokio::test]
async fn malformed_id_is_404() {
    let router = parts().router();

    for id in [
        "6f2c1a529d3f4f0e8a550d2f6f3b9c00",
        "ver_6F2C1A529D3F4F0E8A550D2F6F3B9C00",
        "ver_6f2c1a529d3f4f0e8a550d2f6f3b9c01",
        "ver_6f2c1a52-9d3f-4f0e-8a55-0d2f6f3b9c00",
        "ver_",
        "ver_%FF",
        "1",
    ] {
        let path = format!("{START}/{id}");
        ask(&router, get(&path)).await.expect_problem(404, "not-found");
        for rest in ["checks", "resend", "cancel"] {
            let told = ask(&router, post(&format!("{path}/{rest}"), r#"{"code":"482915"}"#)).await;
            told.expect_problem(404, "not-found");
        }
    }
}

#[tokio::test]
async fn database_failures_are_503() {
    for error in [|| StoreError::Full, || StoreError::Unavailable("down".into())] {
        let mut outbox = MockOutbox::new();
        outbox.expect_enqueue().returning(move |_| Err(error()));
        let told = ask(&parts().with_outbox(outbox).router(), post(START, PHONE)).await;
        told.expect_problem(503, "temporary-reduced-capacity");
        assert_eq!(told.headers["retry-after"], "1");
    }

    for error in [|| StoreError::Full, || StoreError::Unavailable("down".into())] {
        let mut down = MockVerifications::new();
        down.expect_find().returning(move |_| Err(error()));
        down.expect_history().returning(move |_| Err(error()));
        down.expect_cancel().returning(move |_| Err(error()));
        down.expect_newest().returning(move |_| Err(error()));
        down.expect_check().returning(move |_, _| Err(error()));
        let router = Parts { verifications: down, ..parts() }.router();
        for request in [
            get(&at("")),
            post(&at("/resend"), Body::empty()),
            post(&at("/cancel"), Body::empty()),
            post(&at("/checks"), r#"{"code":"482915"}"#),
            post("/v1/verifications/check", r#"{"phone":"79991234567","code":"482915"}"#),
        ] {
            ask(&router, request).await.expect_problem(503, "temporary-reduced-capacity");
        }
    }
}

#[tokio::test]
async fn panic_is_500_and_the_next_request_is_served() {
    let mut outbox = MockOutbox::new();
    outbox.expect_enqueue().once().returning(|_| panic!("on purpose"));
    let (router, registry) = parts().with_outbox(outbox).counted();

    ask(&router, post(START, PHONE)).await.expect_problem(500, "internal");
    ask(&router, post(START, "{}")).await.expect_problem(422, "invalid");

    let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    for (status, count) in [("500", 1), ("422", 1), ("202", 0), ("503", 0)] {
        let line = format!(
            "messager_v1_requests_total{{route=\"{START}\",status=\"{status}\"}} {count}\n"
        );
        assert!(text.contains(&line), "{text}");
    }
}

#[tokio::test]
async fn v1_and_api_share_a_router() {
    let (outbox, stored) = accepting();
    let vault = Vault::of(Keys { peppers: Some(peppers()), payload: None });
    let settings = application::SubmitSettings {
        code_length: 6.try_into().unwrap(),
        code_ttl: Duration::from_secs(600),
        rules: application::SendRules::NONE,
    };
    let submit = application::SubmitMessage::new(
        outbox,
        || SystemTime::UNIX_EPOCH,
        StdRng::seed_from_u64(1),
        vault,
        Arc::new(Guard::new(Vec::new(), Duration::from_secs(3_600))),
        settings,
    );
    let keys = Arc::new(Authorize::new(MockApiKeys::new()));
    let metrics = ApiMetrics::register(&Registry::new()).unwrap();
    let api = crate::router(Arc::new(submit), keys, metrics, crate::ApiSettings::default());
    let router = api.merge(gateway_receipts::router_with_main());

    assert_eq!(ask(&router, post("/api", r#"{"phone":"89999999999"}"#)).await.status, 200);
    ask(&router, get("/v1/x")).await.expect_problem(404, "not-found");
    ask(&router, get("/x")).await.expect(404, &json!({"error": "not found"}));
    assert_eq!(stored.lock().unwrap().len(), 1);

    let document = ask(&router, get("/openapi.json")).await.json();
    for (path, described) in document["paths"].as_object().unwrap() {
        for method in described.as_object().unwrap().keys() {
            let request = Request::builder().method(&*method.to_ascii_uppercase());
            let path = path.replace("{id}", "none").replace("{gateway}", "main");
            let request = request.uri(&path).body(Body::empty()).unwrap();
            let told = ask(&router, request).await;
            let there = told.status != 405 && (told.status != 404 || path.contains("none"));
            assert!(there, "{method} {path}: {}", told.text);
        }
    }
}
