//! Incoming webhooks, whose signature the host has verified before the plugin sees them.

use serde::de::DeserializeOwned;

use crate::Result;
use crate::http::Headers;

/// One delivery of a provider. The host runs each delivery id once: a duplicate is answered from what the first left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub(crate) source: String,
    pub(crate) id: String,
    pub(crate) event_type: Option<String>,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
}

impl Delivery {
    /// A delivery, as a test makes one.
    pub fn new(source: impl Into<String>, id: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self { source: source.into(), id: id.into(), event_type: None, headers: Headers::default(), body: body.into() }
    }

    /// The same delivery with the provider's name of the event.
    pub fn with_event_type(mut self, event_type: impl Into<String>) -> Self {
        self.event_type = Some(event_type.into());
        self
    }

    /// The same delivery with one more header.
    pub fn with_header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.append(name, value);
        self
    }

    /// The source's name in the manifest.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The provider's own id of this delivery.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The provider's name of the event, where its headers or body have one in a known place.
    pub fn event_type(&self) -> Option<&str> {
        self.event_type.as_deref()
    }

    /// The headers as they came.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// A header's first value, if it has one that is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// The bytes as they came, over which the signature was verified.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The body read as JSON; [`Error::Reject`](crate::Error::Reject) if it is not a `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}
