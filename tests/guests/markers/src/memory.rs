//! The linear memory as it is, below the language.

use core::arch::wasm32::{memory_grow, memory_size};

/// Pages that are asked for before the look, so that memory is seen that nothing here has written yet.
const PAGES: usize = 32;
const PAGE: usize = 64 << 10;
/// Bytes that are shown or left out together.
const BLOCK: usize = 256;
/// Bytes that are shown at most: what an answer may have.
const SHOWN: usize = 3 << 20;

/// Every block of memory that holds anything but zeroes.
pub(crate) fn shown() -> Vec<u8> {
    let kept = memory_size(0) * PAGE;
    let grown = memory_grow(0, PAGES);
    let end = if grown == usize::MAX { kept } else { (grown + PAGES) * PAGE };
    // Before anything is written to what was just asked for, by the answer itself above all.
    let blocks =
        (1..end / BLOCK).filter(|block| (0..BLOCK / 8).any(|word| read(block * BLOCK + word * 8) != 0)).count();
    let mut shown = Vec::with_capacity((blocks * BLOCK).min(SHOWN));
    for block in 1..end / BLOCK {
        let words = (0..BLOCK / 8).map(|word| read(block * BLOCK + word * 8));
        if shown.len() < SHOWN && words.clone().any(|word| word != 0) {
            shown.extend(words.flat_map(u64::to_le_bytes));
        }
    }
    shown
}

fn read(address: usize) -> u64 {
    let word = core::ptr::with_exposed_provenance::<u64>(address);
    // SAFETY: the address is aligned and within linear memory, which is never unmapped, and any bytes are a number. It is
    // volatile because the allocator's and other code's own bytes may be there.
    unsafe { word.read_volatile() }
}
