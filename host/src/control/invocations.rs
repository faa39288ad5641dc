//! What happened in the tenant's invocations.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;

use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use serde::{Deserialize, Serialize};

use crate::control::page::{List, Page, next};
use crate::control::{LOG_POLL, Tenant};
use crate::effects::{Effects, Runs};
use crate::gateway::Door;
use crate::gateway::extract::{Path, Query};
use crate::kernel::error::{Kind, Result};
use crate::kernel::tenant::TenantScope;
use crate::services::invocations::{self, Line, Record};

/// Invocations that one look of a log stream takes in.
const LOOK: usize = 100;

/// One invocation with its log.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Detail {
    #[serde(flatten)]
    record: Record,
    /// What the plugin wrote.
    log: Vec<Line>,
}

/// Which invocations to stream.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Only this plugin's.
    plugin: Option<String>,
    /// Go on as invocations come; true if not given.
    follow: Option<bool>,
}

/// The tenant's invocations, the latest first.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/invocations", tag = "invocations", params(("tenant" = String, Path), Page),
    responses((status = 200, body = List<Record>)))]
pub(super) async fn list(
    State(door): State<Door>,
    Tenant(scope): Tenant,
    Query(page): Query<Page>,
) -> Result<List<Record>> {
    door.invoker.tally().flush().await;
    let place = format!("invocations {}", scope.id().as_str());
    let after = page.after_text(&door, &place)?;
    let (data, more) = invocations::list(&mut door.shard.begin(&scope), after.as_deref(), page.limit()?).await?;
    let next = next(&door, &place, data.last().map(|record| record.id.as_bytes()), more);
    Ok(List { data, next })
}

/// One invocation with its log.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/invocations/{id}", tag = "invocations", params(("tenant" = String, Path), ("id" = String, Path)),
    responses((status = 200, body = Detail)))]
pub(super) async fn get(
    State(door): State<Door>,
    Tenant(scope): Tenant,
    Path((_, id)): Path<(String, String)>,
) -> Result<Json<Detail>> {
    door.invoker.tally().flush().await;
    let mut effects = door.shard.begin(&scope);
    let record = match invocations::get(&mut effects, &id).await {
        // Of a burst only some are written; this node remembers its latest.
        Err(error) if error.kind() == Kind::NotFound => door.invoker.tally().find(&scope, &id).ok_or(error)?,
        found => found?,
    };
    let log = invocations::log(&mut effects, &id).await?;
    Ok(Json(Detail { record, log }))
}

/// Invocations with their logs as they end (server-sent events, one JSON object each).
#[utoipa::path(get, path = "/v1/tenants/{tenant}/logs", tag = "invocations", params(("tenant" = String, Path), Filter),
    responses((status = 200, body = String, content_type = "text/event-stream")))]
pub(super) async fn logs(
    State(door): State<Door>,
    Tenant(scope): Tenant,
    Query(filter): Query<Filter>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let stream = Tail { door, scope, filter, seen: HashSet::new(), waiting: VecDeque::new(), first: true };
    let events = futures_util::stream::unfold(stream, |mut tail| async move {
        let detail = tail.next().await?;
        let event = Event::default().id(detail.record.id.clone()).json_data(&detail).unwrap_or_default();
        Some((Ok(event), tail))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

struct Tail {
    door: Door,
    scope: TenantScope,
    filter: Filter,
    /// Ids of the last look. Invocations end in another order than they began in, which is that of their ids.
    seen: HashSet<String>,
    waiting: VecDeque<Detail>,
    first: bool,
}

impl Tail {
    async fn next(&mut self) -> Option<Detail> {
        loop {
            if let Some(detail) = self.waiting.pop_front() {
                return Some(detail);
            }
            let follow = self.filter.follow.unwrap_or(true);
            if !self.first && !follow {
                return None;
            }
            if !self.first {
                // A stream that nobody ends would hold up a node that stops.
                self.door.stopping.run_until_cancelled(tokio::time::sleep(LOG_POLL)).await?;
            }
            self.first = false;
            if let Err(error) = self.look().await {
                // A tenant that is gone ends its stream; anything else may pass.
                if error.code() == "not_found" {
                    return None;
                }
                tracing::debug!(%error, "a log stream could not look for new invocations");
            }
        }
    }

    async fn look(&mut self) -> Result<()> {
        self.door.invoker.tally().flush().await;
        let mut runs = Runs::default();
        loop {
            let mut effects = self.door.shard.begin(&self.scope);
            let looked = latest(&mut effects, &self.seen, self.filter.plugin.as_deref()).await;
            // Once more if something was committed between the list and a log: nobody has been shown anything yet.
            if let Some(((seen, new), _)) = self.door.shard.attempt(effects, looked).await? {
                self.seen = seen;
                self.waiting.extend(new);
                return Ok(());
            }
            runs.again(&self.door.shard, &self.scope).await?;
        }
    }
}

/// The ids of the latest invocations, and those of them that were not seen before, in the order in which they began.
async fn latest(
    effects: &mut Effects,
    seen: &HashSet<String>,
    plugin: Option<&str>,
) -> Result<(HashSet<String>, Vec<Detail>)> {
    let (records, _) = invocations::list(effects, None, LOOK).await?;
    let ids = records.iter().map(|record| record.id.clone()).collect();
    let mut new = Vec::new();
    for record in records.into_iter().rev().filter(|record| !seen.contains(&record.id)) {
        if plugin.is_none_or(|plugin| *plugin == *record.plugin) {
            let log = invocations::log(effects, &record.id).await?;
            new.push(Detail { record, log });
        }
    }
    Ok((ids, new))
}
