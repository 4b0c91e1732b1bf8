//! The command line of `messager`, on the embedded default.

use std::{
    os::unix::fs::symlink,
    process::{Command, Output},
};

use serde_json::Value;

use super::support::{Binary, Client, Folder};

async fn run(folder: &Folder, args: &[&str]) -> Output {
    Binary::new("messager", folder.path()).args(args).output().await
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test]
async fn mistyped_command_is_answered_with_the_right_one() {
    let folder = Folder::new();

    let output = run(&folder, &["mesage", "x"]).await;

    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("'message'") && !said.contains('\u{1b}'), "{said}");
}

#[tokio::test]
async fn messager_is_the_binary_by_whose_name_it_is_called() {
    let folder = Folder::new();
    for name in ["api", "processor", "consumer", "messager"] {
        let link = folder.path().join(name);
        symlink(env!("CARGO_BIN_EXE_messager"), &link).unwrap();
        let own = Binary::new(name, folder.path()).args(&["--help"]).output().await;

        let called = Command::new(link).arg("--help").output().unwrap();

        let help = stdout(&own);
        assert!(help.contains(&format!("Usage: {name} ")), "{help}");
        assert_eq!(stdout(&called), help);
    }
}

#[tokio::test]
async fn completions_and_man_pages_name_every_command() {
    let folder = Folder::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&run(&folder, &["completions", shell]).await);
        assert!(script.contains("dead-letters") && script.contains("forget"), "{shell}");
    }

    stdout(&run(&folder, &["man", "pages"]).await);

    let pages = folder.path().join("pages");
    for page in ["messager.1", "messager-forget.1", "messager-dead-letters-retry.1"] {
        let text = std::fs::read_to_string(pages.join(page)).expect(page);
        assert!(text.contains(".TH"), "{page}");
    }
    assert!(stdout(&run(&folder, &["man"]).await).contains(".TH messager 1"));
}

#[tokio::test]
async fn message_status_and_forget_show_and_erase_a_verification() {
    let folder = Folder::new();
    let service = Binary::new("messager", folder.path()).env("API_AUTH", "none").ready().await;
    let client = Client::new(service.port);
    let id = client.start("+79991234567").await.id();
    client.start("+79991234568").await.id();

    let story = stdout(&run(&folder, &["message", &id, "--json"]).await);
    let story: Value = serde_json::from_str(&story).unwrap();
    assert_eq!(story[0]["verification"], *id);
    assert_eq!(story[0]["steps"][0]["step"], "started");
    let steps = stdout(&run(&folder, &["message", "--phone", "+79991234567"]).await);
    assert!(steps.starts_with("verification\ttime\tmessage\tstep\tdetail\n"), "{steps}");
    assert!(steps.contains(&id) && !steps.contains("9991234567"), "{steps}");

    let status = stdout(&run(&folder, &["status"]).await);
    assert!(status.contains("\naccepted\t2\t"), "{status}");
    let status = stdout(&run(&folder, &["status", "--json"]).await);
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["partitions"].as_array().unwrap().len(), 4);

    let forget = ["forget", "--phone", "+79991234567"];
    let asked = run(&folder, &forget).await;
    assert!(!asked.status.success());
    assert!(String::from_utf8(asked.stderr).unwrap().contains("--yes"));
    let counted = stdout(&run(&folder, &[&forget[..], &["--dry-run"]].concat()).await);
    assert!(counted.contains("verification\t1\tdeleted\n"), "{counted}");
    stdout(&run(&folder, &[&forget[..], &["--yes"]].concat()).await);

    // The ledger keeps the message, without its number.
    let kept = stdout(&run(&folder, &["message", &id]).await);
    assert!(kept.contains("\taccepted\t") && !kept.contains("\tstarted\t"), "{kept}");
    let gone = run(&folder, &["message", "--phone", "+79991234567"]).await;
    let said = String::from_utf8(gone.stderr).unwrap();
    assert_eq!(gone.status.code(), Some(1));
    assert!(said.contains("nothing is known of") && said.contains("DELIVERY_RETENTION"), "{said}");
    assert_eq!(client.find(&id).await.status, 404);
    stdout(&run(&folder, &[&forget[..], &["--yes"]].concat()).await);
}
