//! The component's global allocator: first the linear memory that the instance was created with, then more.
//!
//! std's own allocator never uses the space between the end of the program's data and the end of its first pages: it
//! grows the memory in every fresh instance, which the host pays for with page protection changes and page faults per
//! call. `chalet build` links with a small stack and some initial heap, so that a usual call never grows at all.
#![expect(unsafe_code, reason = "an allocator hands out raw memory")]

use core::alloc::{GlobalAlloc, Layout};
use core::arch::wasm32::{memory_grow, memory_size};
use core::cell::{Cell, UnsafeCell};

use dlmalloc::{Allocator, Dlmalloc};

const PAGE: usize = 65_536;

/// The largest alignment that anything placed at the start of a segment may want.
const ALIGNMENT: usize = 16;

#[global_allocator]
static HEAP: Heap = Heap(UnsafeCell::new(Dlmalloc::new_with_allocator(Memory { initial: Cell::new(true) })));

unsafe extern "C" {
    /// The linker's symbol for the first byte after the program's data and stack.
    static __heap_base: u8;
}

/// Where dlmalloc gets its segments from.
struct Memory {
    /// True until the instance's initial memory has been handed out.
    initial: Cell<bool>,
}

// SAFETY: a component has one thread, and `alloc` returns memory that nothing else uses: once the space behind the
// program's data, and after that pages that memory.grow has just added.
unsafe impl Allocator for Memory {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        if self.initial.replace(false) {
            let base = (&raw const __heap_base).addr().next_multiple_of(ALIGNMENT);
            let end = memory_size(0).saturating_mul(PAGE);
            if end.saturating_sub(base) >= size {
                return (core::ptr::with_exposed_provenance_mut(base), end - base, 0);
            }
        }
        let pages = size.div_ceil(PAGE);
        let previous = memory_grow(0, pages);
        if previous == usize::MAX {
            return (core::ptr::null_mut(), 0, 0);
        }
        let base = previous * PAGE;
        // The last page of the address space must not reach around to address 0.
        let length = (pages * PAGE).min(usize::MAX - base - ALIGNMENT + 1);
        (core::ptr::with_exposed_provenance_mut(base), length, 0)
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        core::ptr::null_mut()
    }

    fn free_part(&self, _: *mut u8, _: usize, _: usize) -> bool {
        false
    }

    fn free(&self, _: *mut u8, _: usize) -> bool {
        false
    }

    fn can_release_part(&self, _: u32) -> bool {
        false
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        PAGE
    }
}

struct Heap(UnsafeCell<Dlmalloc<Memory>>);

// SAFETY: a component has one thread.
unsafe impl Sync for Heap {}

// SAFETY: dlmalloc keeps the contract; there is one thread and no call of it within another, so the exclusive
// references do not overlap.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe { (*self.0.get()).malloc(layout.size(), layout.align()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        unsafe { (*self.0.get()).calloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { (*self.0.get()).free(memory, layout.size(), layout.align()) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        unsafe { (*self.0.get()).realloc(memory, layout.size(), layout.align(), size) }
    }
}
