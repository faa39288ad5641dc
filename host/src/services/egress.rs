//! A stand-in until the service is merged.

use std::time::Duration;

use bytes::Bytes;

use crate::kernel::error::{Error, Result};
use crate::kernel::tenant::TenantScope;

#[derive(Default)]
pub struct Egress;

pub struct Request {
    pub method: String,
    pub url: String,
    pub headers: Vec<(String, Bytes)>,
    pub body: Bytes,
    pub timeout: Duration,
}

pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, Bytes)>,
    pub body: Bytes,
}

impl Egress {
    pub async fn send(&self, _scope: &TenantScope, _allowed: &[String], _request: Request) -> Result<Response> {
        Err(Error::unavailable("unavailable", "stand-in"))
    }
}
