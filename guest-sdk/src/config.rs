//! Settings of this plugin in this tenant that are no secrets.

use serde::de::DeserializeOwned;

use crate::{Result, host};

/// The setting's value, if it is set. Fails with [`Error::Denied`](crate::Error::Denied) if the manifest does not
/// name it.
pub fn get(name: &str) -> Result<Option<String>> {
    host::config_get(name)
}

/// The setting's value read as JSON; [`Error::Reject`](crate::Error::Reject) if it is not a `T`.
pub fn get_json<T: DeserializeOwned>(name: &str) -> Result<Option<T>> {
    get(name)?.map(|value| Ok(serde_json::from_str(&value)?)).transpose()
}
