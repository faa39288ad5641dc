//! Lists by keyset: `?limit=&cursor=`, answered as `{"data":[…],"next":cursor|null}`.

use axum::Json;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::gateway::Door;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::secret::Master;

/// Items of a page unless the caller says otherwise.
const USUAL: usize = 100;
/// Items of a page at most: one answer stays below a few megabytes.
const MOST: usize = 1_000;
/// Bytes of the cursor's signature; a forged cursor gains nothing but a list from another place.
const SIGNATURE_BYTES: usize = 12;

/// What a list is asked for.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Items at most; 100 if not given, 1,000 at most.
    pub limit: Option<usize>,
    /// `next` of the page before.
    pub cursor: Option<String>,
}

/// A page of a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct List<T> {
    /// The items.
    pub data: Vec<T>,
    /// The cursor of the next page; null at the end.
    pub next: Option<String>,
}

impl<T: Serialize> IntoResponse for List<T> {
    fn into_response(self) -> Response {
        Json(self).into_response()
    }
}

impl Page {
    /// Items to answer.
    pub(super) fn limit(&self) -> Result<usize> {
        let limit = self.limit.unwrap_or(USUAL);
        if (1..=MOST).contains(&limit) { Ok(limit) } else { Err(Error::invalid(format!("limit is 1 to {MOST}"))) }
    }

    /// Where the page before ended, on this list. `cursor` comes from the caller.
    pub(super) fn after(&self, door: &Door, list: &str) -> Result<Option<Vec<u8>>> {
        self.cursor.as_deref().map(|cursor| open(&door.master, list, cursor)).transpose()
    }

    /// The same as text.
    pub(super) fn after_text(&self, door: &Door, list: &str) -> Result<Option<String>> {
        Ok(self.after(door, list)?.map(|after| String::from_utf8_lossy(&after).into_owned()))
    }
}

/// The cursor of what comes after `last`.
pub(super) fn next(door: &Door, list: &str, last: Option<&[u8]>, more: bool) -> Option<String> {
    let last = last.filter(|_| more)?;
    Some(cursor(&door.master, list, last))
}

pub(crate) fn cursor(master: &Master, list: &str, last: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode([&sign(master, list, last), last].concat())
}

/// What a cursor of this list says. It comes from a stranger.
pub(crate) fn open(master: &Master, list: &str, cursor: &str) -> Result<Vec<u8>> {
    let bad = || {
        Error::new(Kind::Invalid, "cursor_invalid", "the cursor is not one that this list gave; start without a cursor")
    };
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| bad())?;
    let (signature, after) = bytes.split_at_checked(SIGNATURE_BYTES).ok_or_else(bad)?;
    if signature == sign(master, list, after) { Ok(after.to_vec()) } else { Err(bad()) }
}

fn sign(master: &Master, list: &str, after: &[u8]) -> Vec<u8> {
    let signed = [list.as_bytes(), &[0], after].concat();
    master.digest("cursor", None, &signed)[..SIGNATURE_BYTES].to_vec()
}
