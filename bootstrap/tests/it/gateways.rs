//! Files of gateways, and `messager gateways`.

use std::time::Duration;

use serde_json::{Value, json};

use super::support::{Binary, Folder, Gateway, Running, eventually, phone, post};

const PATIENCE: Duration = Duration::from_secs(30);

/// The output of a command, and its exit code.
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

async fn said(binary: Binary) -> Said {
    let output = binary.output().await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn messager(folder: &Folder, args: &[&str]) -> Binary {
    Binary::new("messager", folder.path()).args(args)
}

/// Writes a file of gateways to the folder, and names it in `.env`.
fn write(folder: &Folder, text: &str) {
    std::fs::write(folder.path().join("gateways.toml"), text).unwrap();
    std::fs::write(folder.path().join(".env"), "GATEWAYS_FILE=gateways.toml\nHOOK=sesame\n")
        .unwrap();
}

/// A file with a webhook for numbers of Russia, and the console for all others.
fn two(url: &str) -> String {
    format!(
        "[gateway.hook]\nprovider = \"webhook\"\nurl = \"{url}\"\n\
         [gateway.screen]\nprovider = \"console\"\n\
         [[route]]\nregions = [\"RU\"]\ngateways = [\"hook\"]\n\
         [[route]]\ngateways = [\"screen\"]\n"
    )
}

#[tokio::test]
async fn every_bad_line_is_reported_by_each_binary_and_by_check() {
    let folder = Folder::new();
    write(
        &folder,
        "[gateway.main]\nprovider = \"webhook\"\nurl = { env = \"HOOK\" }\ntimout = 3\n\
         [[route]]\nregions = [\"XX\"]\ngateways = [\"mian\"]\n",
    );
    let expected = [
        "gateways.toml:3: [gateway.main] url must be a URL",
        "gateways.toml:4: [gateway.main] has no key \"timout\": did you mean timeout?",
        "gateways.toml:6: [[route]] 1 regions has \"XX\"",
        "gateways.toml:7: [[route]] 1 gateways has no gateway \"mian\"",
    ];

    let check = said(messager(&folder, &["gateways", "check"])).await;
    let mut all = vec![check];
    for binary in ["api", "processor", "consumer", "messager"] {
        all.push(said(Binary::new(binary, folder.path())).await);
    }

    for Said { code, stderr, .. } in all {
        assert_eq!(code, Some(2), "{stderr}");
        // The log has it as JSON.
        let stderr = stderr.replace("\\\"", "\"");
        for line in expected {
            assert!(stderr.contains(line), "{line} is not in:\n{stderr}");
        }
        assert!(!stderr.contains("sesame"), "{stderr}");
    }
}

#[tokio::test]
async fn check_names_the_gateways_of_a_good_file() {
    let folder = Folder::new();
    write(&folder, &two("http://user:sesame@127.0.0.1:1/"));
    std::fs::write(folder.path().join("bad.toml"), "[gateway.a]\n").unwrap();

    let good = said(messager(&folder, &["gateways", "check"])).await;
    let bad = said(messager(&folder, &["gateways", "check", "bad.toml"])).await;
    let both = messager(&folder, &["gateways", "check"]).env("GATEWAY", "webhook");
    let settings = said(messager(&folder, &["settings"]).env("GATEWAY", "webhook")).await;

    assert_eq!(
        (good.code, &*good.stdout),
        (
            Some(0),
            "gateways.toml can be used; gateways: hook (webhook), screen (console); routes: 2\n"
        )
    );
    assert_eq!(bad.code, Some(2));
    assert!(
        bad.stderr.starts_with("bad.toml:1: [gateway.a] provider is missing"),
        "{}",
        bad.stderr
    );
    let both = said(both).await;
    assert_eq!((both.code, settings.code), (Some(2), Some(2)));
    assert!(both.stderr.contains("GATEWAY and GATEWAYS_FILE are both set"), "{}", both.stderr);
    assert!(
        settings.stderr.contains("GATEWAY and GATEWAYS_FILE are both set"),
        "{}",
        settings.stderr
    );
    assert!(!settings.stdout.contains("sesame"));
}

#[tokio::test]
async fn urls_before_the_first_start_say_that_the_service_makes_its_database() {
    let folder = Folder::new();
    let urls = messager(&folder, &["gateways", "urls"]).env("PUBLIC_URL", "https://sms.example");

    let said = said(urls).await;

    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("start the service once"), "{}", said.stderr);
}

#[tokio::test]
async fn secret_that_is_not_here_stops_only_processes_that_send() {
    let folder = Folder::new();
    write(&folder, "[gateway.a]\nprovider = \"webhook\"\nurl = { file = \"nowhere\" }\n");

    let mut api = Binary::new("api", folder.path()).spawn();
    for binary in ["consumer", "messager"] {
        let said = said(Binary::new(binary, folder.path())).await;
        assert_eq!(said.code, Some(2), "{}", said.stderr);
        assert!(said.stderr.contains("gateways.toml:3: [gateway.a] url is"), "{}", said.stderr);
    }
    // Without a database that is migrated: it does not end because of the file.
    assert!(!api.ended().await.success());
    assert!(api.stderr().contains("messager migrate up"), "{}", api.stderr());
}

#[tokio::test]
async fn test_sends_one_sms_through_the_gateway_of_the_route() {
    let gateway = Gateway::start().await;
    let folder = Folder::new();
    write(&folder, &two(&gateway.url()));
    let test = async |more: &[&str]| {
        let args = [&["gateways", "test", "--to", "+79991234567"], more].concat();
        said(messager(&folder, &args)).await
    };

    let routed = test(&[]).await;
    assert_eq!(routed.code, Some(0), "{}", routed.stderr);
    assert!(routed.stdout.contains("sending to +7999*****67 through hook (webhook)"));
    assert!(routed.stdout.contains("\naccepted; its id there is gw\n"), "{}", routed.stdout);
    let received = gateway.received();
    assert_eq!((received.len(), &*received[0].phone), (1, "79991234567"));
    assert_eq!(received[0].text, "Your code: 123456");

    let named = test(&["--gateway", "screen", "--text", "Hello"]).await;
    assert!(named.stdout.contains("SMS to 79991234567: Hello\n"), "{}", named.stdout);
    let unknown = test(&["--gateway", "scren"]).await;
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.stderr.contains("there is no gateway scren; there are: hook, screen"));
    assert!(!folder.path().join("messager.db").exists(), "it needs no database");
}

#[tokio::test]
async fn test_advises_a_rule_if_the_settings_do_not_explain_the_answer() {
    let gateway = Gateway::start().await;
    let folder = Folder::new();
    let body = ["code", "expires_at", "id", "phone", "text"]
        .map(|it| format!("{it} = \"{{{{ {it} }}}}\"\n"));
    write(
        &folder,
        &format!(
            "[gateway.acme]\nprovider = \"http\"\nurl = \"{}\"\nmessage_id = \"nothing.here\"\n\
             headers = {{ Idempotency-Key = \"{{{{ id }}}}\" }}\n[gateway.acme.body]\n{}",
            gateway.url(),
            body.concat()
        ),
    );

    let said = said(messager(&folder, &["gateways", "test", "--to", "+79991234567"])).await;

    assert_eq!(said.code, Some(1), "{}", said.stdout);
    assert!(
        said.stderr.contains("no rule matches, and the answer has no message id"),
        "{}",
        said.stderr
    );
    assert!(said.stderr.contains("Add a rule for this answer"), "{}", said.stderr);
}

#[tokio::test]
async fn test_says_what_to_do_if_the_gateway_does_not_accept() {
    let folder = Folder::new();
    write(&folder, &two("http://127.0.0.1:1/"));

    let said = said(messager(&folder, &["gateways", "test", "--to", "+79991234567"])).await;

    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("unavailable: could not connect"), "{}", said.stderr);
    assert!(said.stderr.contains("nothing was sent. Check the URL"), "{}", said.stderr);
    assert!(!said.stderr.contains("79991234567"), "{}", said.stderr);
}

/// Posts numbers of Russia until the gateway has received one.
async fn goes_to(messager: &Running, gateway: &Gateway, from: usize) {
    let mut number = 9_990_000_000 + from;
    eventually("an SMS at the gateway", PATIENCE, async || {
        number += 1;
        assert_eq!(post(messager.port, &phone(number)).await.0, 200);
        tokio::time::sleep(Duration::from_millis(200)).await;
        gateway.received().iter().any(|sms| sms.phone == phone(number)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn changed_file_is_in_force_without_a_restart() {
    let (first, second) = (Gateway::start().await, Gateway::start().await);
    let folder = Folder::new();
    write(&folder, &two(&first.url()));
    let env = [("GUARD", "off"), ("LIMIT_PREFIX", "off")];
    let messager = env
        .iter()
        .fold(Binary::new("messager", folder.path()), |it, (name, value)| it.env(name, value))
        .ready()
        .await;
    goes_to(&messager, &first, 0).await;

    write(&folder, "[gateway.hook]\nprovider = \"webhok\"\n");
    eventually("refused", PATIENCE, async || {
        messager.stderr().contains("the changed gateways cannot be used").then_some(())
    })
    .await;
    assert!(messager.stderr().contains("there is no provider"), "{}", messager.stderr());
    goes_to(&messager, &first, 1_000).await;

    write(&folder, &two(&second.url()));
    eventually("taken over", PATIENCE, async || {
        messager.stderr().contains("the changed gateways are in force").then_some(())
    })
    .await;
    goes_to(&messager, &second, 2_000).await;
}

/// Returns the rows of `messager gateways --json`.
async fn listed(folder: &Folder) -> Vec<Value> {
    let said = said(messager(folder, &["gateways", "--json"])).await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    serde_json::from_str(&said.stdout).unwrap()
}

#[tokio::test]
async fn drained_gateway_is_called_no_more_until_it_is_undrained() {
    let gateway = Gateway::start().await;
    let folder = Folder::new();
    write(&folder, &two(&gateway.url()));
    let running = Binary::new("messager", folder.path()).ready().await;
    goes_to(&running, &gateway, 0).await;
    let hook = eventually("reported", PATIENCE, async || {
        let rows = listed(&folder).await;
        let accepted = rows[0]["accepted"].as_u64()?;
        (accepted > 0).then(|| rows[0].clone())
    })
    .await;
    assert_eq!((&hook["gateway"], &hook["state"]), (&json!("hook"), &json!("closed")));

    let unknown = said(messager(&folder, &["gateways", "drain", "hok"])).await;
    assert_eq!(unknown.code, Some(1));
    let drained = said(messager(&folder, &["gateways", "drain", "hook"])).await;
    assert!(drained.stdout.starts_with("hook is drained"), "{}", drained.stdout);
    eventually("drained", PATIENCE, async || {
        running.stderr().contains("an operator drained a gateway").then_some(())
    })
    .await;
    assert_eq!(listed(&folder).await[0]["state"], "drained");
    let before = gateway.count();
    assert_eq!(post(running.port, &phone(9_991_000_000)).await.0, 200);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(gateway.count(), before);

    let undrained = said(messager(&folder, &["gateways", "undrain", "hook"])).await;
    assert_eq!(undrained.stdout, "hook is in service again\n");
    eventually("the message that waited", PATIENCE, async || {
        gateway.received().iter().any(|sms| sms.phone == phone(9_991_000_000)).then_some(())
    })
    .await;
}
