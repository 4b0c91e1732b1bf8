//! `messager` without any settings: an SQLite file, the embedded queue, the console.

use std::time::{Duration, Instant};

use super::support::{ACCEPTED, Binary, Folder, Running, eventually, phone, post, post_all};

const PATIENCE: Duration = Duration::from_secs(30);

/// Returns the number of each SMS that the console showed.
fn shown(messager: &Running) -> Vec<String> {
    let digits = |line: &str| -> Option<(String, String)> {
        let (to, text) = line.strip_prefix("SMS to ")?.split_once(": ")?;
        Some((to.to_owned(), text.strip_prefix("Your code: ")?.to_owned()))
    };
    let shown: Vec<_> = messager.stdout().lines().filter_map(digits).collect();
    for (_, code) in &shown {
        assert!(code.len() == 6 && code.bytes().all(|b| b.is_ascii_digit()));
    }
    shown.into_iter().map(|(to, _)| to).collect()
}

#[tokio::test]
async fn accepted_message_is_shown_with_its_code() {
    let folder = Folder::new();
    let messager = Binary::new("messager", folder.path()).ready().await;
    let first = phone(1);
    assert_eq!(post(messager.port, &first).await, (200, ACCEPTED.to_owned()));
    eventually("shown", PATIENCE, async || shown(&messager).contains(&first).then_some(())).await;

    // The first message found cold caches.
    let second = phone(2);
    let begun = Instant::now();
    post(messager.port, &second).await;
    eventually("shown", PATIENCE, async || shown(&messager).contains(&second).then_some(())).await;
    println!("accepted and shown after {:?}", begun.elapsed());
}

#[tokio::test]
async fn ctrl_c_ends_the_process_with_success() {
    let folder = Folder::new();
    let messager = Binary::new("messager", folder.path()).ready().await;
    post(messager.port, &phone(1)).await;

    let (status, took) = messager.stop("INT").await;

    assert_eq!(status.code(), Some(0));
    println!("ended after {took:?}");
}

#[tokio::test]
async fn accepted_messages_are_delivered_after_a_kill() {
    let folder = Folder::new();
    let messager = Binary::new("messager", folder.path()).ready().await;
    let phones: Vec<_> = (0..300).map(phone).collect();
    let load = tokio::spawn(post_all(messager.port, phones, 16));
    eventually("some accepted", PATIENCE, async || (!shown(&messager).is_empty()).then_some(()))
        .await;

    messager.signal("KILL").await;
    let accepted = load.await.unwrap().accepted;
    let before = shown(&messager);
    drop(messager);
    let again = Binary::new("messager", folder.path()).ready().await;

    let missing = || {
        let after = shown(&again);
        accepted.iter().filter(|it| !before.contains(it) && !after.contains(it)).count()
    };
    eventually("all shown", PATIENCE, async || (missing() == 0).then_some(())).await;
    println!("{} accepted, {} shown before the kill", accepted.len(), before.len());
}

#[tokio::test]
async fn process_ends_if_its_sqlite_file_is_removed() {
    let folder = Folder::new();
    let mut messager = Binary::new("messager", folder.path()).ready().await;

    std::fs::remove_file(folder.path().join("messager.db")).unwrap();

    assert_eq!(messager.ended().await.code(), Some(1));
    assert!(messager.stderr().contains("was removed or replaced"), "{}", messager.stderr());
}
