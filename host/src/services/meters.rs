//! A stand-in until the service is merged.

use crate::effects::Effects;
use crate::kernel::error::{Error, Result};

pub async fn record(
    _effects: &mut Effects,
    _meter: &str,
    _value: &str,
    _dimensions: &[(String, String)],
    _source: &str,
    _id: &str,
) -> Result<()> {
    Err(Error::unavailable("unavailable", "stand-in"))
}
