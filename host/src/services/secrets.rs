//! A stand-in until the service is merged.

use crate::effects::Effects;
use crate::kernel::error::{Error, Result};

#[derive(Default)]
pub struct Secrets;

impl Secrets {
    pub async fn get(&self, _effects: &mut Effects, _name: &str) -> Result<Vec<u8>> {
        Err(Error::unavailable("unavailable", "stand-in"))
    }
}
