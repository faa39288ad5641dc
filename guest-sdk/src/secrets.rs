//! Secrets of the tenant that the manifest names.

use crate::{Result, host};

/// A secret's bytes. Fails with [`Error::Denied`](crate::Error::Denied) if the manifest does not name it, and with
/// [`Error::NotFound`](crate::Error::NotFound) if the tenant has not set it.
pub fn get(name: &str) -> Result<Vec<u8>> {
    host::secret_get(name)
}

/// A secret as text; [`Error::Reject`](crate::Error::Reject) if it is not UTF-8.
pub fn get_string(name: &str) -> Result<String> {
    Ok(String::from_utf8(get(name)?)?)
}
