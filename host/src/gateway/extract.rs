//! The parts of a request's target, refused as everything else is: what axum's own extractors refuse is plain text.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::kernel::error::{Error, Result};

/// The variable segments of the path, decoded.
pub(crate) struct Path<T>(pub(crate) T);

/// The query, decoded.
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let axum::extract::Path(segments) = axum::extract::Path::from_request_parts(parts, state)
            .await
            .map_err(|refused| Error::invalid(format!("the path cannot be read: {}", refused.body_text())))?;
        Ok(Self(segments))
    }
}

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let axum::extract::Query(query) = axum::extract::Query::try_from_uri(&parts.uri)
            .map_err(|refused| Error::invalid(format!("the query cannot be read: {}", refused.body_text())))?;
        Ok(Self(query))
    }
}
