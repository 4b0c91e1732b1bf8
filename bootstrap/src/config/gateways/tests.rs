use std::path::Path;

use domain::Region;

use super::*;

/// Reads a file in which the environment has `SECRET` and an empty `EMPTY`.
fn read(text: &str) -> GatewaysFile {
    let lookup = |name: &str| match name {
        "SECRET" => Some("sesame".to_owned()),
        "URL" => Some("http://user:sesame@hook.example/".to_owned()),
        "EMPTY" => Some(" ".to_owned()),
        _ => None,
    };
    GatewaysFile::of(Path::new("/etc/messager/g.toml"), text, &lookup)
}

/// Reads a file that can be used.
#[track_caller]
fn good(text: &str) -> GatewaysConfig {
    let file = read(text);
    assert_eq!((&file.problems, &file.missing), (&Vec::new(), &Vec::new()));
    file.gateways.unwrap()
}

/// Reads a file with these lines after a gateway `main` and a gateway `local`, which take 5 lines, and
/// returns what is wrong with it, without the name of the file.
fn problems(text: &str) -> Vec<String> {
    let file = read(&format!("{TWO}{text}"));
    assert_eq!(file.gateways.is_none(), !file.problems.is_empty());
    shown(&file.problems)
}

fn shown(lines: &[String]) -> Vec<String> {
    let shown = |line: &String| line.strip_prefix("/etc/messager/g.toml:").unwrap().to_owned();
    lines.iter().map(shown).collect()
}

const TWO: &str = "[gateway.main]\nprovider = \"webhook\"\nurl = \"http://a.example/\"\n\
                   [gateway.local]\nprovider = \"console\"\n";

fn names(route: &RouteConfig) -> Vec<&str> {
    route.gateways.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn without_a_route_all_numbers_go_to_all_gateways_in_the_order_of_the_file() {
    let gateways = good(TWO);

    let found: Vec<_> =
        gateways.gateways.iter().map(|it| (it.name.as_str(), it.provider)).collect();
    assert_eq!(found, [("main", "webhook"), ("local", "console")]);
    assert_eq!(gateways.routes.len(), 1);
    assert_eq!(names(&gateways.routes[0]), ["main", "local"]);
    assert!(gateways.routes[0].matches(&"79991234567".parse().unwrap(), None));
    assert_eq!((gateways.ambiguous, gateways.weights), (Ambiguous::Same, Weights::Move));
    assert_eq!(gateways.files, [Path::new("/etc/messager/g.toml")]);
}

#[test]
fn everything_that_a_file_may_say_is_read() {
    let gateways = good(
        &format!(
            "{TWO}timeout = 3\n\n[[route]]\nregions = [\"RU\", \"KZ\", \"001\"]\n\
         prefixes = [\"+4477\", \"1\"]\ngateways = [\"local\", \"main\"]\nsender = \"SHOP\"\n\
         params = {{ dlt_entity_id = \"17\" }}\n[[route]]\n\
         gateways = {{ main = 70, local = 30 }}\n\n[failover]\nambiguous = \"next\"\n\
         [health]\nweights = \"fixed\"\n"
        )
        .replace("timeout = 3\n", "")
        .replace("webhook", "http"),
    );

    let [first, second] = gateways.routes.as_slice() else { panic!("two routes") };
    let regions: Vec<&str> = first.regions.iter().map(Region::as_str).collect();
    assert_eq!(regions, ["RU", "KZ", "001"]);
    assert_eq!(first.prefixes, ["4477", "1"]);
    assert_eq!((names(first), first.sender.as_deref()), (vec!["local", "main"], Some("SHOP")));
    assert_eq!(first.params["dlt_entity_id"], "17");
    assert!(first.gateways.iter().all(|(_, weight)| weight.is_none()));
    let weights: Vec<u32> = second.gateways.iter().map(|it| it.1.unwrap().get()).collect();
    assert_eq!((names(second), weights), (vec!["main", "local"], vec![70, 30]));
    assert_eq!(second.first().unwrap().as_str(), "main");
    assert_eq!((gateways.ambiguous, gateways.weights), (Ambiguous::Next, Weights::Fixed));
}

#[test]
fn number_takes_a_route_by_its_region_or_by_its_prefix() {
    let gateways = good(&format!(
        "{TWO}[[route]]\nregions = [\"RU\"]\nprefixes = [\"4477\"]\ngateways = [\"local\"]\n\
         [[route]]\ngateways = [\"main\"]\n"
    ));
    let matches = |phone: &str, region: Option<&str>| {
        let region = region.map(|region| region.parse().unwrap());
        gateways.routes[0].matches(&phone.parse().unwrap(), region)
    };

    assert!(matches("79991234567", Some("RU")));
    assert!(matches("447712345678", Some("GB")));
    assert!(matches("447712345678", None));
    assert!(!matches("447012345678", Some("GB")));
    assert!(!matches("77011234567", Some("KZ")));
}

#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let found = problems(text);
    assert_eq!(found.len(), expected.len(), "{text}\n{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{text}\n{found}\nis not\n{expected}");
    }
}

#[test]
fn every_bad_line_of_a_route_is_reported_with_its_place() {
    let route = "[[route]]\ngateways = [\"main\", \"local\"]\n";
    for (lines, expected) in [
        ("[[route]]\n", "6: [[route]] 1 gateways is missing"),
        ("[[route]]\ngateways = []\n", "7: [[route]] 1 gateways must be a list of names"),
        ("[[route]]\ngateways = {}\n", "7: [[route]] 1 gateways must be a list of names"),
        ("[[route]]\ngateways = \"main\"\n", "7: [[route]] 1 gateways must be a list of names"),
        ("[[route]]\ngateways = [1]\n", "7: [[route]] 1 gateways must be a list of names"),
        (
            "[[route]]\ngateways = [\n\"local\",\n\"mian\"]\n",
            "9: [[route]] 1 gateways has no gateway \"mian\": did you mean main?",
        ),
        (
            "[[route]]\ngateways = [\"elsewhere\"]\n",
            "7: [[route]] 1 gateways has no gateway \"elsewhere\"; allowed are main, local",
        ),
        (
            "[[route]]\ngateways = [\"main\", \"main\"]\n",
            "7: [[route]] 1 gateways has \"main\" twice",
        ),
        (
            "[[route]]\ngateways = { main = 0 }\n",
            "7: [[route]] 1 gateways: the weight of main must be a whole number from 1",
        ),
        (
            "[[route]]\ngateways = { main = -1 }\n",
            "7: [[route]] 1 gateways: the weight of main must be a whole number from 1",
        ),
        (
            "[[route]]\ngateways = { main = 0.5 }\n",
            "7: [[route]] 1 gateways: the weight of main must be a whole number from 1",
        ),
        (
            "[[route]]\ngateways = { main = 1000001 }\n",
            "7: [[route]] 1 gateways: the weight of main must be a whole number from 1",
        ),
        (&format!("{route}regions = []\n"), "8: [[route]] 1 regions is empty"),
        (&format!("{route}regions = \"RU\"\n"), "8: [[route]] 1 regions must be a list"),
        (&format!("{route}regions = [7]\n"), "8: [[route]] 1 regions must be a list"),
        (&format!("{route}regions = [\"ru\"]\n"), "8: [[route]] 1 regions has \"ru\": a region is"),
        (
            &format!("{route}regions = [\"ZZ\"]\n"),
            "8: [[route]] 1 regions has \"ZZ\": no country with phone numbers has this code",
        ),
        (&format!("{route}prefixes = [\"+7 9\"]\n"), "8: [[route]] 1 prefixes has \"+7 9\""),
        (&format!("{route}prefixes = [\"\"]\n"), "8: [[route]] 1 prefixes has \"\""),
        (&format!("{route}sender = \"\"\n"), "8: [[route]] 1 sender must be a text"),
        (&format!("{route}sender = 7\n"), "8: [[route]] 1 sender must be a text"),
        (&format!("{route}params = \"x\"\n"), "8: [[route]] 1 params must be a table"),
        (&format!("{route}params = {{ a = 1 }}\n"), "8: [[route]] 1 params: a must be a text"),
        (
            &format!("{route}region = [\"RU\"]\n"),
            "8: [[route]] 1 has no key \"region\": did you mean regions?",
        ),
        ("[route]\ngateways = [\"main\"]\n", "6: [[route]] must be a list of tables"),
        ("[failover]\nambiguous = \"other\"\n", "7: [failover] ambiguous must be \"same\" or"),
        (
            "[failover]\nambigous = \"same\"\n",
            "7: [failover] has no key \"ambigous\": did you mean",
        ),
        ("[[failover]]\nambiguous = \"same\"\n", "6: [failover] must be a table"),
        ("[health]\nweights = \"on\"\n", "7: [health] weights must be \"move\" or \"fixed\""),
        (
            "[health]\nweight = \"move\"\n",
            "7: [health] has no key \"weight\": did you mean weights?",
        ),
        ("[[health]]\nweights = \"move\"\n", "6: [health] must be a table"),
        (
            "[failover]\nno_receipt_within = \"20\"\n",
            "7: [failover] no_receipt_within must be a time such as \"20s\" or \"2m\", from 5s to \
             the 600s of CODE_TTL",
        ),
        ("[failover]\nno_receipt_within = 20\n", "7: [failover] no_receipt_within must be a time"),
        ("[failover]\nno_receipt_within = \"4s\"\n", "7: [failover] no_receipt_within must be a"),
        ("[failover]\nno_receipt_within = \"11m\"\n", "7: [failover] no_receipt_within must be a"),
        ("[failover]\nno_receipt_within = \"+9s\"\n", "7: [failover] no_receipt_within must be a"),
        ("[failover]\nno_receipt_within = \"\"\n", "7: [failover] no_receipt_within must be a"),
        (
            "[failover]\nno_receipt_within = \"20s\"\n",
            "7: [failover] no_receipt_within needs a gateway that reports deliveries, and none does",
        ),
        ("[routes]\nx = 1\n", "6: has no key \"routes\": did you mean route?"),
    ] {
        check(lines, &[expected]);
    }
}

#[test]
fn sender_and_params_that_no_gateway_of_a_route_reads_are_reported() {
    const MORE: &str = "[gateway.plivo]\nprovider = \"plivo\"\nauth_id = \"MA1\"\nauth_token = \"t\"\n\
                        from = \"Shop\"\n[gateway.any]\nprovider = \"http\"\n\
                        url = \"http://a.example/\"\n\
                        [gateway.smsc]\nprovider = \"smpp\"\nhost = \"a.example\"\n\
                        system_id = \"i\"\npassword = \"p\"\n";
    let check = |gateways: &str, line: &str, expected: &[&str]| {
        check(&format!("{MORE}[[route]]\ngateways = [{gateways}]\n{line}\n"), expected);
    };
    let none = "[[route]] 1 sender is set, and none of its gateways takes one";

    check("\"main\", \"local\"", "sender = \"SHOP\"", &[&format!("21: {none}")]);
    check("\"main\", \"plivo\"", "sender = \"SHOP\"", &[]);
    check(
        "\"main\"",
        "params = { a = \"b\" }",
        &["21: [[route]] 1 params has \"a\", which none of its gateways reads"],
    );
    check(
        "\"main\", \"plivo\"",
        "params = { dlt_entity = \"1\", dlt_template_id = \"2\" }",
        &["21: [[route]] 1 params has \"dlt_entity\": did you mean dlt_entity_id?"],
    );
    check("\"any\"", "params = { a = \"b\" }", &[]);
    check("\"smsc\"", "params = { tlv_1400 = \"1\", dlt_entity_id = \"2\" }", &[]);
    check(
        "\"smsc\"",
        "params = { template = \"1\" }",
        &[
            "21: [[route]] 1 params has \"template\"; allowed are dlt_entity_id, dlt_template_id, tlv_*",
        ],
    );
}

#[test]
fn route_that_never_matches_is_reported() {
    let catch_all = "[[route]]\ngateways = [\"main\", \"local\"]\n";
    let of = |what: &str| format!("[[route]]\n{what}\ngateways = [\"main\", \"local\"]\n");

    check(
        &format!("{catch_all}{}{catch_all}", of("regions = [\"RU\"]")),
        &[
            "8: [[route]] 2 never matches, because [[route]] 1 above it matches every number",
            "11: [[route]] 3 never matches, because [[route]] 1",
        ],
    );
    check(
        &[of("regions = [\"RU\", \"KZ\"]"), of("prefixes = [\"44\"]"), of("regions = [\"KZ\"]")]
            .concat(),
        &["12: [[route]] 3 never matches, because the routes above it match all its numbers"],
    );
    check(
        &[of("prefixes = [\"44\"]"), of("prefixes = [\"+447\"]")].concat(),
        &["9: [[route]] 2 never matches"],
    );
    for good in [
        [of("prefixes = [\"447\"]"), of("prefixes = [\"44\"]")].concat(),
        [of("regions = [\"RU\"]"), of("regions = [\"RU\", \"KZ\"]"), catch_all.to_owned()].concat(),
        [of("regions = [\"RU\"]"), of("regions = [\"RU\"]\nprefixes = [\"1\"]")].concat(),
    ] {
        check(&good, &[]);
    }
}

#[test]
fn every_bad_line_of_a_gateway_is_reported_with_its_place() {
    let webhook = "[gateway.b]\nprovider = \"webhook\"\nurl = \"http://b.example/\"\n";
    for (lines, expected) in [
        ("[gateway.b]\n", "6: [gateway.b] provider is missing: one of console"),
        ("[gateway.b]\nprovider = 1\n", "7: [gateway.b] provider must be one of console"),
        (
            "[gateway.b]\nprovider = \"webhok\"\n",
            "7: [gateway.b] there is no provider \"webhok\": did you mean webhook?",
        ),
        ("[gateway.Big]\nprovider = \"console\"\n", "6: [gateway.Big] has a bad name: the name"),
        ("[gateway.b]\nprovider = \"webhook\"\n", "6: [gateway.b] url is missing"),
        ("[gateway.b]\nprovider = \"webhook\"\nurl = \"x\"\n", "8: [gateway.b] url must"),
        (&format!("{webhook}timeout = 0\n"), "9: [gateway.b] timeout must be"),
        (&format!("{webhook}timeout = 2026-11-30\n"), "9: [gateway.b] timeout is a date"),
        (
            &format!("{webhook}timout = 3\n"),
            "9: [gateway.b] has no key \"timout\": did you mean timeout?",
        ),
        ("[gateway]\nb = 1\n", "7: [gateway.b] must be a table"),
    ] {
        check(lines, &[expected]);
    }
    let file = read("");
    assert_eq!(
        shown(&file.problems),
        ["1: the file needs a table [gateway.NAME] for each gateway"]
    );
}

#[test]
fn all_problems_are_reported_at_once_in_the_order_of_the_lines() {
    check(
        "[failover]\nambiguous = 1\n[[route]]\nregions = [\"ZZ\"]\ngateways = [\"no\"]\n\
         [gateway.c]\nprovider = \"fax\"\n",
        &[
            "7: [failover] ambiguous",
            "9: [[route]] 1 regions",
            "10: [[route]] 1 gateways",
            "12: [gateway.c] there is no provider",
        ],
    );
    let file =
        read("[gateway.a]\nprovider = \"webhook\"\nurl = \"http://a\n[[route]]\nregion = 1\n");
    let problems = shown(&file.problems);
    assert!(problems[0].starts_with("3: this is no TOML: "), "{problems:#?}");
    assert!(problems.iter().any(|it| it.contains("has no key \"region\"")), "{problems:#?}");
}

#[test]
fn gateway_that_no_route_uses_is_a_remark() {
    let file = read(&format!("{TWO}[[route]]\ngateways = [\"main\"]\n"));

    assert!(file.gateways.is_some());
    assert_eq!(shown(&file.remarks), ["4: [gateway.local] is in no route, so nothing uses it"]);
}

#[test]
fn values_come_from_the_environment_and_from_files_beside_the_file() {
    let folder = std::env::temp_dir().join(format!("gateways-secrets-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("url"), "http://b.example/sesame\r\n").unwrap();
    let text = "[gateway.a]\nprovider = \"webhook\"\nurl = { env = \"URL\" }\n\
                [gateway.b]\nprovider = \"webhook\"\nurl = { file = \"url\" }\n";
    let lookup = |name: &str| (name == "URL").then(|| "http://a.example/sesame".to_owned());

    let file = GatewaysFile::of(&folder.join("g.toml"), text, &lookup);
    std::fs::remove_dir_all(&folder).unwrap();

    assert_eq!((&file.problems, &file.missing), (&Vec::new(), &Vec::new()));
    assert_eq!(file.variables, ["URL".to_owned()].into());
    assert_eq!(file.files, [folder.join("g.toml"), folder.join("url")]);
    let gateways = file.gateways.unwrap();
    assert_eq!(gateways.gateways[0].table["url"], "http://a.example/sesame");
    assert_eq!(gateways.gateways[1].table["url"], "http://b.example/sesame");
    assert!(gateways.gateways.iter().all(|gateway| gateway.build().is_ok()));
    assert!(!format!("{gateways:?}").contains("sesame"));
}

#[test]
fn missing_secret_stops_only_processes_that_send() {
    for (value, expected) in [
        ("{ env = \"NOWHERE\" }", "url is { env = \"NOWHERE\" }, which is set neither"),
        ("{ env = \"EMPTY\" }", "url is { env = \"EMPTY\" }, which is set neither"),
        ("{ file = \"/nowhere/x\" }", "url is { file = \"/nowhere/x\" }, which cannot be read"),
        ("{ file = \"/dev/null\" }", "url is { file = \"/dev/null\" }, which is empty"),
    ] {
        let text = format!("[gateway.a]\nprovider = \"webhook\"\nurl = {value}\n");
        let file = read(&text);
        assert_eq!(file.problems, [""; 0]);
        let gateways = file.gateways.unwrap();
        assert!(gateways.gateways[0].misses_secrets && gateways.gateways[0].build().is_err());
        let error = gateways.check_secrets().unwrap_err().to_string();
        assert!(error.contains(&format!("g.toml:3: [gateway.a] {expected}")), "{error}");
    }
    for bad in ["{ env = 1 }", "{ env = \"A\", file = \"b\" }", "{ env = \"A\", default = \"b\" }"]
    {
        check(
            &format!("[gateway.a]\nprovider = \"webhook\"\nurl = {bad}\n"),
            &["8: [gateway.a] url must be a text, { env = \"NAME\" } or { file = \"PATH\" }"],
        );
    }
    // An operator wrote the secret itself there.
    let file = read("[gateway.a]\nprovider = \"webhook\"\nurl = { env = \"http://x/sesame\" }\n");
    assert!(
        !file.problems[0].contains("sesame") && file.problems[0].contains("no name of a variable")
    );
}

#[test]
fn no_report_repeats_a_secret() {
    for url in ["\"sesame\"", "[\"sesame\"]", "{ sesame = 1 }", "\"http://sesame:/\"", "\"sesame"] {
        let file = read(&format!("[gateway.a]\nprovider = \"webhook\"\nurl = {url}\n"));
        assert!(!file.problems.is_empty(), "{url}");
        assert!(!format!("{file:?}").contains("sesame"), "{file:?}");
    }
}

/// The table of a gateway that any provider describes, from line 6 on, with these lines at its end.
fn described(lines: &str) -> String {
    format!(
        "[gateway.acme]\nprovider = \"http\"\nurl = \"https://a.example/\"\nmessage_id = \"id\"\n{lines}"
    )
}

#[test]
fn each_problem_within_a_table_has_its_line_and_the_name_that_the_user_wrote() {
    for (lines, expected) in [
        (
            "rules = [\n  { status = 400, outcome = \"rejected\" },\n  { status = 401 },\n]\n",
            "12: [gateway.acme] rules[2].outcome is missing",
        ),
        (
            "rules = [\n\n  { status = 401, outcome = \"maybe\" },\n]\n",
            "12: [gateway.acme] rules[1].outcome must be one of",
        ),
        (
            "[[gateway.acme.rules]]\nstatus = 400\noutcome = \"rejected\"\n\
             [[gateway.acme.rules]]\nstatus = 401\noutcome = \"no\"\n",
            "15: [[gateway.acme.rules]] 2 outcome must be one of",
        ),
        (
            "[[gateway.acme.rules]]\noutcome = \"rejected\"\n",
            "10: [[gateway.acme.rules]] 1 has no condition",
        ),
        (
            "secret = \"s\"\n[gateway.acme.signature]   # sesame\nheader = \"x s\"\nsign = \"\"\n",
            "12: [gateway.acme.signature] header must be the name of a header",
        ),
        (
            "secret = \"s\"\nsignature.sign = \"\"\n",
            "11: [gateway.acme] signature.header is missing",
        ),
        (
            "[gateway.acme.receipts]\nstate = \"s\"\ndelivered = \"d\"\n",
            "10: [gateway.acme.receipts] undelivered is missing",
        ),
        (
            "[gateway.acme.body]\na = 1\nto = [\n{ n = 1 },\n{ n = \"{{ phnoe }}\" },\n]\n",
            "14: [gateway.acme.body] to[2].n uses phnoe, which does not exist",
        ),
        (
            "[gateway.acme.headers]\n\"x.y\" = \"{{ phone }}\"\n\"x.y z\" = \"1\"\n",
            "12: [gateway.acme.headers] x.y z is not the name of a header",
        ),
        (
            "[gateway.acme.query]\na = \"\"\"\n\n{{ phone\"\"\"\n",
            "11: [gateway.acme.query] a is not a template: ",
        ),
    ] {
        check(&described(lines), &[expected]);
    }
}

#[test]
fn setting_below_the_header_of_a_table_is_a_remark() {
    let file = read(&described("[gateway.acme.headers]\nX-A = \"1\"\ntimeout = 5\n"));
    assert_eq!(file.problems, [""; 0]);
    let remarks = shown(&file.remarks);
    assert_eq!(remarks.len(), 1, "{remarks:?}");
    let expected =
        "7: [gateway.acme.headers] timeout is sent to the provider. If you mean the setting";
    assert!(remarks[0].starts_with(expected), "{remarks:?}");

    for deliberate in ["body = { price = 1 }\n", "[gateway.acme.body]\nprices = 1\n"] {
        assert_eq!(read(&described(deliberate)).remarks, [""; 0], "{deliberate}");
    }
}

#[test]
fn missing_secret_makes_no_other_field_wrong() {
    let file = read(&described(
        "auth = \"bearer\"\ntoken = { env = \"NOWHERE\" }\nsecret = { env = \"NOWHERE\" }\n\
         deduplicates = true\n\
         [gateway.acme.headers]\nX-Key = { env = \"NOWHERE\" }\nX-Id = \"{{ id }}\"\n\
         [gateway.acme.signature]\nheader = \"x\"\nsign = \"{{ body }}\"\nkey_encoding = \"hex\"\n",
    ));

    assert_eq!(file.problems, [""; 0]);
    let lines: Vec<String> = shown(&file.missing);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[2].starts_with("10: [gateway.acme] headers.X-Key is { env"), "{lines:?}");
    assert!(file.gateways.unwrap().gateways[0].misses_secrets);

    // What is wrong beside it is reported at once.
    let file = read(&described(
        "token = { env = \"NOWHERE\" }\n[gateway.acme.headers]\nX-Key = { env = \"NOWHERE\" }\n\
         X-Id = \"{{ idd }}\"\n",
    ));
    assert_eq!((file.problems.len(), file.missing.len()), (1, 2), "{file:?}");
}

#[test]
fn callback_is_as_long_as_the_real_one() {
    use application::{Keys, ReceiptUrls, Vault};

    let peppers = "p1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".parse().unwrap();
    let vault = Vault::of(Keys { peppers: Some(peppers), payload: None });
    let name = "main".parse().unwrap();
    let real = ReceiptUrls::new(Some("https://sms.example/x/"), vault).of_gateway(&name).unwrap();

    assert_eq!(super::callback("https://sms.example/x/", &name).len(), real.len());
}

#[test]
fn receipts_are_awaited_if_a_gateway_reports_them() {
    const SMPP: &str = "[gateway.smsc]\nprovider = \"smpp\"\nhost = \"smsc.example\"\n\
                        system_id = \"a\"\npassword = \"b\"\nfrom = \"Shop\"\n";
    const EXOLVE: &str = "[gateway.exolve]\nprovider = \"exolve\"\napi_key = \"k\"\nfrom = \"7\"\n";
    const WITHIN: &str = "[failover]\nno_receipt_within = ";
    let read = |text: &str, public_url: Option<&str>, code_ttl: Option<&str>| {
        let lookup = |name: &str| match name {
            "PUBLIC_URL" => public_url.map(str::to_owned),
            "CODE_TTL" => code_ttl.map(str::to_owned),
            _ => None,
        };
        GatewaysFile::of(Path::new("/etc/messager/g.toml"), text, &lookup)
    };
    let within = |file: GatewaysFile| {
        assert_eq!(file.problems, [] as [&str; 0]);
        file.gateways.unwrap().no_receipt_within
    };
    let url = Some("https://sms.example");

    let file = read(&format!("{EXOLVE}{WITHIN}\"20s\"\n"), url, None);
    assert_eq!(within(file), Some(Duration::from_secs(20)));
    let file = read(&format!("{EXOLVE}{WITHIN}\"15m\"\n"), url, Some("900"));
    assert_eq!(within(file), Some(Duration::from_secs(900)));
    let file = read(&format!("{SMPP}{WITHIN}\"5s\"\n"), None, None);
    assert_eq!(within(file), Some(Duration::from_secs(5)));
    assert_eq!(within(read(EXOLVE, None, None)), None);

    let file = read(&format!("{EXOLVE}{WITHIN}\"20s\"\n"), None, None);
    let expected = "6: [failover] no_receipt_within needs PUBLIC_URL: without it, no gateway of the \
                    file reports deliveries";
    assert_eq!(shown(&file.problems), [expected]);
    // Telegram takes no URL without TLS.
    let telegram = "[gateway.t]\nprovider = \"telegram\"\naccess_token = \"k\"\n";
    let file = read(&format!("{telegram}{WITHIN}\"20s\"\n"), Some("http://sms.example"), None);
    assert!(file.problems[0].contains("a PUBLIC_URL that a provider takes"), "{file:?}");
    assert!(within(read(&format!("{telegram}{WITHIN}\"20s\"\n"), url, None)).is_some());
    let silent = SMPP.replace("from", "receipts = false\nfrom");
    let file = read(&format!("{silent}{WITHIN}\"20s\"\n"), url, None);
    assert_eq!(file.problems.len(), 1);
}
