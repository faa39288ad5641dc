//! Host calls below the bindings, with pointers, lengths and values that no binding would pass.
//!
//! The canonical ABI makes each of them a trap; the host itself must never read outside the guest's memory.

use chalet_sdk::Result;
use chalet_sdk::http::Response;

#[link(wasm_import_module = "chalet:platform/log@0.1.0")]
unsafe extern "C" {
    #[link_name = "write"]
    fn log_write(level: i32, message: usize, length: usize);
}

/// Past the end of a memory of 64 MiB.
const OUTSIDE: usize = 0xffff_0000;

/// One of `raw-pointer`, `raw-length`, `raw-wrap`, `raw-utf8` and `raw-enum`.
pub(crate) fn misbehave(what: &str) -> Result<Response> {
    let text = b"ab\xff\xfecd";
    let here = text.as_ptr().addr();
    let (level, message, length) = match what {
        "raw-pointer" => (2, OUTSIDE, 16),
        "raw-length" => (2, here, 0x7fff_ffff),
        "raw-wrap" => (2, usize::MAX - 3, 16),
        "raw-utf8" => (2, here, text.len()),
        "raw-enum" => (77, here, 2),
        _ => return Ok(Response::not_found()),
    };
    // SAFETY: the call reads memory by the host's hand only, which checks every bound: that is what is tested.
    unsafe { log_write(level, message, length) };
    Ok(Response::text("the host took it"))
}
