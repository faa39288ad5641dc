//! A stand-in until the service is merged.

use crate::effects::Effects;
use crate::kernel::error::{Error, Result};

#[derive(Default)]
pub struct Flags;

pub struct Evaluation {
    pub value: Option<serde_json::Value>,
    pub variant: Option<String>,
    pub reason: String,
}

impl Flags {
    pub async fn evaluate(&self, _effects: &mut Effects, _flag: &str, _context: serde_json::Value) -> Result<Evaluation> {
        Err(Error::unavailable("unavailable", "stand-in"))
    }
}
