//! The functions of `funcs.wit`, and those of its worlds (`--cfg world="..."`). The canonical ABI is
//! written by hand: Debian has no wit-bindgen.

use std::alloc::{alloc, dealloc, realloc, Layout};
use std::mem::forget;

#[export_name = "cabi_realloc"]
pub unsafe extern "C" fn cabi_realloc(old: *mut u8, had: usize, align: usize, size: usize) -> *mut u8 {
    let at = if size == 0 {
        return align as *mut u8;
    } else if had == 0 {
        alloc(Layout::from_size_align_unchecked(size, align))
    } else {
        realloc(old, Layout::from_size_align_unchecked(had, align), size)
    };
    if at.is_null() {
        core::arch::wasm32::unreachable()
    }
    at
}

/// What a string or a list of bytes is in memory.
#[repr(C)]
pub struct Span(*const u8, usize);

static mut ANSWER: [u64; 4] = [0; 4];

unsafe fn answer<T>(value: T) -> *const T {
    let at = ANSWER.as_mut_ptr() as *mut T;
    at.write(value);
    at
}

fn give(bytes: Vec<u8>) -> Span {
    let bytes = bytes.into_boxed_slice();
    let span = Span(bytes.as_ptr(), bytes.len());
    forget(bytes);
    span
}

unsafe fn free(span: &Span) {
    if span.1 > 0 {
        dealloc(span.0 as *mut u8, Layout::from_size_align_unchecked(span.1, 1))
    }
}

/// What the host put into memory is the guest's own.
unsafe fn take(at: *mut u8, size: usize) -> Vec<u8> {
    Vec::from_raw_parts(if size == 0 { 1 as *mut u8 } else { at }, size, size)
}

unsafe fn text(at: *mut u8, size: usize) -> String {
    String::from_utf8_unchecked(take(at, size))
}

#[cfg(not(world = "asking"))]
pub mod funcs {
    use super::*;
    use std::slice::from_raw_parts;

    #[export_name = "demo:udf/funcs@0.1.0#add"]
    pub extern "C" fn add(a: i64, b: i64) -> i64 {
        a.wrapping_add(b)
    }

    #[export_name = "demo:udf/funcs@0.1.0#upper"]
    pub unsafe extern "C" fn upper(at: *mut u8, size: usize) -> *const Span {
        answer(give(text(at, size).to_uppercase().into_bytes()))
    }

    #[export_name = "cabi_post_demo:udf/funcs@0.1.0#upper"]
    pub unsafe extern "C" fn post_upper(given: &Span) {
        free(given)
    }

    #[export_name = "demo:udf/funcs@0.1.0#total"]
    pub unsafe extern "C" fn total(at: *mut i64, count: usize) -> i64 {
        if count == 0 {
            return 0;
        }
        let sum = from_raw_parts(at, count).iter().fold(0, |sum: i64, one| sum.wrapping_add(*one));
        dealloc(at as *mut u8, Layout::array::<i64>(count).unwrap_unchecked());
        sum
    }

    #[repr(C)]
    pub struct Place(f64, f64, Span);

    #[export_name = "demo:udf/funcs@0.1.0#move-by"]
    pub unsafe extern "C" fn move_by(x: f64, y: f64, at: *mut u8, size: usize, by: f64) -> *const Place {
        answer(Place(x + by, y + by, give(take(at, size))))
    }

    #[export_name = "cabi_post_demo:udf/funcs@0.1.0#move-by"]
    pub unsafe extern "C" fn post_move_by(given: &Place) {
        free(&given.2)
    }

    #[export_name = "demo:udf/funcs@0.1.0#area"]
    pub extern "C" fn area(case: u32, first: f64, second: f64) -> f64 {
        match case {
            0 => 3.0 * first * first,
            1 => first * second,
            _ => 0.0,
        }
    }

    #[repr(C)]
    pub struct Division(u32, u32, i64);
    #[repr(C)]
    pub struct NoDivision(u32, u32, Span);

    #[export_name = "demo:udf/funcs@0.1.0#divide"]
    pub unsafe extern "C" fn divide(a: i64, b: i64) -> *const u8 {
        match a.checked_div(b) {
            Some(quotient) => answer(Division(0, 0, quotient)) as *const u8,
            None => {
                let why = format!("{a} can't be divided by {b}");
                answer(NoDivision(1, 0, give(why.into_bytes()))) as *const u8
            }
        }
    }

    #[export_name = "cabi_post_demo:udf/funcs@0.1.0#divide"]
    pub unsafe extern "C" fn post_divide(given: &NoDivision) {
        if given.0 == 1 {
            free(&given.2)
        }
    }

    #[export_name = "demo:udf/funcs@0.1.0#successor"]
    pub unsafe extern "C" fn successor(some: u32, number: u32) -> *const (u32, u32) {
        match (some, number.checked_add(1)) {
            (1, Some(next)) => answer((1, next)),
            _ => answer((0, 0)),
        }
    }

    #[export_name = "demo:udf/funcs@0.1.0#next-color"]
    pub extern "C" fn next_color(after: u32) -> u32 {
        (after + 1) % 3
    }

    #[export_name = "demo:udf/funcs@0.1.0#other-rights"]
    pub extern "C" fn other_rights(than: u32) -> u32 {
        !than & 7
    }

    #[export_name = "demo:udf/funcs@0.1.0#backwards"]
    pub unsafe extern "C" fn backwards(at: *mut u8, size: usize) -> *const Span {
        let mut bytes = take(at, size);
        bytes.reverse();
        answer(give(bytes))
    }

    #[export_name = "cabi_post_demo:udf/funcs@0.1.0#backwards"]
    pub unsafe extern "C" fn post_backwards(given: &Span) {
        free(given)
    }

    #[export_name = "demo:udf/funcs@0.1.0#spin"]
    pub extern "C" fn spin(to: u64) -> u64 {
        let mut at = 0u64;
        while at < to {
            at = unsafe { core::ptr::read_volatile(&at) } + 1;
        }
        at
    }
}

/// An option of a string.
#[repr(C)]
pub struct Maybe(u32, Span);

#[cfg(world = "speaking")]
pub mod speaking {
    use super::*;

    #[export_name = "speak"]
    pub unsafe extern "C" fn speak(at: *mut u8, size: usize, name: *mut u8, length: usize) -> *const Maybe {
        println!("{}", text(at, size));
        answer(match std::env::var(text(name, length)) {
            Ok(value) => Maybe(1, give(value.into_bytes())),
            Err(_) => Maybe(0, Span(1 as *const u8, 0)),
        })
    }

    #[export_name = "cabi_post_speak"]
    pub unsafe extern "C" fn post_speak(given: &Maybe) {
        if given.0 == 1 {
            free(&given.1)
        }
    }
}

#[cfg(world = "asking")]
pub mod asking {
    use super::*;

    #[link(wasm_import_module = "demo:udf/store@0.1.0")]
    extern "C" {
        fn get(key: *const u8, size: usize, answer: *mut Maybe);
    }

    #[export_name = "look-up"]
    pub unsafe extern "C" fn look_up(at: *mut u8, size: usize) -> *const Span {
        let key = text(at, size);
        let mut found = Maybe(0, Span(1 as *const u8, 0));
        get(key.as_ptr(), key.len(), &mut found);
        let found = match found {
            Maybe(0, _) => format!("no {key}"),
            Maybe(_, Span(at, size)) => format!("{key} is {}", text(at as *mut u8, size)),
        };
        answer(give(found.into_bytes()))
    }

    #[export_name = "cabi_post_look-up"]
    pub unsafe extern "C" fn post_look_up(given: &Span) {
        free(given)
    }
}
