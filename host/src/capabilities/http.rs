//! `chalet:platform/http`: requests to the hosts that the manifest names. A request is sent once, however
//! often the invocation runs.

use std::time::Duration;

use bytes::Bytes;
use wasmtime::component::Linker;

use crate::capabilities::error::to_wit;
use crate::engine::bindings::chalet::platform::{http, types};
use crate::engine::guest::{self, Arguments, Call, Guest, Immediate, OUTSIDE_FUEL, Refusal};
use crate::kernel::error::{Error, Kind};
use crate::kernel::header::DEPTH;
use crate::services::egress;

/// The header by which a receiver tells a repeated request.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    guest::interface!(linker, "chalet:platform/http@0.1.0", http, { "send" => send(request) })
}

impl http::Host for Call<'_> {
    async fn send(&mut self, request: http::Request) -> Result<types::Response, Refusal> {
        let operation = self.operation();
        let guest = self.enter(OUTSIDE_FUEL)?;
        if guest.grants().egress.is_empty() {
            return Err(Error::new(
                Kind::Denied,
                "not_granted",
                "the manifest grants no host; add it to [grants] egress in plugin.toml",
            )
            .into());
        }
        let arguments = digest(&request);
        let (ordinal, known) = guest.recorded.next(arguments)?;
        if let Some(Immediate::Response(answer)) = known {
            return answer.map_err(Refusal::Known);
        }
        guest.recorded.take_outgoing(guest.budget().outgoing_calls)?;
        let request = outgoing(guest, request, arguments, ordinal);
        let (services, invocation) = (guest.services(), guest.invocation().clone());
        let sent = services.egress.send(&invocation.scope, &invocation.manifest.grants.egress, request).await;
        // An error is kept as well: the request may have arrived.
        let answer = sent.map(response).map_err(|error| to_wit(&error, operation));
        guest.recorded.keep(arguments, Immediate::Response(answer.clone()));
        answer.map_err(Refusal::Known)
    }
}

fn digest(request: &http::Request) -> Arguments {
    let headers = request.headers.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_slice()]);
    let count = (request.headers.len() as u64).to_be_bytes();
    let parts = [request.method.as_bytes(), request.url.as_bytes(), count.as_slice()];
    guest::arguments("http.send", parts.into_iter().chain(headers).chain([request.body.as_slice()]))
}

fn outgoing(guest: &Guest, request: http::Request, arguments: Arguments, ordinal: usize) -> egress::Request {
    let mut headers: Vec<(String, Bytes)> =
        request.headers.into_iter().map(|(name, value)| (name, value.into())).collect();
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(IDEMPOTENCY_KEY)) {
        headers.push((IDEMPOTENCY_KEY.to_owned(), key(guest, arguments, ordinal).into()));
    }
    headers.retain(|(name, _)| !name.eq_ignore_ascii_case(DEPTH));
    headers.push((DEPTH.to_owned(), guest.invocation().depth.saturating_add(1).to_string().into()));
    let remaining = guest.remaining();
    let timeout = request.timeout_ms.map_or(remaining, |ms| remaining.min(Duration::from_millis(ms.into())));
    egress::Request { method: request.method, url: request.url, headers, body: request.body.into(), timeout }
}

/// The same for the same cause, request and ordinal, also in another invocation that the cause makes happen.
fn key(guest: &Guest, arguments: Arguments, ordinal: usize) -> String {
    let invocation = guest.invocation();
    let mut text = (invocation.cause.len() as u64).to_be_bytes().to_vec();
    text.extend_from_slice(invocation.cause.as_bytes());
    text.extend_from_slice(&arguments);
    text.extend_from_slice(&(ordinal as u64).to_be_bytes());
    let key = guest.services().master.digest("outgoing", Some(invocation.scope.id()), &text);
    hex::encode(&key[..16])
}

fn response(response: egress::Response) -> types::Response {
    types::Response {
        status: response.status,
        headers: response.headers.into_iter().map(|(name, value)| (name, value.into())).collect(),
        body: response.body.into(),
    }
}
