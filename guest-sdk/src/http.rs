//! HTTP: requests to the plugin, its answers, and requests it sends.
//!
//! ```
//! # use chalet_sdk::{http::{Request, Response}, Result};
//! # fn handle(request: Request) -> Result<Response> {
//! #[derive(serde::Deserialize)]
//! struct Order { sku: String }
//! let order: Order = request.json()?;
//! Ok(Response::json(&order.sku)?.with_status(201))
//! # }
//! ```

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Result, host, reject};

/// Header names, in lower case, with their values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub(crate) Vec<(String, Vec<u8>)>);

impl Headers {
    /// The first value of a header, whatever the case of `name`; `None` if there is none or it is not UTF-8.
    pub fn get(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.get_bytes(name)?).ok()
    }

    /// The bytes of the first value of a header.
    pub fn get_bytes(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Add a value, keeping those that are there.
    pub fn append(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.0.push((name.to_ascii_lowercase(), value.as_ref().to_vec()));
    }

    /// Set a value, replacing those that are there.
    pub fn set(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.0.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.append(name, value);
    }

    /// Names and values in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }
}

/// A request to the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
    pub(crate) route: String,
    pub(crate) params: Vec<(String, String)>,
}

impl Request {
    /// A request, as a test makes one. What follows a `?` in `path` is the query.
    pub fn new(method: &str, path: &str) -> Self {
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (path, None),
        };
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            query,
            headers: Headers::default(),
            body: Vec::new(),
            route: String::new(),
            params: Vec::new(),
        }
    }

    /// A GET request, as a test makes one.
    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// A POST request with a JSON body, as a test makes one.
    pub fn post<T: Serialize + ?Sized>(path: &str, body: &T) -> Result<Self> {
        Ok(Self::new("POST", path).with_header("content-type", "application/json").with_body(serde_json::to_vec(body)?))
    }

    /// The same request with one more header.
    pub fn with_header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.append(name, value);
        self
    }

    /// The same request with this body.
    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// The method, in capitals.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The percent-encoded path after `/t/{tenant}/{plugin}`, at least `/`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What follows the `?`, still encoded.
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    /// The first value of a query parameter, decoded as `application/x-www-form-urlencoded` says; bytes that are not
    /// UTF-8 are replaced.
    pub fn query_param(&self, name: &str) -> Option<String> {
        self.query
            .as_deref()?
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .find(|(known, _)| decode_form(known) == name)
            .map(|(_, value)| decode_form(value))
    }

    /// The headers. The caller's credential is not among them.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// A header's first value, if it has one that is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// The body's bytes.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The body read as JSON; [`Error::Reject`](crate::Error::Reject) if it is not a `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(serde_json::from_slice(&self.body)?)
    }

    /// The manifest's route that matched, such as `GET /orders/{id}`.
    pub fn route(&self) -> &str {
        &self.route
    }

    /// A parameter of the route, decoded. Fails with [`Error::Reject`](crate::Error::Reject) if the route has none of
    /// this name.
    pub fn param(&self, name: &str) -> Result<&str> {
        self.params
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
            .ok_or_else(|| reject(format!("the route `{}` has no parameter `{name}`", self.route)))
    }
}

/// `%41` and `+` as a form encodes them.
fn decode_form(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = |at: usize| tail.get(at).and_then(|&digit| char::from(digit).to_digit(16));
        match (first, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &tail[2..];
                continue;
            }
            (b'+', ..) => bytes.push(b' '),
            _ => bytes.push(first),
        }
        rest = tail;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An answer: the plugin's own, or the one to a request it sent.
///
/// A plugin's answer commits the invocation if its status is below 500.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// An answer without a body.
    pub fn new(status: u16) -> Self {
        Self { status, headers: Headers::default(), body: Vec::new() }
    }

    /// An answer 200 with a JSON body.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        Ok(Self::new(200).with_header("content-type", "application/json").with_body(serde_json::to_vec(value)?))
    }

    /// An answer 200 with plain text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(200).with_header("content-type", "text/plain; charset=utf-8").with_body(text.into())
    }

    /// An answer 404 without a body.
    pub fn not_found() -> Self {
        Self::new(404)
    }

    /// The same answer with another status.
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// The same answer with this header, replacing one of the same name.
    pub fn with_header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.set(name, value);
        self
    }

    /// The same answer with this body.
    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The headers.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The body's bytes.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The body as text; bytes that are not UTF-8 are replaced.
    pub fn to_text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body read as JSON; [`Error::Reject`](crate::Error::Reject) if it is not a `T`.
    pub fn read_json<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}

/// A request to a host that the manifest names under `egress`.
///
/// Sending is not part of the transaction: what was sent stays sent. Each call carries an `idempotency-key` derived
/// from the invocation's cause, and is not sent again when the host runs the invocation again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub(crate) method: String,
    pub(crate) url: String,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
    pub(crate) timeout_ms: Option<u32>,
}

impl Call {
    /// A call of an absolute `https` URL without a user name in it.
    pub fn new(method: impl Into<String>, url: impl Into<String>) -> Self {
        Self { method: method.into(), url: url.into(), headers: Headers::default(), body: Vec::new(), timeout_ms: None }
    }

    /// The same call with this header, replacing one of the same name.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.set(name, value);
        self
    }

    /// The same call with these bytes.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// The same call with a JSON body.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Result<Self> {
        Ok(self.header("content-type", "application/json").body(serde_json::to_vec(value)?))
    }

    /// Give up after this long; at most what is left of the invocation's time.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout_ms = Some(u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX));
        self
    }

    /// The method.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The headers.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The body's bytes.
    pub fn body_bytes(&self) -> &[u8] {
        &self.body
    }

    /// Send it and wait for the whole answer; see [`send`].
    pub fn send(self) -> Result<Response> {
        send(self)
    }
}

/// A GET call.
pub fn get(url: impl Into<String>) -> Call {
    Call::new("GET", url)
}

/// A POST call.
pub fn post(url: impl Into<String>) -> Call {
    Call::new("POST", url)
}

/// Send a call and wait for the whole answer. Redirects are answers, not followed, and so is any status.
///
/// Fails with [`Error::Denied`](crate::Error::Denied) for a host the manifest does not name, a port of another protocol, such
/// as 25, or an address that is not public, and with [`Error::Unavailable`](crate::Error::Unavailable) if nobody answers in time.
pub fn send(call: Call) -> Result<Response> {
    host::http_send(call)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_parameter_is_decoded_as_a_form() {
        let request = Request::get("/find?a=1&q=b%C3%A4r+x%2&empty");
        assert_eq!(request.path(), "/find");
        assert_eq!(request.query_param("q").as_deref(), Some("bär x%2"));
        assert_eq!(request.query_param("empty").as_deref(), Some(""));
        assert_eq!(request.query_param("none"), None);
    }

    #[test]
    fn header_names_have_no_case() {
        let request = Request::get("/").with_header("X-Trace", "1");
        assert_eq!(request.header("x-trace"), Some("1"));
        assert_eq!(Response::new(200).with_header("A", "1").with_header("a", "2").headers().get("A"), Some("2"));
    }

    #[test]
    fn a_missing_parameter_rejects() {
        assert!(!Request::get("/").param("id").expect_err("no parameters").retryable());
    }
}
