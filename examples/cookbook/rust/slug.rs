// slug.rs
use std::{slice, str};

#[no_mangle]
pub extern "C" fn alloc(size: usize) -> *mut u8 {
    Box::leak(vec![0; size].into_boxed_slice()).as_mut_ptr()
}

#[no_mangle]
pub unsafe extern "C" fn dealloc(at: *mut u8, size: usize) {
    drop(Box::from_raw(slice::from_raw_parts_mut(at, size)))
}

#[no_mangle]
pub unsafe extern "C" fn slug(at: *const u8, size: usize, most: u32) -> u64 {
    assert!(most > 0, "a slug has at least one word, not {most}");
    let text = str::from_utf8(slice::from_raw_parts(at, size)).expect("the text is UTF-8");
    let words: Vec<_> = text.split_whitespace().take(most as usize).map(str::to_lowercase).collect();
    let slug = Box::leak(words.join("-").into_bytes().into_boxed_slice());
    (slug.as_ptr() as u64) << 32 | slug.len() as u64
}
