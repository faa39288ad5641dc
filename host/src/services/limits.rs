//! A stand-in until the service is merged.

use crate::effects::Effects;
use crate::kernel::error::{Error, Result};

#[derive(Default)]
pub struct Limits;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub limit: u64,
    pub remaining: u64,
    pub retry_after_ms: u64,
    pub reset_after_ms: u64,
}

impl Limits {
    pub async fn check(&self, _effects: &mut Effects, _limit: &str, _key: &str, _cost: u32) -> Result<Decision> {
        Err(Error::unavailable("unavailable", "stand-in"))
    }
}
