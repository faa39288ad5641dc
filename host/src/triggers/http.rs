//! `chalet:platform/http-trigger`: a plugin that answers HTTP requests.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use wasmtime::Store;
use wasmtime::component::Instance;

use crate::engine::Program;
use crate::engine::bindings::chalet::platform::types;
use crate::engine::bindings::exports::chalet::platform::http_trigger;
use crate::engine::guest::Guest;
use crate::kernel::header::is_hop_by_hop;
use crate::triggers::{Failure, not_exported};

/// Headers of a response; servers in front of us allow about 100.
const HEADERS: usize = 100;
/// Bytes of their names and values: what nginx and HAProxy take by default.
const HEADER_BYTES: usize = 16 << 10;
/// What is the host's to say; taken out of a guest's response with what belongs to the connection.
const NOT_THE_GUESTS: [&str; 2] = ["chalet-invocation", "content-length"];

/// A request as a guest sees it: names of headers in lower case, the whole body, the percent-encoded path behind the
/// plugin's own, the manifest's route that matched, and its parameters, decoded.
pub type Request = http_trigger::Request;

/// A response that may be sent as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// 200 to 599.
    pub status: u16,
    /// Names in lower case; valid, and none that belongs to the connection.
    pub headers: Vec<(String, Bytes)>,
    /// The whole body.
    pub body: Bytes,
}

pub(super) async fn call(
    program: &Program,
    store: &mut Store<Guest>,
    instance: Instance,
    request: &Request,
) -> wasmtime::Result<Result<types::Response, types::Failure>> {
    let indices = program.http.as_ref().ok_or_else(|| not_exported("http"))?;
    indices.load(&mut *store, &instance)?.call_handle(store, request).await
}

/// Everything in `response` comes from the guest.
pub(super) fn check(response: types::Response, body_bytes: u64) -> Result<Response, Failure> {
    let refuse = |reason: String| Err(Failure::InvalidResponse(reason));
    let status = response.status;
    if !(200..=599).contains(&status) {
        return refuse(format!("the status {status} is not 200 to 599"));
    }
    if response.body.len() as u64 > body_bytes {
        return refuse(format!("the body has {} bytes; the plan allows {body_bytes}", response.body.len()));
    }
    if matches!(status, 204 | 205 | 304) && !response.body.is_empty() {
        return refuse(format!("a response with status {status} has no body"));
    }
    if response.headers.len() > HEADERS {
        return refuse(format!("the response has {} headers; at most {HEADERS} are allowed", response.headers.len()));
    }
    let bytes: usize = response.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > HEADER_BYTES {
        return refuse(format!("the headers have {bytes} bytes; at most {HEADER_BYTES} are allowed"));
    }
    let mut headers = Vec::with_capacity(response.headers.len());
    let mut of_connection = Vec::new();
    for (name, value) in response.headers {
        let shown = || name.chars().take(50).flat_map(char::escape_debug).collect::<String>();
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
            return refuse(format!("`{}` is no header's name", shown()));
        };
        if HeaderValue::from_bytes(&value).is_err() {
            return refuse(format!("the value of the header `{name}` has bytes that HTTP does not allow"));
        }
        if name == http::header::CONNECTION {
            // It names headers that are for this connection only.
            let names = String::from_utf8_lossy(&value).to_ascii_lowercase();
            of_connection.extend(names.split(',').map(|name| name.trim().to_owned()));
        }
        headers.push((name.as_str().to_owned(), Bytes::from(value)));
    }
    headers.retain(|(name, _)| {
        !is_hop_by_hop(name) && !NOT_THE_GUESTS.contains(&name.as_str()) && !of_connection.contains(name)
    });
    Ok(Response { status, headers, body: response.body.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, headers: &[(&str, &[u8])], body: &[u8]) -> types::Response {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect();
        types::Response { status, headers, body: body.to_vec() }
    }

    #[test]
    fn a_response_loses_what_belongs_to_the_connection() {
        let headers: &[(&str, &[u8])] = &[
            ("Content-Type", b"text/plain"),
            ("content-length", b"1"),
            ("Connection", b"X-Own, close"),
            ("x-own", b"1"),
            ("set-cookie", b"a=1"),
            ("set-cookie", b"b=2"),
            ("transfer-encoding", b"chunked"),
        ];
        let checked = check(response(200, headers, b"hi"), 2).unwrap();
        let names: Vec<_> = checked.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["content-type", "set-cookie", "set-cookie"]);
    }

    #[test]
    fn what_http_does_not_allow_is_refused() {
        let many: Vec<(&str, &[u8])> = vec![("a", b"b"); HEADERS + 1];
        let long = vec![b'a'; HEADER_BYTES];
        let cases: &[types::Response] = &[
            response(0, &[], b""),
            response(101, &[], b""),
            response(600, &[], b""),
            response(200, &[], b"abc"),
            response(204, &[], b"a"),
            response(200, &many, b""),
            response(200, &[("a", &long)], b""),
            response(200, &[("a b", b"")], b""),
            response(200, &[("", b"")], b""),
            response(200, &[("a\r\nb", b"")], b""),
            response(200, &[("a", b"x\r\ny: z")], b""),
            response(200, &[("a", b"\0")], b""),
        ];
        for case in cases {
            assert!(matches!(check(case.clone(), 2), Err(Failure::InvalidResponse(_))), "{case:?}");
        }
    }
}
