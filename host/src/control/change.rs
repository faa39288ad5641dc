//! A request that changes something: its body, read and bounded, and its transaction, in which the answer to its
//! idempotency key is stored, and the audit log's record of it where the table of routes asks for one.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio::sync::OwnedMutexGuard;

use crate::control::{Access, Audit, Caller, Tenant};
use crate::effects::{Effects, Held, Key, Runs, Verdict};
use crate::gateway::Door;
use crate::gateway::plugin::read_body;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::json;
use crate::kernel::tenant::TenantScope;
use crate::services::audit::Record;
use crate::services::idempotency::{self, Answer, Cause};

/// How long a change may hold its idempotency key.
const LEASE: Duration = Duration::from_secs(15);

/// A change that is asked for.
pub(super) struct Change {
    pub door: Door,
    /// Whose rows change: the tenant's that the path names, or on the operator's routes the platform's.
    pub scope: TenantScope,
    pub headers: HeaderMap,
    pub body: Bytes,
    record: Option<Record>,
    turn: Option<OwnedMutexGuard<()>>,
    cause: Option<Cause>,
    claim: Option<Held>,
    versioned: bool,
    /// It may hold a gate, which two threads cannot look at: who awaits with a change has it to himself.
    runs: Runs,
}

impl FromRequest<Door> for Change {
    type Rejection = Error;

    async fn from_request(request: Request, door: &Door) -> Result<Self> {
        Self::read(request, door, |scope| scope.plan().request_body_bytes).await
    }
}

impl Change {
    /// Read a request whose body has this bound.
    pub(super) async fn read(request: Request, door: &Door, limit: impl Fn(&TenantScope) -> u64) -> Result<Self> {
        let (mut parts, body) = request.into_parts();
        let caller = Caller::from_request_parts(&mut parts, door).await?;
        let scope = match caller.rule.access {
            Access::Platform => door.directory.platform().clone(),
            Access::Tenant(_) | Access::Own => Tenant::from_request_parts(&mut parts, door).await?.0,
        };
        let body = read_body(body, limit(&scope)).await?;
        let cause = cause(&parts, &caller.principal.key, &body)?;
        let record = || caller.record(&parts.uri);
        let record = match caller.rule.audit {
            Audit::Nothing | Audit::Data => None,
            Audit::Secret => Some(record()),
            Audit::Change if body.is_empty() => Some(record()),
            Audit::Change => Some(Record { digest: Some(hex::encode(Sha256::digest(&body))), ..record() }),
        };
        Ok(Self {
            record: record.filter(|_| !door.breaks.audit),
            door: door.clone(),
            scope,
            headers: parts.headers,
            body,
            turn: None,
            cause,
            claim: None,
            versioned: false,
            runs: Runs::default(),
        })
    }

    /// What the audit log is to say beyond the path: no bodies, no secrets.
    pub(super) fn noting(mut self, what: serde_json::Value) -> Self {
        if let Some(record) = &mut self.record {
            record.what = Some(what);
        }
        self
    }

    /// The body as JSON of this shape.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T> {
        parse_json(&self.body)
    }

    /// A seed that is the same for each repetition of this request.
    pub(super) fn seed(&self) -> Option<Vec<u8>> {
        self.cause.as_ref().map(|cause| cause.digest().to_vec())
    }

    /// The answer's ETag is to be the version that the commit gives the rows.
    pub(super) fn versioned(mut self) -> Self {
        self.versioned = true;
        self
    }

    /// Begin a run of the transaction; or the answer, if there is one without running. See [`commit!`].
    pub(super) async fn begin(&mut self) -> Result<Effects, Response> {
        let door = &self.door;
        if self.record.is_some() && self.turn.is_none() {
            self.turn = Some(door.audit.turn(&self.scope).await);
        }
        if let (None, Some(cause)) = (&self.claim, &self.cause) {
            let held = door.idempotency.claim(&self.scope, cause, LEASE).await;
            self.claim = Some(held.map_err(IntoResponse::into_response)?);
        }
        let found = self.find().await;
        if found.is_err() {
            self.release().await;
        }
        found
    }

    async fn find(&mut self) -> Result<Effects, Response> {
        let mut effects = self.door.shard.begin(&self.scope);
        if self.record.is_some() {
            self.door.audit.look(&mut effects).await.map_err(IntoResponse::into_response)?;
        }
        if let Some(cause) = &self.cause {
            match self.door.idempotency.find_versioned(&mut effects, cause).await {
                Ok(None) => {}
                Ok(Some((answer, version))) => {
                    let mut response = self.rendered(answer, version);
                    response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
                    return Err(response);
                }
                Err(error) => return Err(error.into_response()),
            }
        }
        Ok(effects)
    }

    /// End a run: store its answer, commit, and answer when that is durable. None means to run again.
    pub(super) async fn end(&mut self, effects: Effects, answer: Result<Answer>) -> Option<Response> {
        let response = self.conclude(effects, answer).await?;
        self.release().await;
        Some(response)
    }

    /// Give the key back before the answer leaves, so that whoever has the answer may ask again at once.
    async fn release(&mut self) {
        if let Some(held) = self.claim.take() {
            held.release().await;
        }
    }

    async fn conclude(&mut self, mut effects: Effects, answer: Result<Answer>) -> Option<Response> {
        let completed = match answer {
            Err(error) => Err(error),
            Ok(answer) => self.complete(&mut effects, &answer).await.map(|marker| (answer, marker)),
        };
        if effects.stale().is_some() {
            return self.again().await;
        }
        let (answer, marker) = match completed {
            Ok(completed) => completed,
            Err(error) => return Some(error.into_response()),
        };
        if effects.is_empty() {
            return Some(self.rendered(answer, 0));
        }
        match self.door.shard.commit(effects.into_set(marker, None)).await {
            Ok(Verdict::Committed { tag }) => Some(self.rendered(answer, tag.seq)),
            Ok(Verdict::Conflict { .. }) => self.again().await,
            Ok(Verdict::Refused(error)) | Err(error) => Some(error.into_response()),
        }
    }

    /// Stage what comes with a change: its answer, and its record, whose row is the marker of the commit.
    async fn complete(&mut self, effects: &mut Effects, answer: &Answer) -> Result<Option<Key>> {
        let changes = !effects.is_empty();
        effects.end();
        if let Some(cause) = &self.cause {
            self.door.idempotency.store(effects, cause, answer)?;
        }
        match &self.record {
            Some(record) if changes => self.door.audit.append(effects, record.clone()).await.map(Some),
            _ => Ok(None),
        }
    }

    async fn again(&mut self) -> Option<Response> {
        self.runs.again(&self.door.shard, &self.scope).await.err().map(IntoResponse::into_response)
    }

    fn rendered(&self, answer: Answer, version: u64) -> Response {
        let mut response = rendered(answer);
        if self.versioned
            && let Ok(value) = HeaderValue::try_from(format!("\"{version}\""))
        {
            response.headers_mut().insert(header::ETAG, value);
        }
        response
    }
}

/// Run a block in a change's transaction, with its effects, until it is committed or refused; the response.
/// The block may run several times.
macro_rules! commit {
    ($change:expr, |$effects:ident| $run:expr) => {{
        let mut change = $change;
        loop {
            let mut begun = match change.begin().await {
                Ok(effects) => effects,
                Err(answered) => break answered,
            };
            let $effects = &mut begun;
            let answer: $crate::kernel::error::Result<$crate::services::idempotency::Answer> = async { $run }.await;
            if let Some(response) = change.end(begun, answer).await {
                break response;
            }
        }
    }};
}
pub(super) use commit;

/// The cause that the `Idempotency-Key` header names, for this caller on this route.
pub(super) fn cause(parts: &axum::http::request::Parts, caller: &str, body: &[u8]) -> Result<Option<Cause>> {
    let Some(key) = parts.headers.get("idempotency-key") else { return Ok(None) };
    let key = idempotency::parse_key(key.as_bytes())?;
    let content_type = parts.headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let mut asked = vec![parts.method.as_str().as_bytes(), target.as_bytes(), content_type, body];
    // An event in CloudEvents' binary mode stands in headers, and another event is another request.
    let attributes = parts.headers.iter().filter(|(name, _)| name.as_str().starts_with("ce-"));
    let mut attributes: Vec<_> = attributes.map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]).collect();
    attributes.sort_unstable();
    asked.extend(attributes.iter().flatten());
    let fingerprint = idempotency::fingerprint(&asked);
    let route = parts.extensions.get::<axum::extract::MatchedPath>().map_or("", |path| path.as_str());
    let route = format!("{} {route}", parts.method);
    Ok(Some(Cause::new(&format!("key {caller}"), &route, &key, fingerprint, idempotency::API_MS)))
}

/// JSON of a shape, with an error that names the place.
pub(super) fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    json::object(body, |why| Error::invalid(format!("the body is not the JSON expected: {why}")))
}

/// An answer with a JSON body.
pub(super) fn json<T: Serialize>(status: StatusCode, body: &T) -> Result<Answer> {
    Ok(Answer {
        invocation: String::new(),
        status: status.as_u16(),
        headers: vec![("content-type".into(), Bytes::from_static(b"application/json"))],
        body: serde_json::to_vec(body).map_err(Error::internal)?.into(),
    })
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Answer {
    Answer { invocation: String::new(), status: status.as_u16(), headers: Vec::new(), body: Bytes::new() }
}

/// An answer as HTTP.
pub(super) fn rendered(answer: Answer) -> Response {
    let mut response = Response::new(axum::body::Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    for (name, value) in answer.headers {
        if let (Ok(name), Ok(value)) =
            (name.parse::<header::HeaderName>(), header::HeaderValue::from_maybe_shared(value))
        {
            response.headers_mut().append(name, value);
        }
    }
    response
}

/// What stands between the quotes of an entity tag of ours.
pub(super) fn etag_version(value: &str) -> Option<u64> {
    value.trim().strip_prefix('"')?.strip_suffix('"')?.parse().ok()
}

/// The versions that `If-Match` and `If-None-Match` allow (RFC 9110, 13.1), held against the row's: 0 is absent.
pub(super) fn precondition(headers: &HeaderMap, version: u64) -> Result<()> {
    let failed = || {
        Error::new(
            Kind::Conflict,
            "precondition_failed",
            "the entry is not in the state that the request demands; read it again",
        )
    };
    let text = |name: header::HeaderName| -> Result<Option<String>> {
        let mut values = Vec::new();
        for value in headers.get_all(name) {
            values.push(value.to_str().map_err(|_| Error::invalid("an entity tag is ASCII text in quotes"))?);
        }
        Ok(if values.is_empty() { None } else { Some(values.join(",")) })
    };
    if let Some(wanted) = text(header::IF_MATCH)? {
        let matches =
            version != 0 && wanted.split(',').any(|tag| tag.trim() == "*" || etag_version(tag) == Some(version));
        if !matches {
            return Err(failed());
        }
    }
    if let Some(unwanted) = text(header::IF_NONE_MATCH)? {
        let matches =
            version != 0 && unwanted.split(',').any(|tag| tag.trim() == "*" || etag_version(tag) == Some(version));
        if matches {
            return Err(failed());
        }
    }
    Ok(())
}
