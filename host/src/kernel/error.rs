//! The one error of the host: what the caller can do next, and what may be shown to a stranger.
//!
//! `message` never carries an internal path, statement or another tenant's name; `source` does, and
//! goes to the log only. Each edge renders it once: `gateway/respond.rs` for HTTP,
//! `capabilities/error.rs` for guests, `cli.rs` for exit codes.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Correct the request; the same one never succeeds.
    Invalid,
    /// Present a valid credential.
    Unauthenticated,
    /// Ask somebody for the right to do this.
    Denied,
    /// Look elsewhere: no such thing, or none that this caller may know of.
    NotFound,
    /// Read again and decide anew.
    Conflict,
    /// Slow down.
    Limited,
    /// Buy more, or delete something.
    Exhausted,
    /// Try again later; nothing is wrong with the request.
    Unavailable,
    /// Repair the plugin: it trapped, failed, or ran out of time.
    Failed,
    /// Nothing; the fault is ours and is in the log.
    Internal,
}

/// An error with a stable code, a public message and a private source. Clones are for others who get the same answer.
#[derive(Clone)]
pub struct Error {
    kind: Kind,
    code: &'static str,
    message: Cow<'static, str>,
    rule: Option<&'static str>,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of this kind. `code` is stable and machine-readable; `message` says what to do.
    pub fn new(kind: Kind, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, code, message: message.into(), rule: None, retry_after: None, source: None }
    }

    /// The request is malformed or out of bounds.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Invalid, "bad_request", message)
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::NotFound, "not_found", message)
    }

    /// A dependency does not answer, or the host is too busy.
    pub fn unavailable(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Unavailable, code, message).retry_after(Duration::from_secs(1))
    }

    /// A fault of the host; `source` goes to the log, never to the caller.
    pub fn internal(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(Kind::Internal, "internal", "the server failed; the operator's log has the cause").source(source)
    }

    /// Name the bound that was broken, for programs.
    #[must_use]
    pub fn rule(mut self, rule: &'static str) -> Self {
        self.rule = Some(rule);
        self
    }

    /// Say when it is worth trying again.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Keep the cause for the log.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into().into());
        self
    }

    /// What the caller does next.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// What a stranger may read.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The bound that was broken, if it has a name.
    pub fn broken_rule(&self) -> Option<&'static str> {
        self.rule
    }

    /// How long to wait before the next try, if that is known.
    pub fn after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Whether the same request may succeed later without a change.
    pub fn retryable(&self) -> bool {
        match self.kind {
            Kind::Limited | Kind::Unavailable | Kind::Conflict => true,
            Kind::Invalid
            | Kind::Unauthenticated
            | Kind::Denied
            | Kind::NotFound
            | Kind::Exhausted
            | Kind::Failed
            | Kind::Internal => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}: {}", self.kind, self.code, self.message)?;
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}
