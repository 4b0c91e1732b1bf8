//! The page for trying the service, in a real browser.

use std::{collections::VecDeque, time::Duration};

use serde_json::Value;

use super::support::{Binary, Folder, Page, Running, environment, eventually, get};

const PATIENCE: Duration = Duration::from_secs(30);
const PHONE: &str = "79991234567";

/// The steps that the timeline shows as done.
const EVENTS: &str =
    "[...document.querySelectorAll('#events li:not(.hoped) b')].map((it) => it.textContent)";

/// Returns the codes that the console has shown, in order.
fn codes(messager: &Running) -> VecDeque<String> {
    let prefix = format!("SMS to {PHONE}: ");
    let code = |line: &str| -> Option<String> {
        let text = line.strip_prefix(&prefix)?;
        let digits = text.split(|letter: char| !letter.is_ascii_digit());
        digits.filter(|digits| digits.len() == 6).map(str::to_owned).next()
    };
    messager.stdout().lines().filter_map(code).collect()
}

/// Asks for a code on the page, and reads it from the console.
async fn ask_for_code(page: &mut Page, messager: &Running) -> String {
    assert_eq!(page.text("state").await, "ready");
    page.click("phone").await;
    page.type_text("+7 999 123-45-67").await;
    page.click("send").await;
    page.until("document.activeElement.id === 'code'").await;
    assert_eq!(page.text("masked").await, "+7999*****67");
    eventually("shown on the console", PATIENCE, async || codes(messager).pop_front()).await
}

#[tokio::test]
async fn number_is_verified_on_the_page() {
    let Some(chromium) = environment("TEST_CHROMIUM") else { return };
    let folder = Folder::new();
    let messager = Binary::new("messager", folder.path()).ready().await;
    let origin = format!("http://127.0.0.1:{}", messager.port);
    let mut page = Page::open(&chromium, &format!("{origin}/")).await;

    let code = ask_for_code(&mut page, &messager).await;
    page.until(&format!("{EVENTS}.includes('Sent')")).await;
    page.picture("page-code.png").await;
    page.type_text(&code).await;
    page.click("verify").await;
    page.until("document.getElementById('state').textContent === 'verified'").await;

    assert_eq!(page.text("end-title").await, "Verified");
    let kinds = page.evaluate(EVENTS).await;
    for kind in ["Created", "Queued", "Sent", "Approved"] {
        assert!(kinds.as_array().unwrap().contains(&kind.into()), "{kinds}");
    }
    let calls = page.text("calls").await;
    assert!(calls.contains("\"phone\":\"+79991234567\""), "{calls}");
    assert!(calls.contains("\"valid\": true"), "{calls}");
    page.picture("page.png").await;
    page.close(&origin).await;
}

#[tokio::test]
async fn page_shows_and_counts_a_wrong_code() {
    let Some(chromium) = environment("TEST_CHROMIUM") else { return };
    let folder = Folder::new();
    let messager = Binary::new("messager", folder.path()).ready().await;
    let origin = format!("http://127.0.0.1:{}", messager.port);
    let mut page = Page::open(&chromium, &format!("{origin}/")).await;

    let code = ask_for_code(&mut page, &messager).await;
    let wrong = if code == "000000" { "000001" } else { "000000" };
    page.type_text(wrong).await;
    page.click("verify").await;
    page.until("!document.getElementById('code-wrong').hidden").await;
    assert_eq!(page.text("code-wrong").await, "That is not the code.");
    assert_eq!(page.text("attempts").await, "4 attempts left");
    assert_eq!(page.text("state").await, "waiting for the code");
    page.picture("page-wrong.png").await;

    // The wrong code is selected, so that typing replaces it.
    page.type_text(&code).await;
    page.click("verify").await;
    page.until("document.getElementById('state').textContent === 'verified'").await;
    page.close(&origin).await;
}

#[tokio::test]
async fn reference_shows_every_operation() {
    let Some(chromium) = environment("TEST_CHROMIUM") else { return };
    let folder = Folder::new();
    let messager = Binary::new("messager", folder.path()).ready().await;
    let origin = format!("http://127.0.0.1:{}", messager.port);
    let mut page = Page::open(&chromium, &format!("{origin}/docs")).await;

    page.until("document.querySelector('.opblock') !== null").await;

    // Swagger UI allows line breaks at the slashes of a path.
    let shown = page.text("reference").await.replace('\u{200b}', "");
    let (_, description) = get(messager.port, "/openapi.json").await.unwrap();
    let description: Value = serde_json::from_str(&description).unwrap();
    for path in description["paths"].as_object().unwrap().keys() {
        assert!(shown.contains(path.as_str()), "{path} is not shown");
    }
    // An operation shows the target instead of the reference.
    page.follow(".opblock-post button").await;
    page.until("document.querySelector('.opblock-body .model-example') !== null").await;
    let shown = page.text("reference").await;
    assert!(!shown.contains("$ref") && shown.contains("attempts_left"), "{shown}");
    page.picture("docs.png").await;
    page.close(&origin).await;
}
