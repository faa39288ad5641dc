//! The client of the control API that the commands share: address, key, errors in words, lists to their end.

use std::sync::Once;
use std::time::Duration;

use clap::Args;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use super::{Failure, Result};
use crate::kernel::text::escaped;

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take. The longest is an upload, which is compiled before it is answered.
const ANSWER: Duration = Duration::from_secs(120);
/// Items asked for at a time; the API's most.
const PAGE: usize = 1_000;
/// What stays as it is in a segment of a path (RFC 3986, 2.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Which server, and as whom.
#[derive(Clone, Debug, Args)]
pub(super) struct Connection {
    /// The server.
    #[arg(
        long,
        global = true,
        env = "CHALET_URL",
        default_value = "http://127.0.0.1:8080",
        help_heading = "Connection"
    )]
    pub(super) url: String,
    /// An API key: the operator's, or one of the tenant.
    #[arg(long, global = true, env = "CHALET_KEY", hide_env_values = true, help_heading = "Connection")]
    pub(super) key: Option<String>,
    /// Print what the API answered, as JSON.
    #[arg(long, global = true, help_heading = "Connection")]
    pub(super) json: bool,
}

/// The tenant that a command is about.
#[derive(Clone, Debug, Args)]
pub(super) struct ForTenant {
    /// The tenant.
    #[arg(long, value_name = "TENANT", env = "CHALET_TENANT")]
    pub(super) tenant: String,
}

impl ForTenant {
    /// The path of something of this tenant's, such as `["keys", id]`.
    pub(super) fn path(&self, segments: &[&str]) -> String {
        let all = ["v1", "tenants", &self.tenant].into_iter().chain(segments.iter().copied());
        path(&all.collect::<Vec<_>>())
    }
}

/// A path of these segments, each encoded.
pub(super) fn path(segments: &[&str]) -> String {
    segments.iter().map(|segment| format!("/{}", utf8_percent_encode(segment, SEGMENT))).collect()
}

/// A server of Chalet, with a key for it.
#[derive(Clone, Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    url: String,
    key: Option<String>,
}

impl Client {
    /// A client of the server that the flags and the environment name.
    pub(super) fn new(connection: &Connection) -> Result<Self> {
        Self::with(&connection.url, connection.key.as_deref())
    }

    /// A client of this server.
    pub(super) fn with(url: &str, key: Option<&str>) -> Result<Self> {
        let parsed = url::Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        if parsed.is_none() {
            return Err(Failure::Usage(format!("{url} is no address of a server; write it as http://127.0.0.1:8080")));
        }
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // Somebody else installed one: any serves.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .user_agent(concat!("chalet/", env!("CARGO_PKG_VERSION")))
            // A redirect would carry the key elsewhere; the API has none.
            .redirect(reqwest::redirect::Policy::none());
        if url.starts_with("http://") {
            // Without TLS the machine's certificates do not matter, not even that there are none. A proxy is for the
            // world outside, where nobody sends a key in clear text.
            builder = builder.tls_certs_only([]).no_proxy();
        }
        let http = builder.build().map_err(|error| Failure::Failed(reason(&error)))?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), key: key.map(str::to_owned) })
    }

    /// The server's address, without a slash at its end.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The same server with another key, or without one.
    pub(super) fn with_key(&self, key: Option<&str>) -> Self {
        Self { http: self.http.clone(), url: self.url.clone(), key: key.map(str::to_owned) }
    }

    /// A request with the key, if there is one.
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Send a request; an answer that is an error becomes one in words.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let answer = self.exchange(request.timeout(ANSWER)).await?;
        self.accept(answer).await
    }

    /// The same without a bound of time, for answers that do not end.
    pub(super) async fn stream(&self, request: RequestBuilder) -> Result<Response> {
        let answer = self.exchange(request).await?;
        self.accept(answer).await
    }

    /// Send a request and take any answer of the server's.
    pub(super) async fn exchange(&self, request: RequestBuilder) -> Result<Response> {
        request.send().await.map_err(|error| {
            if error.is_connect() {
                Failure::Failed(format!(
                    "no server answers at {} ({}); start one with `chalet serve`, or name it with --url or CHALET_URL",
                    self.url,
                    reason(&error)
                ))
            } else {
                Failure::Failed(format!("{}: {}", self.url, reason(&error)))
            }
        })
    }

    async fn accept(&self, answer: Response) -> Result<Response> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        if status == StatusCode::UNAUTHORIZED && self.key.is_none() {
            return Err(Failure::Usage("the server wants an API key; give it with --key or CHALET_KEY".into()));
        }
        let headers = answer.headers().clone();
        let body = answer.text().await.unwrap_or_default();
        Err(Failure::Failed(explain(status, &headers, &body)))
    }

    /// Send a request whose answer is JSON; null if it has no body.
    pub(super) async fn json(&self, request: RequestBuilder) -> Result<Value> {
        let body = self.send(request).await?.bytes().await.map_err(|error| Failure::Failed(reason(&error)))?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body)
            .map_err(|_| Failure::Failed(format!("{} does not answer like a chalet server", self.url)))
    }

    /// GET.
    pub(super) async fn get(&self, path: &str) -> Result<Value> {
        self.json(self.request(Method::GET, path)).await
    }

    /// POST with a JSON body.
    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    /// PUT a JSON document as it stands in a file.
    pub(super) async fn put(&self, path: &str, document: Vec<u8>) -> Result<Value> {
        self.json(self.request(Method::PUT, path).header(CONTENT_TYPE, "application/json").body(document)).await
    }

    /// DELETE.
    pub(super) async fn delete(&self, path: &str) -> Result<()> {
        self.json(self.request(Method::DELETE, path)).await.map(drop)
    }

    /// The items of a list, page after page, up to `limit`; and the cursor of what comes after them.
    pub(super) async fn list(&self, path: &str, limit: usize) -> Result<List> {
        self.list_where(path, &[], limit).await
    }

    /// The same with a query.
    pub(super) async fn list_where(&self, path: &str, query: &[(&str, &str)], limit: usize) -> Result<List> {
        let mut data = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let page = PAGE.min(limit - data.len()).to_string();
            let mut request = self.request(Method::GET, path).query(query).query(&[("limit", &page)]);
            if let Some(cursor) = &cursor {
                request = request.query(&[("cursor", cursor)]);
            }
            let mut answer = self.json(request).await?;
            if let Value::Array(items) = answer["data"].take() {
                data.extend(items);
            }
            cursor = answer["next"].as_str().map(str::to_owned);
            if cursor.is_none() || data.len() >= limit {
                return Ok(List { data, next: cursor });
            }
        }
    }
}

/// Items of a list of the API.
pub(super) struct List {
    pub(super) data: Vec<Value>,
    pub(super) next: Option<String>,
}

impl List {
    /// In the API's form.
    pub(super) fn to_json(&self) -> Value {
        json!({ "data": self.data, "next": self.next })
    }

    /// Say that there is more than was printed.
    pub(super) fn note_more(&self) {
        if self.next.is_some() {
            super::terminal::note(format!("there are more than these {}; raise --limit", self.data.len()));
        }
    }
}

/// An error's answer in words: what to do, then in brackets what to quote to whoever runs the server.
fn explain(status: StatusCode, headers: &HeaderMap, body: &str) -> String {
    let problem: Value = serde_json::from_str(body).unwrap_or_default();
    let first = |names: &[&str]| names.iter().find_map(|name| problem[*name].as_str()).map(escaped);
    let said = first(&["detail", "errorDetails", "title"]).unwrap_or_else(|| format!("the server answered {status}"));
    let mut quoted = vec![first(&["code", "errorCode"]).unwrap_or_else(|| status.as_u16().to_string())];
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    if let Some(invocation) = first(&["invocation"]) {
        quoted.push(format!("invocation {invocation}"));
    } else if let Some(request) = first(&["request"]).or_else(|| header("x-request-id")) {
        quoted.push(format!("request {request}"));
    }
    format!("{said} ({})", quoted.join(", "))
}

/// The innermost cause, which says what happened; the outer ones repeat the address.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_of_a_path_are_encoded() {
        let tenant = ForTenant { tenant: "a/b".into() };
        assert_eq!(
            tenant.path(&["plugins", "p", "versions", "1.0.0+dev.1"]),
            "/v1/tenants/a%2Fb/plugins/p/versions/1.0.0%2Bdev.1"
        );
    }

    #[test]
    fn a_problem_is_told_with_its_code_and_request() {
        let body = r#"{"title":"Not Found","status":404,"code":"not_found","detail":"no such tenant","request":"r1"}"#;
        assert_eq!(explain(StatusCode::NOT_FOUND, &HeaderMap::new(), body), "no such tenant (not_found, request r1)");
        let ofrep = r#"{"key":"f","errorCode":"FLAG_NOT_FOUND","errorDetails":"no such flag"}"#;
        assert_eq!(explain(StatusCode::NOT_FOUND, &HeaderMap::new(), ofrep), "no such flag (FLAG_NOT_FOUND)");
        assert_eq!(
            explain(StatusCode::BAD_GATEWAY, &HeaderMap::new(), "<html>"),
            "the server answered 502 Bad Gateway (502)"
        );
    }

    #[test]
    fn what_is_no_address_is_a_usage_error() {
        assert!(matches!(Client::with("127.0.0.1:8080", None), Err(Failure::Usage(_))));
        assert!(
            Client::with("http://127.0.0.1:8080/", None).is_ok_and(|client| client.url() == "http://127.0.0.1:8080")
        );
    }
}
