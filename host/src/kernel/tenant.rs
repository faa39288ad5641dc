//! Who a piece of work is for. Nothing that touches tenant data can be called without a
//! [`TenantScope`], and few places can make one.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A tenant's internal id: never reused, never shown to people, the first part of every key.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

impl TenantId {
    /// A new id, for tenant creation.
    pub(crate) fn new() -> Self {
        Self(crate::kernel::id::new().into())
    }

    /// An id as a database row has it.
    pub(crate) fn from_row(id: &str) -> Self {
        Self(id.into())
    }

    /// The id as it stands in rows.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The limits and quotas that a tenant has bought. Each number's default is the plan `free`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    /// The plan's name.
    pub name: String,
    /// Requests a second that a tenant's data plane may sustain.
    pub requests_per_second: u32,
    /// Requests that may come at once after a quiet time.
    pub request_burst: u32,
    /// Invocations of one tenant that run at the same time on a node.
    pub concurrency: u32,
    /// Bytes of a request's body.
    pub request_body_bytes: u64,
    /// Bytes of a response's body.
    pub response_body_bytes: u64,
    /// Bytes of keys and values that a tenant may store.
    pub storage_bytes: u64,
    /// Bytes of an uploaded component.
    pub component_bytes: u64,
    /// Seconds of processor time an hour that compiling a tenant's uploads may take on a node.
    pub compile_cpu_seconds_per_hour: u32,
    /// Versions kept per plugin.
    pub versions_per_plugin: u32,
    /// Plugins of a tenant.
    pub plugins: u32,
    /// Bytes of linear memory of an invocation, over all memories.
    pub memory_bytes: u64,
    /// Milliseconds that an invocation may take, all runs counted.
    pub timeout_ms: u64,
    /// Units of fuel (about one WebAssembly instruction each) that one run may burn.
    pub fuel: u64,
    /// Host calls of one run.
    pub host_calls: u32,
    /// Bytes that one run may hand over in its host calls, all together.
    pub host_call_bytes: u64,
    /// Outgoing HTTP requests of one invocation.
    pub outgoing_calls: u32,
    /// Bytes of log that an invocation keeps.
    pub log_bytes: u32,
    /// Milliseconds that invocation records and logs are kept.
    pub retention_ms: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            name: "free".into(),
            requests_per_second: 100,
            request_burst: 1_000,
            concurrency: 64,
            request_body_bytes: 1 << 20,
            response_body_bytes: 4 << 20,
            storage_bytes: 1 << 30,
            component_bytes: 8 << 20,
            compile_cpu_seconds_per_hour: 120,
            versions_per_plugin: 100,
            plugins: 100,
            memory_bytes: 64 << 20,
            timeout_ms: 2_000,
            // Two seconds of a tight loop on a slow core burn about 2 * 10^9.
            fuel: 4_000_000_000,
            host_calls: 100_000,
            // As much as its memory holds: more than an honest run stages, logs and sends.
            host_call_bytes: 64 << 20,
            outgoing_calls: 50,
            log_bytes: 64 << 10,
            retention_ms: 7 * 86_400_000,
        }
    }
}

/// Proof that a caller acts for one tenant, with that tenant's plan. It cannot be forged by guests
/// or requests: only authentication, a task that picked up a row, and tenant creation mint one.
#[derive(Clone)]
pub struct TenantScope(Arc<Inner>);

struct Inner {
    id: TenantId,
    name: String,
    plan: Arc<Plan>,
}

impl TenantScope {
    /// Make a scope. The shape test lists the few files that may call this.
    pub(crate) fn mint(id: TenantId, name: String, plan: Arc<Plan>) -> Self {
        Self(Arc::new(Inner { id, name, plan }))
    }

    /// The internal id.
    pub fn id(&self) -> &TenantId {
        &self.0.id
    }

    /// The name that people use.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What the tenant has bought.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.0.plan
    }
}

impl fmt::Debug for TenantScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantScope({:?})", self.0.id)
    }
}
