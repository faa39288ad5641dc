//! Outgoing HTTP for guests: to hosts that the manifest names, at addresses of the public internet.
//!
//! A URL is read once, and the same reading is matched, resolved, connected to and named in TLS and in
//! `Host`. A name is resolved once, as the whole name that it is; if any of its addresses is not public nothing is sent, and the
//! connection goes to the addresses that were looked at. Redirects are answers, proxies and their
//! environment variables are not known here, bodies are passed on as they came. Every size and time has
//! a bound. What a grant allows is this file's question; who has the grant is the caller's.

mod address;
mod client;
mod target;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::address::{Network, public};
use self::target::{Grant, Target};
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::{TenantId, TenantScope};
use crate::kernel::trace::{self, Span, TRACEPARENT};

/// The longest that a request may take, whatever the guest asks for.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request's body: what a guest's answer may have, too.
pub const REQUEST_BYTES: usize = 4 << 20;
/// Bytes of a response's body: it is copied into the guest's memory whole.
pub const RESPONSE_BYTES: usize = 4 << 20;
/// Bytes of a URL; longer ones are refused by most servers as well.
pub const URL_BYTES: usize = 8 << 10;
/// Headers of a request or a response.
pub const HEADERS: usize = 100;
/// Bytes of all headers of a request or a response.
pub const HEADER_BYTES: usize = 64 << 10;
/// Addresses of a name: more than that is no service but an attack on who has to look at them.
const ADDRESSES: usize = 64;
/// Look-ups at a time, all tenants: each holds a thread until the resolver answers.
const LOOKUPS: usize = 64;
/// Look-ups of one tenant at a time, so that names that never answer block their owner only.
const TENANT_LOOKUPS: usize = 4;

/// What the operator says about outgoing requests.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Allow `http` beside `https`.
    pub http: bool,
    /// `host:port` on this machine that may be reached, also over `http`, if a plugin is granted it. For
    /// development and tests: only loopback addresses are connected to.
    pub local: Vec<String>,
    /// Hosts, or `host:port`, that are told which trace a request is a part of: where this or another node of the
    /// operator's answers, so that plugins that call each other make one trace. Others are not told.
    pub traced: Vec<String>,
    /// Public networks that are refused as well, such as the operator's own services.
    pub deny: Vec<String>,
    /// A PEM file with roots to trust beside the public ones.
    pub ca_file: Option<PathBuf>,
}

/// A request of a guest. Every field comes from the guest.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, `HEAD`, `POST`, `PUT`, `PATCH`, `DELETE` or `OPTIONS`.
    pub method: String,
    /// Absolute.
    pub url: String,
    /// Names and values.
    pub headers: Vec<(String, Bytes)>,
    /// The body; may be empty.
    pub body: Bytes,
    /// The longest that the whole of it may take; at most [`TIMEOUT`].
    pub timeout: Duration,
}

/// What came back, whatever its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// Names in lower case, and values; without those that concern the connection only.
    pub headers: Vec<(String, Bytes)>,
    /// The body as it came; no encoding is undone.
    pub body: Bytes,
}

type Resolve = Arc<dyn Fn(String, u16) -> BoxFuture<'static, std::io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// The way out. Clones share it.
#[derive(Clone)]
pub struct Egress(Arc<Inner>);

struct Inner {
    http: bool,
    local: Vec<Grant>,
    traced: Vec<Grant>,
    deny: Vec<Network>,
    tls: Arc<rustls::ClientConfig>,
    resolve: Resolve,
    lookups: Arc<Semaphore>,
    looking: Mutex<HashMap<TenantId, usize>>,
}

impl Egress {
    /// The way out that the operator allows.
    pub fn new(config: &Config) -> Result<Self> {
        let resolve: Resolve = Arc::new(|host, port| {
            Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.take(ADDRESSES + 1).collect()) })
        });
        Self::with_resolver(config, resolve)
    }

    fn with_resolver(config: &Config, resolve: Resolve) -> Result<Self> {
        let local = config.local.iter().map(|text| Grant::parse(text)).collect::<Result<Vec<_>>>()?;
        if local.iter().any(|grant| grant.port.is_none()) {
            return Err(Error::invalid("egress.local lists host:port, such as localhost:9000"));
        }
        let traced = config.traced.iter().map(|text| Grant::parse(text)).collect::<Result<Vec<_>>>()?;
        let network = |text: &String| {
            Network::parse(text)
                .ok_or_else(|| Error::invalid("egress.deny lists networks, such as 203.0.113.0/24 or 2001:db8::/32"))
        };
        Ok(Self(Arc::new(Inner {
            http: config.http,
            local,
            traced,
            deny: config.deny.iter().map(network).collect::<Result<_>>()?,
            tls: Arc::new(tls(config)?),
            resolve,
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
            looking: Mutex::default(),
        })))
    }

    /// Whether a manifest may name this in its egress grants: a host, or `host:port`.
    pub fn check_grant(text: &str) -> Result<()> {
        Grant::parse(text).map(|_| ())
    }

    /// Send a request to a host that `allowed` names, and wait for all of the answer. Dropping the future
    /// closes the connection.
    pub async fn send(&self, scope: &TenantScope, allowed: &[String], request: Request) -> Result<Response> {
        let span = trace::outgoing(&request.method);
        let sent = self.send_traced(scope, allowed, request, &span).await;
        match &sent {
            Ok(response) => {
                span.set("http.response.status_code", response.status);
                if response.status >= 400 {
                    span.fail(&response.status.to_string());
                }
            }
            Err(error) => span.fail(error.code()),
        }
        sent
    }

    async fn send_traced(
        &self,
        scope: &TenantScope,
        allowed: &[String],
        request: Request,
        span: &Span,
    ) -> Result<Response> {
        let deadline = Instant::now() + request.timeout.min(TIMEOUT);
        let target = Target::parse(&request.url)?;
        let local = self.0.local.iter().any(|grant| grant.names(&target));
        if target.scheme == "http" && !self.0.http && !local {
            return Err(denied("only https is allowed by the operator; use an https URL"));
        }
        // A grant in an approved manifest was checked when it was stored; one that is not readable grants nothing.
        if !allowed.iter().filter_map(|text| Grant::parse(text).ok()).any(|grant| grant.names(&target)) {
            return Err(denied("the manifest does not grant this host and port; add it to [grants] egress"));
        }
        // Only now: a host that is not granted is any text that the guest has.
        span.set("server.address", &target.host[..]);
        span.set("server.port", target.port);
        if !local && target.special_use() {
            return Err(not_public());
        }
        if !local && target.other_protocol() {
            return Err(denied(
                "the port is one of another protocol than HTTP; use the port where the host answers HTTP",
            ));
        }
        let mut message = client::message(&target, &request)?;
        // What the guest says itself stands.
        if self.0.traced.iter().any(|grant| grant.names(&target))
            && let Some(parent) = span.traceparent().and_then(|parent| http::HeaderValue::try_from(parent).ok())
        {
            message.headers_mut().entry(TRACEPARENT).or_insert(parent);
        }
        let work = async {
            let addresses = self.addresses(scope, &target, local).await?;
            client::exchange(&target, &addresses, self.0.tls.clone(), message).await
        };
        tokio::time::timeout_at(deadline, work).await.unwrap_or_else(|_| {
            Err(Error::unavailable(
                "upstream_timeout",
                "the host did not answer in time; try again, or allow more time",
            ))
        })
    }

    /// The addresses of the target, all of which may be connected to.
    async fn addresses(&self, scope: &TenantScope, target: &Target, local: bool) -> Result<Vec<SocketAddr>> {
        let addresses = match target.address() {
            Some(address) => vec![SocketAddr::new(address, target.port)],
            None => self.look_up(scope, target, local).await?,
        };
        if addresses.is_empty() {
            return Err(unresolved());
        }
        let allowed = |address: &SocketAddr| {
            let ip = address.ip();
            if local { ip.is_loopback() } else { public(ip) && !self.0.deny.iter().any(|network| network.contains(ip)) }
        };
        // A name with a public and a private address is an attack, or a mistake that the next look-up turns into one.
        if addresses.len() > ADDRESSES || !addresses.iter().all(allowed) {
            return Err(not_public());
        }
        // The port is the URL's, whatever a resolver says.
        Ok(addresses.into_iter().map(|address| SocketAddr::new(address.ip(), target.port)).collect())
    }

    async fn look_up(&self, scope: &TenantScope, target: &Target, local: bool) -> Result<Vec<SocketAddr>> {
        let turn = self.turn(scope.id())?;
        let permit = self.0.lookups.clone().acquire_owned().await.map_err(Error::internal)?;
        // The final dot keeps the resolver from its search list and its own list of hosts, which name what is near; that is
        // what the operator's own entries are for.
        let name = if local { target.host.clone() } else { format!("{}.", target.host) };
        let lookup = (self.0.resolve)(name, target.port);
        // The resolver's thread goes on when the caller gives up: its permits stay with it.
        let task = tokio::spawn(async move {
            let addresses = lookup.await;
            drop((turn, permit));
            addresses
        });
        task.await.map_err(Error::internal)?.map_err(|error| unresolved().source(error))
    }

    fn turn(&self, tenant: &TenantId) -> Result<Turn> {
        let mut looking = self.0.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let count = looking.entry(tenant.clone()).or_default();
        if *count >= TENANT_LOOKUPS {
            return Err(Error::unavailable(
                "upstream_error",
                format!("{TENANT_LOOKUPS} names of this tenant are being looked up already; try again"),
            ));
        }
        *count += 1;
        Ok(Turn { egress: self.clone(), tenant: tenant.clone() })
    }
}

/// One look-up of a tenant.
struct Turn {
    egress: Egress,
    tenant: TenantId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut looking = self.egress.0.looking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = looking.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                looking.remove(&self.tenant);
            }
        }
    }
}

fn tls(config: &Config) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = &config.ca_file {
        let unreadable = |error: &dyn std::fmt::Display| {
            Error::invalid(format!("egress.ca_file is not a readable PEM file of certificates: {error}"))
        };
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))? {
            roots.add(certificate.map_err(|error| unreadable(&error))?).map_err(|error| unreadable(&error))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::internal)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Tickets would let a host link the requests of different tenants.
    tls.resumption = rustls::client::Resumption::disabled();
    Ok(tls)
}

fn denied(message: &'static str) -> Error {
    Error::new(Kind::Denied, "egress_denied", message)
}

fn not_public() -> Error {
    denied("the host is not on the public internet, and only that is reachable from here; use a public host")
}

fn unresolved() -> Error {
    Error::unavailable("upstream_error", "the host's name has no address; check it, or try again")
}

#[cfg(test)]
mod tests;
