//! `POST /hooks/{tenant}/{source}`: a provider's webhook, verified before anything else is done for it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use crate::gateway::Door;
use crate::gateway::extract::Path;
use crate::gateway::plugin::{depth, read_body, render};
use crate::gateway::respond::problem;
use crate::invocation::Work;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::TenantScope;
use crate::kernel::trace;
use crate::services::idempotency::{self, Cause};
use crate::services::plugins::Released;
use crate::services::webhooks::{self, Source, Verified};
use crate::triggers::{Call, webhook};

/// How long the same signed bytes under another id count as a replay, where the provider does not sign the
/// id: twice the tolerance that the signed schemes allow.
const REPLAY_MS: i64 = 2 * webhooks::TOLERANCE_S * 1_000;

fn no_source() -> Error {
    Error::not_found("no such tenant or webhook source")
}

/// Take a delivery.
pub(super) async fn handle(
    State(door): State<Door>,
    Path((tenant, source)): Path<(String, String)>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let prepared = async {
        let scope = door.directory.by_name(&tenant).await?.ok_or_else(no_source)?;
        trace::current().set("chalet.tenant", scope.name());
        let dice = rand::random_range(0..100);
        let released = door.plugins.receiver(&scope, &source, dice).await?.ok_or_else(no_source)?;
        let definition = definition(&door, &scope, &released, &source).await?;
        let body = read_body(body, scope.plan().request_body_bytes).await?;
        let verified = verified(&door, &scope, &definition, &parts.headers, &body).await?;
        let admission = door.limits.admit(&door.shard, &scope, &released.version.plugin, None).await?;
        admission.error().map_or(Ok(()), Err)?;
        let depth = depth(&parts.headers)?;
        Ok::<_, Error>((scope, released, body, verified, depth))
    };
    let (scope, released, body, verified, depth) = match prepared.await {
        Ok(prepared) => prepared,
        Err(error) => return error.into_response(),
    };
    if let Some(challenge) = verified.challenge {
        return challenge.into_response();
    }
    let cause = cause(&source, &verified);
    let call = Call::Webhook(Arc::new(webhook::Delivery {
        source,
        id: verified.id,
        event_type: verified.event_type,
        headers: delivered(&parts.headers),
        body: body.into(),
    }));
    match door.invoker.run(Work { scope, released, call, cause: Some(cause), depth }).await {
        Ok(done) => render(done, parts.uri.path()),
        Err(failed) => problem(&failed.error, Some(failed.invocation)),
    }
}

/// How this source is verified: as the tenant says, else as the plugin's manifest says.
async fn definition(door: &Door, scope: &TenantScope, released: &Released, source: &str) -> Result<Source> {
    let mut effects = door.shard.begin(scope);
    if let Some((defined, _)) = webhooks::get(&mut effects, source).await? {
        return Ok(defined);
    }
    released.manifest.webhooks.iter().find(|webhook| webhook.source == source).map(Source::from).ok_or_else(no_source)
}

async fn verified(
    door: &Door,
    scope: &TenantScope,
    source: &Source,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Verified> {
    let effects = door.shard.begin(scope);
    let secret = door.services.secrets.get(&effects, &source.secret).await.map_err(|error| {
        if error.kind() != Kind::NotFound {
            return error;
        }
        Error::unavailable(
            "webhook_secret_missing",
            "the receiver has not stored this source's secret yet; deliver again later",
        )
        .source(error)
    })?;
    webhooks::verify(source, &webhooks::keys(&secret), headers, body, effects.now_ms())
}

/// The delivery's own id; and where the provider does not sign it, the signed bytes for a while.
fn cause(source: &str, verified: &Verified) -> Cause {
    let fingerprint = idempotency::fingerprint(&[]);
    let cause = Cause::new("webhook", source, &verified.id, fingerprint, idempotency::WEBHOOK_MS);
    if verified.id_signed {
        cause
    } else {
        cause.or_same("webhook bytes", source, &hex::encode(verified.digest), REPLAY_MS)
    }
}

fn delivered(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect()
}
