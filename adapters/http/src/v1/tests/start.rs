use super::*;

#[tokio::test]
async fn start_stores_every_member_of_the_request() {
    let (outbox, stored) = accepting();
    let router = parts().with_outbox(outbox).router();
    let body = json!({
        "phone": "+79991234567", "locale": "de-AT", "ttl": 300.0, "code_length": 8,
        "template": "login", "ip": "2001:db8::1", "metadata": {"user": "42", "a/b": ""},
        "limits": {"device": "a1"}, "unknown": {"phone": null},
    });

    let request = with(post(START, body.to_string()), "traceparent", TRACE);
    let told = ask(&router, request).await;

    assert_eq!(told.json()["metadata"], body["metadata"]);
    assert_eq!(told.json()["expires_at"], "2026-11-23T10:05:00.123Z");
    let stored = stored.lock().unwrap();
    let NewSend { message, ttl, verification, extra, trace, .. } = &stored[0];
    assert_eq!((message.phone.as_str(), *ttl), ("79991234567", Duration::from_secs(300)));
    assert_eq!(*trace, TRACE.parse::<TraceParent>().unwrap());
    assert_eq!(verification.code_length.get(), 8);
    assert_eq!(verification.region, "RU".parse().ok());
    assert_eq!(verification.template, "login/de".parse().ok());
    let counters: Vec<_> =
        extra.iter().map(|it| (it.policy.name.as_str(), it.key.as_str())).collect();
    let ip = "2001:db8::/64";
    let prefix = ("prefix-1h", "7999123");
    assert_eq!(counters, [("ip-1h", ip), ("ip-1d", ip), prefix, ("device-1h", "a1")]);
}

#[tokio::test]
async fn start_takes_missing_members_from_the_settings() {
    let (outbox, stored) = accepting();
    let router = parts().with_outbox(outbox).router();

    let told = ask(&router, post(START, r#"{"phone":"79991234567"}"#)).await;

    assert_eq!(told.status, 202);
    let stored = stored.lock().unwrap();
    let NewSend { ttl, verification, extra, .. } = &stored[0];
    assert_eq!((*ttl, verification.code_length.get()), (Duration::from_secs(600), 6));
    let counted: Vec<&str> = extra.iter().map(|it| it.policy.name.as_str()).collect();
    assert_eq!((&verification.template, &counted[..]), (&None, &["prefix-1h"][..]));
    assert_eq!((&verification.metadata, &verification.api_key), (&None, &None));
}

#[tokio::test]
async fn start_without_an_ip_is_refused_if_one_is_required() {
    let (outbox, stored) = accepting();
    let mut parts = parts().with_outbox(outbox);
    parts.settings.require_ip = true;
    let router = parts.router();
    let start = async |body: serde_json::Value| ask(&router, post(START, body.to_string())).await;

    let without = start(json!({"phone": "+79991234567"})).await;
    assert_eq!((without.status, without.pointers()), (422, vec!["/ip".to_owned()]));
    let with = start(json!({"phone": "+79991234567", "ip": "203.0.113.7"})).await;
    assert_eq!(with.status, 202, "{}", with.text);
    assert_eq!(stored.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn satellite_numbers_are_refused_unless_their_region_is_listed() {
    for (regions, status) in [("*", 403), ("DE", 403), ("*,001", 202), ("001", 202)] {
        let (outbox, stored) = accepting();
        let mut parts = parts().with_outbox(outbox);
        parts.numbers.allowed = regions.parse().unwrap();
        let router = parts.router();

        let told = ask(&router, post(START, r#"{"phone":"+881612345678"}"#)).await;

        assert_eq!(told.status, status, "{regions}: {}", told.text);
        if status == 403 {
            assert_eq!(told.json()["code"], "region-not-allowed");
        } else {
            let region = stored.lock().unwrap()[0].verification.region;
            assert_eq!(region, Some(domain::Region::NON_GEOGRAPHIC));
        }
    }
}

#[tokio::test]
async fn values_at_their_limits_are_accepted() {
    let (outbox, stored) = accepting();
    let router = parts().with_outbox(outbox).router();
    let pairs: BTreeMap<String, String> =
        (0..16).map(|at| (format!("{at:040}"), "ы".repeat(256))).collect();
    let bodies = [
        json!({"ttl": 60, "code_length": 4, "locale": "rus", "template": "default"}),
        json!({"ttl": 3600, "code_length": 10, "locale": "zh-Hant-TW", "ip": "::ffff:203.0.113.7"}),
        json!({"metadata": pairs, "limits": {"device": "ы".repeat(128)}}),
        json!({"metadata": {}, "limits": {}, "code": 1, "phones": null}),
        json!({
            "locale": null, "ttl": null, "code_length": null, "template": null, "ip": null,
            "metadata": null, "limits": null,
        }),
    ];

    for mut body in bodies {
        body["phone"] = json!("+79991234567");
        let told = ask(&router, post(START, body.to_string())).await;
        assert_eq!(told.status, 202, "{body}: {}", told.text);
    }

    assert_eq!(stored.lock().unwrap().len(), 5);
}

#[tokio::test]
async fn pasted_phone_numbers_are_accepted() {
    let (outbox, stored) = accepting();
    let router = parts().with_outbox(outbox).router();
    let pasted = ["+7 (999) 123-45-67", "\u{202a}+7\u{a0}999\u{a0}1234567\u{202c}", "+٧٩٩٩١٢٣٤٥٦٧"];

    for phone in pasted {
        let told = ask(&router, post(START, json!({ "phone": phone }).to_string())).await;
        assert_eq!(told.status, 202, "{phone}: {}", told.text);
    }

    let stored = stored.lock().unwrap();
    assert_eq!(stored.len(), pasted.len());
    assert!(stored.iter().all(|new| new.message.phone.as_str() == "79991234567"));
}

#[tokio::test]
async fn locale_is_accepted_in_every_spelling() {
    let (outbox, stored) = accepting();
    let router = parts().with_outbox(outbox).router();
    let locales =
        ["de-AT", "de_AT", "de-AT-u-ca-gregory", "de_AT.UTF-8", "de_AT@euro", "de-AT-x-a"];

    for locale in locales {
        let body = json!({ "phone": "+79991234567", "locale": locale });
        let told = ask(&router, post(START, body.to_string())).await;
        assert_eq!(told.status, 202, "{locale}: {}", told.text);
    }

    assert_eq!(stored.lock().unwrap().len(), locales.len());
}

#[tokio::test]
async fn numbers_of_refused_types_and_regions_are_403() {
    let router = parts().router();
    let told = ask(&router, post(START, r#"{"phone":"+19005551234"}"#)).await;
    told.expect_problem(403, "number-type-not-allowed");

    let mut abroad = parts();
    abroad.numbers.allowed = "DE".parse().unwrap();
    let router = abroad.router();
    let told = ask(&router, post(START, PHONE)).await;
    let extra = told.expect_problem(403, "region-not-allowed");
    assert_eq!(extra["errors"][0]["pointer"], "/phone");
    let told = ask(&router, post(START, r#"{"phone":"+79991234567","ttl":1}"#)).await;
    assert_eq!(told.pointers(), ["/ttl"]);
}

#[tokio::test]
async fn national_numbers_are_accepted_in_the_default_region() {
    let (outbox, stored) = accepting();
    let mut parts = parts();
    parts.settings.default_region = "RU".parse().ok();
    let router = parts.with_outbox(outbox).router();

    for phone in ["89991234567", "9991234567", "+79991234567"] {
        let told = ask(&router, post(START, json!({ "phone": phone }).to_string())).await;
        assert_eq!(told.status, 202, "{}", told.text);
    }

    let stored = stored.lock().unwrap();
    assert!(stored.iter().all(|send| send.message.phone.as_str() == "79991234567"));
}

#[tokio::test]
async fn test_number_has_a_fixed_code_and_obeys_no_rules() {
    let mut verifications = MockVerifications::new();
    verifications
        .expect_start_test()
        .withf(|test| {
            let hash = &test.verification.secret.code_hash;
            let (phone, length) = (test.phone.as_str(), test.verification.code_length.get());
            let peppers = peppers();
            let expected = peppers.first().hash(test.id, &"1234".parse().unwrap());
            phone == "10000000001" && length == 4 && hash.as_bytes() == expected.as_bytes()
        })
        .returning(|_| Ok(Verification { origin: Origin::Test, ..pending() }));
    verifications
        .expect_newest()
        .withf(|phone| *phone == "10000000001".parse().unwrap())
        .returning(|_| Ok(Newest::default()));
    verifications.expect_check().returning(|_, _| Ok(CheckOutcome::Nothing));
    let mut parts = Parts { verifications, ..parts() };
    let number = ("10000000001".parse().unwrap(), "1234".parse().unwrap());
    parts.settings.test_numbers = [number].into();
    parts.numbers.allowed = "DE".parse().unwrap();
    let router = parts.router();

    for phone in ["+10000000001", "10000000001"] {
        let told = ask(&router, post(START, json!({ "phone": phone }).to_string())).await;
        assert_eq!((told.status, &told.json()["test"]), (202, &json!(true)));
        let check = json!({ "phone": phone, "code": "1234" }).to_string();
        assert_eq!(ask(&router, post("/v1/verifications/check", check)).await.status, 200);
    }
}

#[tokio::test]
async fn blocked_start_gives_no_reason() {
    let (outbox, _) = accepting();
    let mut parts = parts();
    let rule = domain::GuardRule::parse("prefix:1:50", domain::GuardMode::Enforce);
    parts.rules = vec![rule.unwrap()];
    let router = parts.with_outbox(outbox).router();

    assert_eq!(ask(&router, post(START, PHONE)).await.status, 202);
    let told = ask(&router, post(START, r#"{"phone":"+79991234568"}"#)).await;

    assert!(told.expect_problem(403, "abnormal-usage-detected").is_empty());
}

#[tokio::test]
async fn start_and_resend_that_no_gateway_can_afford_are_refused() {
    let mut parts = parts();
    let rested = || Verification { read_at: after(60), ..pending() };
    parts.verifications.expect_find().returning(move |_| Ok(Some(rested())));
    parts.budgets = Some(crate::testing::no_budget());
    let router = parts.router();

    for request in [post(START, PHONE), post(&at("/resend"), Body::empty())] {
        let told = ask(&router, request).await;
        assert!(told.expect_problem(403, "budget-exhausted").is_empty());
    }
}
