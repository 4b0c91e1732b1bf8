//! Limits and the guard stop floods and report them.

use serde_json::json;

use super::support::{Client, Stack, eventually, post};

const OPEN: (&str, &str) = ("API_AUTH", "none");

#[tokio::test]
async fn limit_of_a_phone_holds_on_both_apis() {
    let Some(stack) = Stack::new().await else { return };
    let api = stack.start("api", &[OPEN, ("LIMIT_PHONE", "3/1h")]).ready().await;
    let client = Client::new(api.port);

    for _ in 0..3 {
        assert_eq!(post(api.port, "79991234567").await.0, 200);
    }
    let (status, body) = post(api.port, "79991234567").await;
    assert_eq!((status, &*body), (429, r#"{"error":"too many messages to this number"}"#));
    for _ in 0..3 {
        let id = client.start("+79991234568").await.id();
        client.post(&format!("/v1/verifications/{id}/cancel"), &json!({})).await;
    }
    let refused = client.start("+79991234568").await;
    assert_eq!(refused.problem(), (429, "quota-exceeded"));
    assert_eq!(refused.body["violated-policies"], json!(["phone-1h"]));
    assert!(refused.headers["ratelimit-policy"].contains(r#""phone-1h";q=3;w=3600"#));
    assert!(refused.headers["ratelimit"].starts_with(r#""phone-1h";r=0;t="#));
    let wait: u64 = refused.headers["retry-after"].parse().unwrap();
    assert!((3_590..=3_600).contains(&wait), "{wait}");

    assert_eq!(stack.postgres.number("SELECT count(*) FROM outbox").await, 6);
    assert_eq!(client.start("+79991234569").await.status, 202);
}

/// If `/v1` and `/api` need keys, the configured limits hold on both and are counted together.
#[tokio::test]
async fn settings_that_are_set_hold_on_both_apis() {
    let Some(stack) = Stack::new().await else { return };
    let settings = [
        ("API_AUTH", "all"),
        ("LIMIT_KEY", "9/1h"),
        ("LIMIT_PREFIX", "2/1h"),
        ("LIMIT_REGION", "4/1h"),
        ("LIMIT_PHONE", "1/1h"),
        ("REGIONS", "DE"),
        ("DEFAULT_REGION", "DE"),
        ("REFUSED_NUMBER_TYPES", "premium_rate"),
    ];
    let create = ["keys", "create", "--name", "shop", "--scopes", "send"];
    let created = stack.start("messager", &settings).args(&create).output().await;
    let key = String::from_utf8(created.stdout).unwrap().trim().to_owned();
    let api = stack.start("api", &settings).ready().await;
    let client = Client::new(api.port).with_key(&key);
    let send = async |phone: &str| {
        let answer = client.post("/api", &json!({ "phone": phone })).await;
        (answer.status, answer.text)
    };
    let accepted = (200, r#""message successfuly sended""#.to_owned());
    let refused = |status, text: &str| (status, json!({ "error": text }).to_string());

    assert_eq!(send("79991234567").await, refused(403, "messages to this number are not allowed"));
    assert_eq!(send("499001234567").await.0, 403, "a premium number");
    assert_eq!(client.start("+4915123456701").await.status, 202);
    for spelling in ["4915123456701", "015123456701", "004915123456701"] {
        let told = send(spelling).await;
        assert_eq!(told, refused(429, "too many messages to this number"), "{spelling}");
    }
    assert_eq!(send("015123456702").await, accepted);
    assert_eq!(send("4915123456703").await, refused(429, "too many messages"));
    assert_eq!(client.start("+4915123456703").await.problem(), (429, "quota-exceeded"));
    for number in ["4915123500001", "4915123510001"] {
        assert_eq!(send(number).await, accepted);
    }
    assert_eq!(send("4915123520001").await, refused(429, "too many messages"), "the region's");
    // Digits that are not a number have their own limits, and are sent unchanged.
    assert_eq!(send("99999999999").await, accepted);
    assert_eq!(send("99999999999").await.0, 429);

    let with_key = "SELECT count(*) FROM verification WHERE api_key IS NOT NULL";
    assert_eq!(stack.postgres.number(with_key).await, 5);
    let written = "SELECT count(*) FROM outbox WHERE phone = '015123456702'";
    assert_eq!(stack.postgres.number(written).await, 1);
}

/// By default `/api` is open, and `/v1` is not.
#[tokio::test]
async fn client_without_a_key_changes_nothing_of_v1() {
    const PHONE: &str = "79991234567";
    let Some(stack) = Stack::new().await else { return };
    let settings = [("LIMIT_PHONE", "3/1h"), ("LIMIT_PREFIX", "3/1h"), ("RESEND_AFTER", "1,1,1")];
    let create = ["keys", "create", "--name", "shop", "--scopes", "send,check"];
    let created = stack.start("messager", &settings).args(&create).output().await;
    let key = String::from_utf8(created.stdout).unwrap().trim().to_owned();
    let _consumer = stack.start("consumer", &settings).ready().await;
    let _processor = stack.start("processor", &settings).ready().await;
    let api = stack.start("api", &settings).ready().await;
    let client = Client::new(api.port).with_key(&key);
    let id = client.start(PHONE).await.id();
    let code = super::support::code_for(&stack.gateway, PHONE).await;

    for expected in [200, 200, 200, 429] {
        assert_eq!(post(api.port, PHONE).await.0, expected);
    }
    let codes = super::support::codes_for(&stack.gateway, PHONE, 4).await;
    let again = eventually("a resend", std::time::Duration::from_secs(5), async || {
        let again = client.start(PHONE).await;
        (again.status == 202).then_some(again)
    })
    .await;

    assert_eq!(again.id(), id);
    assert_eq!(client.check_by_phone(PHONE, &code).await.body["valid"], true);
    assert_eq!(client.start(PHONE).await.status, 202, "the third on /v1");
    let newest = codes.last().unwrap();
    assert_eq!(client.check_by_phone(PHONE, newest).await.body["valid"], true);
}

/// A client of the Go service gets no limit that the operator did not set.
#[tokio::test]
async fn api_accepts_every_number_by_default() {
    let Some(stack) = Stack::new().await else { return };
    let api = stack.start("api", &[("GUARD", "enforce")]).ready().await;
    let numbers = (0..1_500).map(|number| format!("7999123{number:04}"));
    let premium = (0..200).map(|number| format!("1900555{number:04}"));
    let unreadable = (0..200).map(|number| format!("89999{number:06}"));

    let phones = numbers.chain(premium).chain(unreadable).collect();
    let answers = super::support::post_all(api.port, phones, 16).await;

    assert_eq!(answers.accepted.len(), 1_900, "{:?}", answers.statuses);
}

#[tokio::test]
async fn operator_can_clear_the_guesses_at_a_number() {
    let Some(stack) = Stack::new().await else { return };
    let api = stack.start("api", &[OPEN, ("LIMIT_CHECK", "1/1h")]).ready().await;
    let client = Client::new(api.port);
    let guess = async || client.check_by_phone("+79991234567", "000000").await.status;
    assert_eq!((guess().await, guess().await), (200, 429));

    let clear = ["limits", "clear", "--phone", "+79991234567"];
    let cleared = stack.start("messager", &[]).args(&clear).output().await;

    let told = String::from_utf8(cleared.stdout).unwrap();
    assert_eq!(told, "+7999*****67\tguesses: 2\tmessages: 0\n");
    assert_eq!(guess().await, 200);
}

#[tokio::test]
async fn limits_by_ip_and_by_custom_name_hold() {
    let Some(stack) = Stack::new().await else { return };
    let settings = [OPEN, ("LIMIT_IP", "2/1h"), ("LIMIT_CUSTOM", "device=1/1d")];
    let api = stack.start("api", &settings).ready().await;
    let client = Client::new(api.port);
    let start = async |number: u32, more: serde_json::Value| {
        let mut body = json!({ "phone": format!("+7999123{number:04}") });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        client.post("/v1/verifications", &body).await
    };

    for (number, ip) in [(1, "2001:db8::1"), (2, "2001:db8::ffff")] {
        assert_eq!(start(number, json!({ "ip": ip })).await.status, 202);
    }
    // The same /64.
    let refused = start(3, json!({ "ip": "2001:db8::2" })).await;
    assert_eq!(refused.body["violated-policies"], json!(["ip-1h"]));
    assert_eq!(start(3, json!({ "ip": "2001:db8:0:1::2" })).await.status, 202);

    assert_eq!(start(4, json!({ "limits": { "device": "a" } })).await.status, 202);
    let refused = start(5, json!({ "limits": { "device": "a" } })).await;
    assert_eq!(refused.body["violated-policies"], json!(["device-1d"]));
    assert_eq!(start(5, json!({ "limits": { "device": "b" } })).await.status, 202);
}

#[tokio::test]
async fn guard_records_a_flood_in_shadow_and_blocks_it_in_enforce() {
    const FLOOD: usize = 60;
    let Some(stack) = Stack::new().await else { return };
    let rules = [OPEN, ("GUARD_RULES", "prefix:20:10")];
    let flood = async |mode: &'static str, prefix: u32| {
        let settings = [rules[0], rules[1], ("GUARD", mode)];
        let api = stack.start("api", &settings).ready().await;
        let client = Client::new(api.port);
        let (mut passed, mut blocked) = (0, 0);
        for number in 0..FLOOD {
            match client.start(&format!("+7{prefix}{number:04}")).await {
                answer if answer.status == 202 => passed += 1,
                answer => {
                    assert_eq!(answer.problem(), (403, "abnormal-usage-detected"));
                    blocked += 1;
                }
            }
        }
        // The flood does not block other prefixes.
        assert_eq!(client.start("+79167654321").await.status / 100, 2);
        (passed, blocked, api)
    };

    let (passed, blocked, shadow) = flood("shadow", 999_123).await;
    assert_eq!((passed, blocked), (FLOOD, 0));
    // The process stores its last counts when it stops.
    shadow.stop("TERM").await;
    forget(&stack, "+79167654321").await;
    let (passed, blocked, enforce) = flood("enforce", 999_124).await;
    assert_eq!((passed, blocked), (20, FLOOD - 20));

    let noted = |mode: &'static str| {
        let stack = &stack;
        async move {
            stack
                .postgres
                .number(&format!(
                    "SELECT coalesce(sum(1 + coalesce(json_array_length(others), 0)), 0)::bigint
                    FROM guard_decision
                    WHERE mode = '{mode}'"
                ))
                .await
        }
    };
    eventually("decisions", std::time::Duration::from_secs(5), async || {
        (noted("enforce").await == 40).then_some(())
    })
    .await;
    assert_eq!(noted("shadow").await, 40);
    drop(enforce);

    let replay = ["guard", "replay", "--rules", "prefix:30:10"];
    let told = stack.start("messager", &[]).args(&replay).output().await;
    let told = String::from_utf8(told.stdout).unwrap();
    let line = told.lines().find(|line| line.contains("7999123")).expect(&told);
    let fields: Vec<_> = line.split('\t').collect();
    // None of the sixty is approved. The rule would have allowed thirty and blocked thirty.
    assert_eq!(fields[2..], ["60", "0", "30", "0"], "{told}");
}

#[tokio::test]
async fn flood_to_a_prefix_is_blocked_by_default_until_an_operator_allows_it() {
    let Some(stack) = Stack::new().await else { return };
    let api = stack.start("api", &[OPEN]).ready().await;
    let client = Client::new(api.port);

    let (mut passed, mut blocked) = (0, 0);
    for number in 0..130 {
        match client.start(&format!("+2327612{number:04}")).await {
            answer if answer.status == 202 => passed += 1,
            answer => {
                assert_eq!(answer.problem(), (403, "abnormal-usage-detected"));
                blocked += 1;
            }
        }
    }
    assert_eq!((passed, blocked), (100, 30));
    assert_eq!(client.start("+79161234567").await.status, 202);
    assert_eq!(client.start("+881612345678").await.problem(), (403, "region-not-allowed"));

    let allow = ["guard", "allow", "2327612", "--for", "1h"];
    assert!(stack.start("messager", &[]).args(&allow).output().await.status.success());
    eventually("what is allowed", std::time::Duration::from_secs(10), async || {
        (client.start("+23276120200").await.status == 202).then_some(())
    })
    .await;

    let replay = stack.start("messager", &[]).args(&["guard", "replay"]).output().await;
    let told = String::from_utf8(replay.stdout).unwrap();
    let line = told.lines().find(|line| line.contains("2327612")).expect(&told);
    assert!(line.starts_with("adaptive:enforce\t2327612\t101\t0\t1\t0"), "{told}");
}

async fn forget(stack: &Stack, phone: &str) {
    use sea_orm::ConnectionTrait;
    // Otherwise a pending verification would be sent again.
    let phone = phone.trim_start_matches('+');
    let sql = format!("DELETE FROM phone WHERE phone = '{phone}'");
    stack.postgres.connection.execute_unprepared(&sql).await.unwrap();
}
