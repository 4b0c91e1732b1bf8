//! The contract of the API, as a client sees it.

use super::support::{ACCEPTED, Binary, Folder, raw};

const REFUSED: &str = "{\"error\":\"invalid request body\"}";

async fn ask(port: u16, head: &str, body: &[u8]) -> (u16, String) {
    let length = body.len();
    let head =
        format!("{head} HTTP/1.1\r\nHost: it\r\nConnection: close\r\nContent-Length: {length}\r\n");
    let content_type =
        if head.contains("Content-Type") { "" } else { "Content-Type: application/json\r\n" };
    let mut request = format!("{head}{content_type}\r\n").into_bytes();
    request.extend_from_slice(body);
    let answer = raw(port, &request).await;
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
    (status, body)
}

#[tokio::test]
async fn contract_of_the_go_service_holds() {
    let folder = Folder::new();
    let messager = Binary::new("messager", folder.path()).env("APP_MODE", "debug").ready().await;
    let port = messager.port;
    let good = br#"{"phone":"89999999999","more":[1]}"#;

    for path in ["/api", "/api/", "/api/send", "/api/send/"] {
        let answer = ask(port, &format!("POST {path}"), good).await;
        assert_eq!(answer, (200, ACCEPTED.to_owned()), "{path}");
    }

    let phones = [
        "8999999999",
        "8999999999999999",
        "+79991234567",
        "7999123456a",
        "７９９９１２３４５６７",
        "٧٩٩٩١٢٣٤٥٦٧",
        " 79991234567",
        "",
    ];
    let mut bodies: Vec<Vec<u8>> =
        phones.iter().map(|phone| format!("{{\"phone\":\"{phone}\"}}").into_bytes()).collect();
    bodies.extend(
        [
            &b""[..],
            b"no json",
            b"{}",
            b"null",
            b"[]",
            b"{\"phone\":79991234567}",
            b"{\"phone\":null}",
        ]
        .map(<[u8]>::to_vec),
    );
    bodies.push(b"{\"phone\":\"7999123456\xff\"}".to_vec());
    bodies.push([b"{\"phone\":\"79991234567\",\"more\":\"".to_vec(), vec![b'x'; 1 << 20]].concat());
    for body in bodies {
        let answer = ask(port, "POST /api/", &body).await;
        assert_eq!(
            answer,
            (400, REFUSED.to_owned()),
            "{:?}",
            String::from_utf8_lossy(&body[..body.len().min(60)])
        );
    }
    let form = "POST /api/ HTTP/1.1\r\nHost: it\r\nConnection: close\r\n\
                Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 23\r\n\r\n\
                {\"phone\":\"79991234567\"}";
    assert!(raw(port, form.as_bytes()).await.ends_with(REFUSED));

    assert_eq!(ask(port, "GET /api/", b"").await.0, 405);
    assert_eq!(ask(port, "POST /other", good).await.0, 404);

    // The service still works, and the log contains no number.
    assert_eq!(ask(port, "POST /api/", good).await.0, 200);
    let log = messager.stderr();
    for secret in ["9999999", "9991234567", "panicked"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    let accepted = messager.metric("total_messages{status=\"200\"}").await;
    assert_eq!(accepted, Some(5.0));
    assert!(messager.metric("total_messages{status=\"400\"}").await > Some(15.0));
}
