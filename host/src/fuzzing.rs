//! What the fuzz targets of `tests/fuzz` reach and nobody else may rely on.

use crate::control;
use crate::kernel::error::Result;
use crate::kernel::secret::Master;
use crate::services;
use crate::services::flags::{Context, Evaluation, Failure, Flags};
use crate::services::plugins::Routes;
use crate::services::plugins::manifest::Manifest;

/// The routes of a manifest.
pub fn routes(manifest: &Manifest) -> Routes {
    Routes::new(manifest)
}

/// Where a page of a collection begins.
pub fn kv_cursor(cursor: &str, prefix: &str) -> Result<Vec<u8>> {
    services::kv::last_of(cursor, prefix)
}

/// Where a page of the control API's list begins.
pub fn list_cursor(master: &Master, list: &str, cursor: &str) -> Result<Vec<u8>> {
    control::page::open(master, list, cursor)
}

/// The cursor that [`list_cursor`] opens.
pub fn make_list_cursor(master: &Master, list: &str, last: &[u8]) -> String {
    control::page::cursor(master, list, last)
}

/// What each flag of a document answers in a context.
pub fn evaluate(document: &str, context: &Context) -> Result<Vec<std::result::Result<Evaluation, Failure>>> {
    let flags = Flags::new(Some(document))?.defaults();
    Ok(flags.names().map(|name| flags.evaluate(name, context, 0)).collect())
}
