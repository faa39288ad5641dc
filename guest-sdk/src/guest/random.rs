//! Randomness for the crate `getrandom`, which other crates use to seed hash maps and make ids.
//!
//! getrandom 0.3 and 0.4 call the first function when compiled with `--cfg getrandom_backend="custom"`, which
//! `chalet build` passes; 0.2 calls the second when its feature `custom` is on. They are exported, and so keep the import of context, whether somebody calls them or not:
//! therefore this module is a feature.
#![expect(unsafe_code, reason = "these are the symbols and raw buffers that getrandom defines")]

use core::num::NonZeroU32;

/// # Safety
/// `buffer` is valid for writes of `length` bytes.
// getrandom's error is a non-zero 32-bit integer in a struct of its own; a result of it without a value has the layout
// of one 32-bit integer, 0 for ok.
#[unsafe(no_mangle)]
unsafe extern "Rust" fn __getrandom_v03_custom(buffer: *mut u8, length: usize) -> Result<(), NonZeroU32> {
    unsafe { fill(buffer, length) };
    Ok(())
}

/// # Safety
/// `buffer` is valid for writes of `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "Rust" fn __getrandom_custom(buffer: *mut u8, length: usize) -> u32 {
    unsafe { fill(buffer, length) };
    0
}

/// # Safety
/// `buffer` is valid for writes of `length` bytes.
unsafe fn fill(buffer: *mut u8, length: usize) {
    // The buffer may be uninitialised, of which no reference may be made.
    unsafe {
        buffer.write_bytes(0, length);
        crate::context::fill_random(core::slice::from_raw_parts_mut(buffer, length));
    }
}
