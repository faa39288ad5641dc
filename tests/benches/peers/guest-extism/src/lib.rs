//! Answers `hello` to Extism, as `tests/guests/hello` does to Chalet.

use extism_pdk::{FnResult, plugin_fn};

#[plugin_fn]
pub fn hello(_: ()) -> FnResult<&'static str> {
    Ok("hello")
}
