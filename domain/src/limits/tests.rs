use super::*;

fn window(quota: u32, seconds: u64) -> Window {
    Window { quota, period: Duration::from_secs(seconds) }
}

#[track_caller]
fn check(text: &str, expected: Result<&[Window], InvalidWindows>) {
    let windows = text.parse::<Windows>();
    assert_eq!(windows.as_ref().map(|it| &it.0[..]).map_err(|error| *error), expected, "{text}");
}

#[test]
fn lists_of_windows_parse() {
    check("off", Ok(&[]));
    check("5/1h,10/1d", Ok(&[window(5, 3_600), window(10, 86_400)]));
    check(
        "1/1s, 1000000/30d, 2/90m",
        Ok(&[window(1, 1), window(1_000_000, 2_592_000), window(2, 5_400)]),
    );
}

#[test]
fn a_list_of_windows_is_written_as_it_is_parsed() {
    for text in ["off", "5/1h,10/1d", "1/1s,1000000/30d,2/90m"] {
        assert_eq!(text.parse::<Windows>().unwrap().to_string(), text);
    }
}

#[test]
fn other_texts_are_not_lists_of_windows() {
    for text in [
        "",
        "5",
        "5/h",
        "5/1",
        "5/1w",
        "/1h",
        "+5/1h",
        "5/-1h",
        "5/1ы",
        "5/1h,",
        "Off",
        "1/1s,1/2s,1/3s,1/4s",
    ] {
        check(text, Err(InvalidWindows::Form));
    }
    for text in ["0/1h", "1000001/1h", "5/0s", "5/31d", "99999999999/1h", "5/99999999999d"] {
        check(text, Err(InvalidWindows::Range));
    }
    check("5/1h,6/60m", Err(InvalidWindows::SamePeriod));
}

#[test]
fn the_limit_of_a_policy_has_no_period() {
    let window = Window { quota: 1, period: Duration::from_secs(3_600) };
    for (policy, limit) in [
        (Policy::new("phone", window), "phone"),
        (Policy::new("my-device", window), "my-device"),
        (Policy::named("attempts", window), "attempts"),
    ] {
        assert_eq!(policy.name.limit(), limit);
    }
}

#[test]
fn the_name_of_a_policy_contains_its_period() {
    for (text, name) in [
        ("5/1h", "phone-1h"),
        ("5/24h", "phone-1d"),
        ("5/90m", "phone-90m"),
        ("5/3600s", "phone-1h"),
        ("5/61s", "phone-61s"),
    ] {
        let windows: Windows = text.parse().unwrap();
        assert_eq!(windows.policies("phone")[0].name.as_str(), name, "{text}");
    }
}

#[test]
fn ipv6_addresses_are_counted_by_64_bit_prefix() {
    for (ip, key) in [
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
    ] {
        assert_eq!(ip_key(ip.parse().unwrap()), key);
    }
}

#[test]
fn a_message_has_a_counter_for_each_enabled_limit_whose_key_it_has() {
    let device: CustomLimit = "device".parse().unwrap();
    let limits = SendLimits {
        prefix: "100/1h".parse().unwrap(),
        custom: BTreeMap::from([(device.clone(), "2/1m".parse().unwrap())]),
        ..SendLimits::default()
    };
    let other: CustomLimit = "other".parse().unwrap();
    let send = SendOf {
        ip: Some("203.0.113.7".parse().unwrap()),
        prefix: "7999123",
        region: Some("RU"),
        custom: &[(device, "a1".to_owned()), (other, "x".to_owned())],
        ..SendOf::default()
    };

    let counters = limits.counters(send);

    let named: Vec<(&str, &str)> =
        counters.iter().map(|it| (it.policy.name.as_str(), it.key.as_str())).collect();
    assert_eq!(
        named,
        [
            ("ip-1h", "203.0.113.7"),
            ("ip-1d", "203.0.113.7"),
            ("prefix-1h", "7999123"),
            ("device-1m", "a1"),
        ]
    );
    assert_eq!(format!("{:?}", counters[0]), "Counter(ip-1h …)");
}

#[test]
fn a_custom_limit_cannot_have_a_built_in_name() {
    for good in ["device", "a", "x-1", "resends"] {
        assert!(good.parse::<CustomLimit>().is_ok(), "{good}");
    }
    for bad in
        ["", "1a", "-a", "Device", "a b", "phone", "attempts", "a123456789012345678901234567890123"]
    {
        assert_eq!(bad.parse::<CustomLimit>(), Err(InvalidCustomLimit), "{bad}");
    }
}
