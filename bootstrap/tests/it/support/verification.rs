use std::collections::HashMap;

use http::{Method, Request, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use super::load::{Http, http};

/// A client of `/v1`.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: Http,
    port: u16,
    key: Option<String>,
    idempotency_key: Option<String>,
    headers: Vec<(&'static str, String)>,
}

/// An answer of `/v1`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Value,
    /// The unparsed body.
    pub(crate) text: String,
}

impl Client {
    pub(crate) fn new(port: u16) -> Self {
        Self { http: http(), port, key: None, idempotency_key: None, headers: Vec::new() }
    }

    /// Returns a client that sends this key with each request.
    pub(crate) fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    /// Returns a client that sends this `Idempotency-Key` with each request.
    pub(crate) fn once(&self, key: &str) -> Self {
        Self { idempotency_key: Some(key.to_owned()), ..self.clone() }
    }

    /// Returns a client that sends these headers with each request.
    pub(crate) fn with_headers(&self, headers: Vec<(&'static str, String)>) -> Self {
        Self { headers, ..self.clone() }
    }

    pub(crate) async fn start(&self, phone: &str) -> Answer {
        self.post("/v1/verifications", &json!({ "phone": phone })).await
    }

    pub(crate) async fn check(&self, id: &str, code: &str) -> Answer {
        self.post(&format!("/v1/verifications/{id}/checks"), &json!({ "code": code })).await
    }

    pub(crate) async fn check_by_phone(&self, phone: &str, code: &str) -> Answer {
        let body = json!({ "phone": phone, "code": code });
        self.post("/v1/verifications/check", &body).await
    }

    pub(crate) async fn find(&self, id: &str) -> Answer {
        self.send(Method::GET, &format!("/v1/verifications/{id}"), "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, &body.to_string()).await
    }

    async fn send(&self, method: Method, path: &str, body: &str) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://127.0.0.1:{}{path}", self.port))
            .header(CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        if let Some(key) = &self.idempotency_key {
            request = request.header("Idempotency-Key", key);
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::from(body.to_owned())).unwrap();
        let answer = self.http.request(request).await.unwrap();
        let status = answer.status().as_u16();
        let text = |value: &http::HeaderValue| value.to_str().unwrap().to_owned();
        let headers = answer
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), text(value)))
            .collect();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        Answer { status, headers, body: serde_json::from_str(&text).unwrap_or_default(), text }
    }
}

impl Answer {
    pub(crate) fn id(&self) -> String {
        assert_eq!(self.status, 202, "{}", self.text);
        self.body["id"].as_str().unwrap().to_owned()
    }

    /// Returns the types of the events.
    pub(crate) fn events(&self) -> Vec<&str> {
        let events = self.body["events"].as_array().unwrap();
        events.iter().map(|event| event["type"].as_str().unwrap()).collect()
    }

    /// Returns the status, and the last part of the problem type.
    pub(crate) fn problem(&self) -> (u16, &str) {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{}", self.text);
        let kind = self.body["type"].as_str().unwrap();
        (self.status, kind.rsplit(['/', '#']).next().unwrap())
    }
}
