//! API keys.

use std::time::Duration;

use super::support::{Client, Stack, eventually, post};

#[tokio::test]
async fn api_key_works_from_its_creation_to_its_revocation() {
    let Some(stack) = Stack::new().await else { return };
    let api = stack.start("api", &[]).ready().await;
    let client = Client::new(api.port);
    let messager = async |args: &[&str]| {
        let output = stack.start("messager", &[]).args(args).output().await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };

    // On PostgreSQL `/v1` needs a key, and `/api` does not.
    assert_eq!(client.start("+79991234567").await.problem(), (401, "unauthorized"));
    assert_eq!(post(api.port, "79991234567").await.0, 200);

    let create = ["keys", "create", "--name", "shop", "--scopes", "send"];
    let key = messager(&create).await.trim().to_owned();
    let shop = client.with_key(&key);
    // A process caches keys for up to a second.
    let id = eventually("a key that works", Duration::from_secs(5), async || {
        let started = shop.start("+79997654321").await;
        (started.status != 401).then(|| started.id())
    })
    .await;
    assert_eq!(shop.check(&id, "000000").await.problem(), (403, "forbidden"));
    assert_eq!(shop.find(&id).await.problem(), (403, "forbidden"));
    assert_eq!(client.with_key("msk_0").find(&id).await.problem(), (401, "unauthorized"));

    let list = messager(&["keys", "list"]).await;
    let line = list.lines().find(|line| line.contains("shop")).expect(&list);
    assert!(!list.contains(&key));
    let key_id = line.split('\t').next().unwrap();
    messager(&["keys", "revoke", key_id]).await;
    eventually("revoked", Duration::from_secs(8), async || {
        (shop.find(&id).await.status == 401).then_some(())
    })
    .await;

    let log = api.stderr();
    assert!(!log.contains(&key) && !log.contains("9991234567"), "{log}");
    assert!(log.contains("CODE_PEPPER is not set"), "{log}");
    assert!(log.contains("/api is open"), "{log}");
}

#[tokio::test]
async fn closed_output_ends_a_list_quietly_and_fails_a_key_creation() {
    let Some(stack) = Stack::new().await else { return };
    let to_closed_pipe = async |args: &[&str]| {
        let output = stack.start("messager", &[]).args(args).output_to_closed_pipe().await;
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };

    assert_eq!(to_closed_pipe(&["keys", "list"]).await, (true, String::new()));
    assert_eq!(to_closed_pipe(&["guard", "decisions"]).await, (true, String::new()));
    assert_eq!(to_closed_pipe(&["dead-letters", "list"]).await, (true, String::new()));
    let (done, error) =
        to_closed_pipe(&["keys", "create", "--name", "shop", "--scopes", "send"]).await;
    assert!(!done && error.contains("Broken pipe"), "{error}");
}

#[tokio::test]
async fn api_auth_all_refuses_api_requests_without_a_key() {
    let Some(stack) = Stack::new().await else { return };
    let api = stack.start("api", &[("API_AUTH", "all")]).ready().await;

    assert_eq!(post(api.port, "79991234567").await.0, 401);
    assert!(!api.stderr().contains("is open"), "{}", api.stderr());
}
