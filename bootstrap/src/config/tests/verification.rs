//! The settings of verifications, limits, numbers, the guard and events.
//!
//! This is one file, because all tests read the same few settings.

use adapters_http::ApiAuth;
use application::{Counting, DrawnKeys, KeySource, ResendPolicy};
use domain::{GuardMode, NumberRules, Pacing, Regions, SendLimits, Windows};

use super::*;

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const EVENTS_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn config(settings: &[(&str, &str)]) -> Config {
    read(settings).unwrap()
}

/// Returns the report of bad settings.
fn complaint(settings: &[(&str, &str)]) -> String {
    read(settings).unwrap_err().to_string()
}

fn windows(text: &str) -> Windows {
    text.parse().unwrap()
}

#[test]
fn no_settings_mean_the_defaults_of_the_domain() {
    let Config { verification, api, numbers, guard, events, .. } = config(&[]);
    let VerificationConfig { sends, retention, .. } = verification;
    let api = api.legacy;

    assert_eq!(sends.rules.limits, SendLimits::default());
    assert_eq!((sends.pacing, sends.resend_policy), (Pacing::default(), ResendPolicy::Same));
    assert!(api.is_open && !api.rules.refuse_unreadable);
    assert_eq!(api.rules.limits, SendLimits { phone: windows("20/1h"), ..SendLimits::OFF });
    assert_eq!(api.rules.numbers, NumberRules::NONE);
    assert_eq!(numbers.rules, NumberRules::default());
    assert!(numbers.default_region.is_none() && numbers.test.is_empty());
    let rules: Vec<String> = guard.rules_in_force().iter().map(ToString::to_string).collect();
    assert_eq!(rules, ["adaptive:enforce"]);
    assert_eq!(guard.window, Duration::from_secs(3_600));
    assert!(events.is_none());
    assert_eq!(retention, Duration::from_secs(30 * 86_400));
}

#[test]
fn api_auth_defaults_to_none_on_sqlite_and_v1_on_postgres() {
    let auth = |settings: &[(&str, &str)]| config(settings).api.auth;

    assert_eq!(auth(&[]), ApiAuth::None);
    assert_eq!(auth(GO_SERVICE), ApiAuth::V1);
    assert_eq!(auth(&[GO_SERVICE, &[("API_AUTH", "none")]].concat()), ApiAuth::None);
    assert_eq!(auth(&[("API_AUTH", "all")]), ApiAuth::All);
}

#[test]
fn limit_of_a_phone_that_is_set_holds_for_both_origins() {
    for (set, limit) in [("3/1m", "3/1m"), ("off", "off"), (" 1/1s, 2/1d ", "1/1s,2/1d")] {
        let Config { verification, api, .. } = config(&[("LIMIT_PHONE", set)]);

        let phones = (verification.sends.rules.limits.phone, api.legacy.rules.limits.phone);
        assert_eq!(phones, (windows(limit), windows(limit)));
    }
}

#[test]
fn settings_that_are_set_hold_on_api_too() {
    let api = config(&[
        ("LIMIT_PREFIX", "2/1h"),
        ("LIMIT_REGION", "3/1h"),
        ("LIMIT_KEY", "4/1h"),
        ("REGIONS", "DE"),
        ("REFUSED_NUMBER_TYPES", "premium_rate"),
        ("API_UNREADABLE_NUMBERS", "refuse"),
        ("API_ENABLED", "false"),
    ])
    .api
    .legacy;

    let SendLimits { prefix, region, key, .. } = api.rules.limits;
    assert_eq!([prefix, region, key], ["2/1h", "3/1h", "4/1h"].map(windows));
    assert_eq!(api.rules.numbers.allowed, "DE".parse().unwrap());
    assert_eq!(api.rules.numbers.refused, [domain::NumberType::PremiumRate].into());
    assert!(api.rules.refuse_unreadable && !api.is_open);
}

#[test]
fn origins_with_different_trust_or_limits_count_apart() {
    let counting = |settings: &[(&str, &str)]| config(settings).api.legacy.rules.counting;
    let limit = ("LIMIT_PHONE", "5/1h");

    for (auth, unset, set) in [
        ("none", Counting::PhonesApart, Counting::Shared),
        ("all", Counting::PhonesApart, Counting::Shared),
        ("v1", Counting::Apart, Counting::Apart),
    ] {
        let auth = ("API_AUTH", auth);
        assert_eq!((counting(&[auth]), counting(&[auth, limit])), (unset, set), "{auth:?}");
    }
}

#[test]
fn every_limit_can_be_set() {
    let limits = config(&[
        ("LIMIT_IP", "off"),
        ("LIMIT_PREFIX", "1000/1h"),
        ("LIMIT_REGION", "1000/1m,1000000/30d"),
        ("LIMIT_KEY", "5/1s"),
        ("LIMIT_CHECK", "3/1h"),
        ("LIMIT_CUSTOM", "device=5/1d; tenant-2=off"),
    ])
    .verification
    .sends
    .rules
    .limits;

    assert_eq!(limits.phone, SendLimits::default().phone);
    assert_eq!((limits.ip, limits.prefix), (Windows::OFF, windows("1000/1h")));
    assert_eq!(limits.region, windows("1000/1m,1000000/30d"));
    assert_eq!((limits.key, limits.check), (windows("5/1s"), windows("3/1h")));
    let custom: Vec<_> = limits.custom.iter().map(|(name, it)| (name.as_str(), it)).collect();
    assert_eq!(custom, [("device", &windows("5/1d")), ("tenant-2", &Windows::OFF)]);
}

#[test]
fn bad_values_are_reported_with_their_rules() {
    let complaint = complaint(&[
        ("API_AUTH", "yes"),
        ("LIMIT_PHONE", "5"),
        ("LIMIT_IP", "5/1h,6/1h"),
        ("LIMIT_PREFIX", "0/1h"),
        ("LIMIT_REGION", "1/31d"),
        ("LIMIT_KEY", "1/1h,1/2h,1/3h,1/4h"),
        ("LIMIT_CHECK", "1000001/1h"),
        ("LIMIT_CUSTOM", "ip=5/1h"),
        ("RESEND_AFTER", "60,0"),
        ("RESEND_POLICY", "other"),
        ("REQUIRE_IP", "yes"),
        ("REGIONS", "DE,at"),
        ("REFUSED_NUMBER_TYPES", "fax"),
        ("DEFAULT_REGION", "Germany"),
        ("GUARD", "on"),
        ("GUARD_WINDOW", "59"),
        ("GUARD_RULES", "prefix:50:101"),
        ("TEST_NUMBERS_IN_RELEASE", "yes"),
        ("SMS_MAX_SEGMENTS", "11"),
        ("SMS_WEBOTP_HOST", "https://example.com"),
        ("SMS_APP_HASH", "short"),
        ("EVENTS_ALLOW_PRIVATE", "1"),
        ("VERIFICATION_RETENTION", "0"),
    ]);

    for expected in [
        "API_AUTH is \"yes\", and must be one of none, v1, all",
        "LIMIT_PHONE is \"5\", and must be off, or 1 to 3 limits",
        "LIMIT_IP is \"5/1h,6/1h\"",
        "LIMIT_PREFIX is \"0/1h\"",
        "LIMIT_REGION is \"1/31d\"",
        "LIMIT_KEY is",
        "LIMIT_CHECK is \"1000001/1h\"",
        "LIMIT_CUSTOM is \"ip=5/1h\", and must be name=limits by semicolon",
        "RESEND_AFTER is \"60,0\", and must be 1 to 9 whole numbers",
        "RESEND_POLICY is \"other\", and must be one of same, new",
        "REQUIRE_IP is \"yes\", and must be one of true, false",
        "REGIONS is \"DE,at\", and must be none, or codes",
        "REFUSED_NUMBER_TYPES is \"fax\", and must be none, or some",
        "DEFAULT_REGION is \"Germany\", and must be a code of two",
        "GUARD is \"on\", and must be one of off, shadow, enforce",
        "GUARD_WINDOW is \"59\", and must be seconds, a whole number from 60",
        "GUARD_RULES is \"prefix:50:101\", and must be rules by comma",
        "TEST_NUMBERS_IN_RELEASE is \"yes\", and must be one of refuse, allow",
        "SMS_MAX_SEGMENTS is \"11\", and must be a whole number from 1 to 10",
        "SMS_WEBOTP_HOST is \"https://example.com\", and must be a DNS name",
        "SMS_APP_HASH is \"short\", and must be 11 characters",
        "EVENTS_ALLOW_PRIVATE is \"1\", and must be one of true, false",
        "VERIFICATION_RETENTION is \"0\", and must be a whole number from 1 to 3650",
    ] {
        assert!(complaint.contains(expected), "{expected} is not in:\n{complaint}");
    }
    assert_eq!(complaint.lines().count(), 1 + 23, "{complaint}");
}

#[test]
fn bad_names_of_custom_limits_are_refused() {
    for bad in ["device=5/1d;device=6/1d", "device", "Device=5/1d", "device=5", "a=1/1h;", ";"] {
        assert!(complaint(&[("LIMIT_CUSTOM", bad)]).contains("LIMIT_CUSTOM is"), "{bad}");
    }
}

/// These values have a key, a code or a password.
#[test]
fn report_of_a_bad_secret_does_not_repeat_it() {
    let secret = "c2VjcmV0";
    let complaint = complaint(&[
        ("CODE_PEPPER", &format!("p1:{secret}")),
        ("PAYLOAD_KEY", &format!("k1:{KEY}{secret},k1:{KEY}")),
        ("TEST_NUMBERS", &format!("+79991234567:{secret}")),
        ("EVENTS_URL", &format!("ftp://user:{secret}@example.com")),
        ("EVENTS_SECRET", secret),
    ]);

    for expected in [
        "CODE_PEPPER cannot be used: 1 to 4 comma-separated keys, each id:base64 of 32 bytes",
        "PAYLOAD_KEY cannot be used: ",
        "TEST_NUMBERS must be +phone:code by comma",
        "EVENTS_URL must begin with http:// or https:// and a host, and a port may be 1 to 65535",
        "EVENTS_SECRET cannot be used: 1 to 4 comma-separated secrets, each whsec_",
    ] {
        assert!(complaint.contains(expected), "{expected} is not in:\n{complaint}");
    }
    assert_eq!(complaint.lines().count(), 1 + 5, "{complaint}");
    assert!(!complaint.contains(secret) && !complaint.contains("1234567"), "{complaint}");
}

#[test]
fn url_with_an_invalid_port_is_refused() {
    for host in ["127.0.0.1:99999", "[::1]:0", "example.com:", "user:secret@example.com:80a"] {
        let complaint =
            complaint(&[("GATEWAY_URL", &format!("http://{host}/")), ("GATEWAY", "webhook")]);
        assert!(complaint.contains("GATEWAY_URL must begin with"), "{host}: {complaint}");
    }
    for host in ["[::1]:8080", "user:99999@example.com", "example.com:65535"] {
        let settings = [("GATEWAY_URL", &*format!("http://{host}/")), ("GATEWAY", "webhook")];
        assert!(read(&settings).is_ok(), "{host}");
    }
}

#[test]
fn private_events_url_needs_permission() {
    for url in ["http://127.0.0.1:9000/events", "https://[fd00::1]"] {
        let settings = [("EVENTS_URL", url), ("EVENTS_SECRET", EVENTS_SECRET)];
        let complaint = complaint(&settings);
        assert!(complaint.contains("EVENTS_URL has an address that is not public"), "{complaint}");
        assert!(read(&[&settings[..], &[("EVENTS_ALLOW_PRIVATE", "true")]].concat()).is_ok());
    }
}

#[test]
fn debug_output_has_no_secret() {
    let key = format!("p1:{KEY}");
    let config = read(&[
        ("APP_MODE", "debug"),
        ("CODE_PEPPER", &key),
        ("PAYLOAD_KEY", &key),
        ("TEST_NUMBERS", "+79990000000:482915"),
        ("EVENTS_URL", "https://user:c2VjcmV0@example.com"),
        ("EVENTS_SECRET", EVENTS_SECRET),
    ]);

    let shown = format!("{:?}", config.unwrap());

    for secret in [KEY, "482915", "79990000000", "c2VjcmV0", EVENTS_SECRET] {
        assert!(!shown.contains(secret), "{secret} is in:\n{shown}");
    }
}

#[test]
fn payload_key_is_drawn_only_if_the_queue_is_in_the_sqlite_file() {
    let payload = |settings: &[(&str, &str)]| match config(settings).codes.vault.payload {
        KeySource::Set(_) => "set",
        KeySource::Drawn => "drawn",
        KeySource::Absent => "absent",
    };
    let set = ("PAYLOAD_KEY", &*format!("k1:{KEY}"));

    assert_eq!(payload(&[]), "drawn");
    assert_eq!(payload(&[("PRODUCER_URL", "kafka:9092")]), "absent");
    assert_eq!(payload(&[("CONSUMER_URL", "kafka:9092")]), "absent");
    let postgres: Vec<_> =
        GO_SERVICE.iter().copied().filter(|(name, _)| name.starts_with("POSTGRES")).collect();
    assert_eq!(payload(&postgres), "absent");
    assert_eq!(payload(&[set]), "set");
    assert_eq!(payload(&[GO_SERVICE, &[set]].concat()), "set");
}

#[test]
fn sealed_records_can_be_required_if_there_is_a_key() {
    let required = ("REQUIRE_SEALED", "true");
    let kafka = ("CONSUMER_URL", "kafka:9092");
    let key = ("PAYLOAD_KEY", &*format!("k1:{KEY}"));

    assert!(!config(&[]).codes.require_sealed);
    assert!(config(&[required]).codes.require_sealed, "with the drawn key");
    assert!(config(&[required, kafka, key]).codes.require_sealed);
    let error = read(&[required, kafka]).unwrap_err().to_string();
    assert!(error.contains("REQUIRE_SEALED is true, and needs PAYLOAD_KEY"), "{error}");
    let error = read(&[required, kafka, ("PAYLOAD_KEY", "what")]).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 2, "{error}");
}

#[test]
fn pepper_that_is_not_set_is_drawn() {
    let two = format!("p2:{KEY}, p1:{KEY}");

    assert!(matches!(config(&[]).codes.vault.peppers, KeySource::Drawn));
    let KeySource::Set(peppers) = config(&[("CODE_PEPPER", &two)]).codes.vault.peppers else {
        panic!("not set")
    };
    assert_eq!(peppers.first().id().as_str(), "p2");
}

#[test]
fn numbers_are_allowed_by_region_and_type() {
    let rules = |regions, types| {
        let settings = [("REGIONS", regions), ("REFUSED_NUMBER_TYPES", types)];
        config(&settings).numbers.rules
    };

    let every = NumberRules { allowed: Regions::EVERY_COUNTRY, refused: [].into() };
    assert_eq!(rules("*", "none"), every);
    let some = rules("DE, AT", "voip,pager");
    let allowed: Vec<_> = some.allowed.countries().map(|it| it.as_str().to_owned()).collect();
    assert_eq!((allowed, some.refused.len()), (vec!["AT".to_owned(), "DE".to_owned()], 2));
    assert_eq!(rules("none", "none").allowed.countries().count(), 0);
    assert_ne!(rules("*,001", "none"), every);
    let german = config(&[("DEFAULT_REGION", "DE")]).numbers.default_region;
    assert_eq!(german, "DE".parse().ok());
}

#[test]
fn unknown_region_is_refused_by_name() {
    let complaint = complaint(&[("REGIONS", "DE,XX,UK"), ("DEFAULT_REGION", "SU")]);

    assert!(complaint.contains("REGIONS has UK, XX: no country with phone numbers"), "{complaint}");
    assert!(complaint.contains("DEFAULT_REGION has SU: no country"), "{complaint}");
}

#[test]
fn test_numbers_are_refused_in_release_mode_unless_allowed() {
    let test = ("TEST_NUMBERS", "+79990000000:000000, +4915100000000:1234");

    assert!(complaint(&[test]).contains("TEST_NUMBERS are refused with APP_MODE=release"));
    for allowed in [("APP_MODE", "debug"), ("TEST_NUMBERS_IN_RELEASE", "allow")] {
        let numbers = config(&[test, allowed]).numbers.test;
        assert_eq!(numbers[&"79990000000".parse().unwrap()].as_str(), "000000");
        assert_eq!(numbers[&"4915100000000".parse().unwrap()].as_str(), "1234");
    }
    assert!(read(&[("TEST_NUMBERS_IN_RELEASE", "refuse")]).is_ok());
}

#[test]
fn test_number_is_a_phone_with_a_code_and_occurs_once() {
    for bad in [
        "79990000000:000000",
        "+79990000000",
        "+79990000000:12",
        "+1:000000",
        "+79990000000:000000,+79990000000:111111",
    ] {
        let complaint = complaint(&[("APP_MODE", "debug"), ("TEST_NUMBERS", bad)]);
        assert!(complaint.contains("TEST_NUMBERS must be"), "{bad}: {complaint}");
    }
}

#[test]
fn guard_mode_holds_for_rules_that_name_none() {
    let rules = ("GUARD_RULES", "prefix:1:10, region:2:20:shadow,region:3:30:enforce");
    let shown = |guard: GuardConfig| {
        guard.rules.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };

    let enforced = config(&[("GUARD", "enforce"), rules]).guard;
    let off = config(&[("GUARD", "off"), rules, ("GUARD_WINDOW", "60")]).guard;

    assert_eq!(enforced.mode, Some(GuardMode::Enforce));
    assert_eq!(enforced.rules_in_force(), enforced.rules);
    assert_eq!(shown(enforced), "prefix:1:10:enforce region:2:20:shadow region:3:30:enforce");
    assert!(off.rules_in_force().is_empty());
    assert_eq!((off.rules.len(), off.window), (3, Duration::from_secs(60)));
    let shadow = config(&[("GUARD", "shadow")]).guard;
    assert_eq!(shown(shadow), "adaptive:shadow");
}

#[test]
fn events_need_a_url_and_a_secret() {
    let url = ("EVENTS_URL", "https://example.com/hook");
    let secret = ("EVENTS_SECRET", EVENTS_SECRET);

    let events = config(&[url, secret, ("EVENTS_ALLOW_PRIVATE", "true")]).events.unwrap();
    assert_eq!(events.url, "https://example.com/hook");
    assert!(events.allow_private);
    assert!(!config(&[url, secret]).events.unwrap().allow_private);
    assert!(config(&[secret]).events.is_none());
    assert!(complaint(&[url]).contains("EVENTS_SECRET is missing"));
}

#[test]
fn warnings_name_the_open_paths() {
    let warnings = |settings: &[(&str, &str)]| read(settings).unwrap().warnings();
    let none = [GO_SERVICE, &[("API_AUTH", "none")]].concat();
    let test = [("APP_MODE", "debug"), ("API_AUTH", "all"), ("TEST_NUMBERS", "+7999000000:0000")];

    assert!(warnings(&[("API_AUTH", "all")]).is_empty());
    let [api] = &warnings(GO_SERVICE)[..] else { panic!("not one") };
    assert!(api.contains("/api is open") && api.contains("port 8080"), "{api}");
    let [both, release] = &warnings(&none)[..] else { panic!("not two") };
    assert!(both.contains("/api and /v1 are open"), "{both}");
    assert!(release.contains("API_AUTH=none with APP_MODE=release"), "{release}");
    let [test] = &warnings(&test)[..] else { panic!("not one") };
    assert!(test.contains("one of 1 numbers") && !test.contains("7999"), "{test}");
    // The embedded default gives one warning. It is meant for a trial.
    assert_eq!(warnings(&[]).len(), 1);
    assert!(warnings(&[("API_AUTH", "v1"), ("API_ENABLED", "false")]).is_empty());
    let [unread] = &warnings(&[("API_AUTH", "all"), ("REGIONS", "DE")])[..] else { panic!() };
    assert!(unread.contains("API_UNREADABLE_NUMBERS=refuse"), "{unread}");
}

#[test]
fn warning_says_which_callers_reach_an_open_api() {
    #[track_caller]
    fn check(settings: &[(&str, &str)], expected: &[&str]) {
        let [told] = &read(settings).unwrap().warnings()[..] else { panic!("not one") };
        for part in expected {
            assert!(told.contains(part), "{part} is not in {told}");
        }
    }

    let all = "can reach port 8080 of any address of this machine, IPv4 or IPv6";
    check(&[], &["/api and /v1 are open without an API key", all, "APP_HOST=localhost"]);
    check(&[("APP_HOST", "10.0.0.1,fd00::1")], &["can reach port 8080 of 10.0.0.1,fd00::1"]);
    for loopback in ["localhost", "127.0.0.1", "::1"] {
        check(&[("APP_HOST", loopback)], &["every program on this machine", loopback]);
    }
}

#[test]
fn drawn_pepper_is_warned_about() {
    let drawn = DrawnKeys { pepper: true, payload_key: true };
    let warning = |settings: &[(&str, &str)]| read(settings).unwrap().warning_of_drawn(drawn);

    let file = warning(&[("SQLITE_PATH", "a.db")]).unwrap();
    let table = warning(GO_SERVICE).unwrap();

    assert!(file.contains("the file a.db.secrets"), "{file}");
    assert!(table.contains("the table secret"), "{table}");
    for part in ["CODE_PEPPER is not set", "messager secrets show", "messager secrets forget"] {
        assert!(file.contains(part), "{part} is not in {file}");
    }
    let set = DrawnKeys { pepper: false, payload_key: true };
    assert!(read(&[]).unwrap().warning_of_drawn(set).is_none());
}
