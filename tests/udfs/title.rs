//! A UDF for version 2 of the Scylla ABI in Rust: (text) -> text, each word with a capital letter.
//! Rust's own strings do the work, on top of the same allocator as the host's arguments.

use std::alloc::{alloc, dealloc, Layout};

#[no_mangle]
pub static _scylla_abi: u32 = 2;

/// Each piece begins with its size, because Rust wants to be told when it frees.
const HEAD: usize = 8;

#[no_mangle]
pub unsafe extern "C" fn _scylla_malloc(size: usize) -> *mut u8 {
    let piece = alloc(Layout::from_size_align_unchecked(size + HEAD, HEAD));
    *(piece as *mut usize) = size;
    piece.add(HEAD)
}

#[no_mangle]
pub unsafe extern "C" fn _scylla_free(at: *mut u8) {
    let piece = at.sub(HEAD);
    let size = *(piece as *mut usize);
    dealloc(piece, Layout::from_size_align_unchecked(size + HEAD, HEAD));
}

#[no_mangle]
pub unsafe extern "C" fn title(value: i64) -> i64 {
    let (size, at) = ((value >> 32) as usize, value as u32 as usize as *mut u8);
    let text = std::str::from_utf8_unchecked(std::slice::from_raw_parts(at, size));
    let mut result = String::with_capacity(size);
    let mut within = false;
    for letter in text.chars() {
        if within {
            result.push(letter);
        } else {
            result.extend(letter.to_uppercase());
        }
        within = letter.is_alphanumeric();
    }
    let out = _scylla_malloc(result.len());
    std::ptr::copy_nonoverlapping(result.as_ptr(), out, result.len());
    _scylla_free(at);
    (result.len() as i64) << 32 | out as usize as i64
}
