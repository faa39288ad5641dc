//! Requests that two parsers could read differently are refused, before anybody looks at what they ask.
//!
//! Proxies stand in front of this server and decide by what they read. hyper refuses most of what is malformed and closes
//! the connection; here is what it lets through. A refused HTTP/1 request is its connection's last, since nobody knows
//! where the next one would begin.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Version, header};
use axum::response::{IntoResponse, Response};

use crate::kernel::error::{Error, Kind, Result};

/// Bytes of a request's target: as most proxies have it, and room for a key of 512 bytes, percent-encoded.
const TARGET_BYTES: usize = 8 << 10;

/// The answer to a request that is not sound.
pub(super) fn refusal(request: &Request) -> Option<Response> {
    let mut response = sound(request).err()?.into_response();
    if request.version() < Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Some(response)
}

fn sound(request: &Request) -> Result<()> {
    let (uri, headers) = (request.uri(), request.headers());
    if uri.path_and_query().is_some_and(|target| target.as_str().len() > TARGET_BYTES) {
        return Err(Error::new(
            Kind::Invalid,
            "uri_too_long",
            format!("the path and query have more than {TARGET_BYTES} bytes; send less"),
        ));
    }
    if request.version() < Version::HTTP_2 {
        framing(headers, request.version())?;
    }
    Ok(())
}

fn framing(headers: &HeaderMap, version: Version) -> Result<()> {
    let hosts = headers.get_all(header::HOST).iter().count();
    if hosts > 1 || hosts == 0 && version == Version::HTTP_11 {
        return Err(Error::invalid("a request has one Host header (RFC 9112, 3.2)"));
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if codings.next().is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        || codings.next().is_some()
    {
        return Err(Error::invalid("the only transfer coding is chunked"));
    }
    // A proxy in between removes what is named here, and the length of the body with it.
    let framing =
        |name: &str| ["content-length", "transfer-encoding", "host"].iter().any(|one| name.eq_ignore_ascii_case(one));
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    if named.flat_map(|value| value.split(',')).any(|name| framing(name.trim())) {
        return Err(Error::invalid("the Connection header names what frames the request; leave it out"));
    }
    Ok(())
}
