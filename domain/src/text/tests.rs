use super::*;

fn templates() -> Templates {
    let mut templates = Templates::new("Your code: {code}".parse().unwrap());
    for (purpose, locale, text) in [
        ("default", "de", "Ihr Code: {code}"),
        ("login", "de", "Anmelden mit {code}"),
        ("login", "de-AT", "Einloggen mit {code}"),
        ("login", "default", "Log in with {code}"),
        ("pay", "fr", "Payez avec {code}"),
    ] {
        templates.add(purpose, locale, text).unwrap();
    }
    templates
}

#[test]
fn a_missing_text_falls_back_to_shorter_locales_then_to_the_default_purpose() {
    let templates = templates();

    for (purpose, locale, key) in [
        (None, None, None),
        (None, Some("en"), None),
        (None, Some("de-CH"), Some("default/de")),
        (Some("login"), Some("de-AT"), Some("login/de-at")),
        (Some("login"), Some("DE-at-1996"), Some("login/de-at")),
        (Some("login"), Some("de-CH"), Some("login/de")),
        (Some("login"), Some("fr"), Some("login/default")),
        (Some("login"), None, Some("login/default")),
        (Some("pay"), Some("fr-CA"), Some("pay/fr")),
        (Some("pay"), Some("de"), Some("default/de")),
        (Some("pay"), Some("en"), None),
    ] {
        let found = templates.resolve(purpose, locale);
        assert_eq!(found.as_ref().map(TemplateKey::as_str), key, "{purpose:?} {locale:?}");
    }
    assert!(templates.has("default") && templates.has("pay") && !templates.has("reset"));
}

#[test]
fn the_named_text_or_its_fallback_is_rendered() {
    let templates = templates();
    let code = "0042".parse().unwrap();
    let render =
        |key: Option<&str>| templates.render(key.map(|key| key.parse().unwrap()).as_ref(), &code);

    assert_eq!(render(None), "Your code: 0042");
    assert_eq!(render(Some("login/de-at")), "Einloggen mit 0042");
    assert_eq!(render(Some("login/es")), "Log in with 0042");
    assert_eq!(render(Some("reset/es")), "Your code: 0042");
}

#[test]
fn the_webotp_line_is_the_last() {
    let options = TextOptions {
        webotp_host: Some("Example.com".parse().unwrap()),
        app_hash: Some("FA+9qCX9VSu".parse().unwrap()),
    };

    let text = templates().with_options(options).render(None, &"123456".parse().unwrap());

    assert_eq!(text, "Your code: 123456\nFA+9qCX9VSu\n\n@example.com #123456");
    assert_eq!(text.lines().last(), Some("@example.com #123456"));
}

#[test]
fn a_name_is_a_purpose_and_a_locale() {
    for good in ["login/de", "a/default", "a_b-1/zh-hant-tw", "Login/DE"] {
        assert!(good.parse::<TemplateKey>().is_ok(), "{good}");
    }
    for bad in [
        "",
        "login",
        "/de",
        "login/",
        "1a/de",
        "login/d",
        "login/de_at",
        "a b/de",
        "login/de/at",
        "login;/de",
        "lögin/de",
        "login/дe",
        "login/de-",
    ] {
        assert_eq!(bad.parse::<TemplateKey>(), Err(InvalidTemplateKey), "{bad}");
    }
}

#[test]
fn an_error_contains_the_name_of_the_text() {
    let mut templates = templates();

    let key = templates.add("lo gin", "de", "{code}").unwrap_err().to_string();
    let text = templates.add("login", "en", "no place").unwrap_err().to_string();

    assert!(key.starts_with("\"lo gin/de\": "), "{key}");
    assert!(text.starts_with("\"login/en\": "), "{text}");
}

#[test]
fn each_lint_names_its_text_and_problem() {
    let mut templates = Templates::new("{code}".parse().unwrap());
    templates.add("a", "ru", &format!("{{code}}{}", "ы".repeat(61))).unwrap();
    templates.add("b", "en", &format!("{{code}}{}", "a".repeat(150))).unwrap();
    templates.add("c", "en", "{code}\tis it").unwrap();

    let lints: Vec<String> = templates.lint(1).iter().map(ToString::to_string).collect();

    assert_eq!(
        lints,
        [
            "SMS_TEMPLATE: contains only the code",
            "a/ru: takes 2 SMS in UCS-2 because of 'ы', and 1 are allowed",
            "c/en: contains a control character",
        ]
    );
    assert_eq!(templates.lint(2).len(), 2);
    let app = TextOptions { app_hash: "FA+9qCX9VSu".parse().ok(), ..TextOptions::default() };
    let lints = templates.with_options(app).lint(2);
    assert!(lints.contains(&Lint::TooLongForApp { name: "b/en".to_owned(), bytes: 172 }));
}

#[test]
fn malformed_hosts_and_hashes_are_refused() {
    for bad in ["", "-a.com", "a..com", "a.com/", "a b", "ы.рф", "a.com:8080"] {
        assert!(bad.parse::<WebOtpHost>().is_err(), "{bad}");
    }
    for bad in ["", "FA+9qCX9VS", "FA+9qCX9VSuu", "FA-9qCX9VSu"] {
        assert!(bad.parse::<AppHash>().is_err(), "{bad}");
    }
}
