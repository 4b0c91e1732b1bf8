use std::{
    fs,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
};

use application::ports::{ApiKeys, NewApiKey, Secrets, StoreError};
use domain::{ApiKeyId, ApiKeyText, Scope};
use tokio::task::JoinSet;

use super::{
    on_both_databases,
    support::{empty_sqlite, rng},
};
use crate::{Database, FileSecrets, SqlApiKeys, SqlSecrets};

on_both_databases!(
    key_is_stored_with_its_id_and_hash,
    revoked_key_stays_revoked,
    use_of_a_key_is_noted,
    all_processes_draw_one_pepper,
);

fn new_key(name: &str) -> (ApiKeyText, NewApiKey) {
    let key = ApiKeyText::generate(&mut rng());
    let scopes = "send,check".parse().unwrap();
    let new = NewApiKey { id: key.id(), name: name.to_owned(), hash: key.hash(), scopes };
    (key, new)
}

async fn key_is_stored_with_its_id_and_hash(database: Database) {
    let keys = SqlApiKeys::new(database);
    let (text, new) = new_key("shop");
    keys.create(new).await.unwrap();
    let (other, new) = new_key("app");
    keys.create(new).await.unwrap();

    let all = keys.all().await.unwrap();

    let named: Vec<(&str, ApiKeyId)> = all.iter().map(|key| (&*key.name, key.id)).collect();
    assert!(named.contains(&("shop", text.id())) && named.contains(&("app", other.id())));
    assert_eq!(named.len(), 2);
    assert!(all.is_sorted_by_key(|key| key.created_at));
    let shop = all.iter().find(|key| key.id == text.id()).unwrap();
    assert!(text.matches(&shop.hash) && !other.matches(&shop.hash));
    assert!(shop.scopes.allow(Scope::Send) && !shop.scopes.allow(Scope::Read));
    assert_eq!((shop.last_used_at, shop.revoked_at), (None, None));
    let again = NewApiKey { id: text.id(), ..new_key("twice").1 };
    assert!(matches!(keys.create(again).await, Err(StoreError::Unavailable(_))));
}

async fn revoked_key_stays_revoked(database: Database) {
    let keys = SqlApiKeys::new(database);
    let (text, new) = new_key("shop");
    keys.create(new).await.unwrap();

    assert!(keys.revoke(text.id()).await.unwrap());
    let first = keys.all().await.unwrap()[0].revoked_at;
    assert!(keys.revoke(text.id()).await.unwrap());

    assert!(first.is_some());
    assert_eq!(keys.all().await.unwrap()[0].revoked_at, first);
    assert!(!keys.revoke(new_key("none").0.id()).await.unwrap());
}

async fn use_of_a_key_is_noted(database: Database) {
    let keys = SqlApiKeys::new(database);
    let (used, new) = new_key("used");
    keys.create(new).await.unwrap();
    keys.create(new_key("idle").1).await.unwrap();

    keys.used(&[used.id(), new_key("unknown").0.id()]).await.unwrap();
    keys.used(&[]).await.unwrap();

    for key in keys.all().await.unwrap() {
        assert_eq!(key.last_used_at.is_some(), key.id == used.id());
        assert!(key.last_used_at.is_none_or(|at| at >= key.created_at));
    }
}

async fn all_processes_draw_one_pepper(database: Database) {
    one_is_drawn(&SqlSecrets::new(database)).await;
}

async fn one_is_drawn<S: Secrets + Clone>(secrets: &S) {
    let mut processes = JoinSet::new();
    for number in 0..12 {
        let secrets = secrets.clone();
        processes.spawn(async move {
            let drawn = format!("d{number}:AAAA=");
            let kept = secrets.keep("CODE_PEPPER", &drawn).await.unwrap();
            (kept, secrets.keep("PAYLOAD_KEY", &drawn).await.unwrap())
        });
    }
    let mut kept = processes.join_all().await;
    kept.dedup();

    let [(pepper, key)] = &kept[..] else { panic!("{} different", kept.len()) };
    assert_eq!(secrets.find("CODE_PEPPER").await.unwrap().as_ref(), Some(pepper));
    assert_eq!(secrets.find("PAYLOAD_KEY").await.unwrap().as_ref(), Some(key));
    assert!(secrets.forget("CODE_PEPPER").await.unwrap());
    assert!(!secrets.forget("CODE_PEPPER").await.unwrap());
    assert_eq!(secrets.find("CODE_PEPPER").await.unwrap(), None);
    assert_eq!(secrets.find("PAYLOAD_KEY").await.unwrap().as_ref(), Some(key));
    assert_eq!(secrets.keep("CODE_PEPPER", "d99:BBBB=").await.unwrap(), "d99:BBBB=");
}

#[tokio::test(flavor = "multi_thread")]
async fn first_pepper_in_the_file_wins_and_its_mode_is_0600() {
    let (_database, folder) = empty_sqlite();
    let secrets = FileSecrets::beside(&folder.path().join("messager.db"));
    assert_eq!(secrets.find("CODE_PEPPER").await.unwrap(), None);
    assert!(!secrets.forget("CODE_PEPPER").await.unwrap());

    one_is_drawn(&secrets).await;

    let mode = fs::metadata(secrets.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(secrets.path(), folder.path().join("messager.db.secrets"));
    let files = fs::read_dir(folder.path()).unwrap();
    assert!(files.flatten().all(|file| !file.file_name().to_string_lossy().ends_with(".new")));
}

#[tokio::test]
async fn secrets_file_that_others_may_read_is_refused() {
    let (_database, folder) = empty_sqlite();
    let secrets = FileSecrets::beside(&folder.path().join("messager.db"));
    secrets.keep("CODE_PEPPER", "d1:AAAA=").await.unwrap();
    fs::set_permissions(secrets.path(), fs::Permissions::from_mode(0o640)).unwrap();

    assert!(matches!(secrets.find("CODE_PEPPER").await, Err(StoreError::Unavailable(_))));
    let kept = secrets.keep("CODE_PEPPER", "d2:AAAA=").await;
    assert!(matches!(kept, Err(StoreError::Unavailable(_))), "{kept:?}");
}

#[tokio::test]
async fn garbled_secrets_file_is_refused() {
    let (_database, folder) = empty_sqlite();
    let secrets = FileSecrets::beside(&folder.path().join("messager.db"));
    secrets.keep("PAYLOAD_KEY", "d1:AAAA=").await.unwrap();
    let garbled = "PAYLOAD_KEY=d1:AAAA=\nCODE_PEP\n";
    fs::write(secrets.path(), garbled).unwrap();

    for outcome in [
        secrets.find("CODE_PEPPER").await.map(drop),
        secrets.keep("CODE_PEPPER", "d2:AAAA=").await.map(drop),
        secrets.forget("PAYLOAD_KEY").await.map(drop),
    ] {
        assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
    }
    assert_eq!(fs::read_to_string(secrets.path()).unwrap(), garbled);
}

#[tokio::test]
async fn leftover_of_a_crash_is_replaced() {
    let (_database, folder) = empty_sqlite();
    let secrets = FileSecrets::beside(&folder.path().join("messager.db"));
    let left = folder.path().join("messager.db.secrets.new");
    fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&left).unwrap();

    secrets.keep("CODE_PEPPER", "d1:AAAA=").await.unwrap();

    assert_eq!(secrets.find("CODE_PEPPER").await.unwrap().as_deref(), Some("d1:AAAA="));
    let mode = fs::metadata(secrets.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
