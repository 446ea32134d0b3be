//! Counts the words of a UTF-8 text that the caller has put into `text_buffer`.
#![no_std]

const TEXT_SIZE: usize = 32768;
static mut TEXT: [u8; TEXT_SIZE] = [0; TEXT_SIZE];

/// Where to put the text. The address is a constant of the module, the same in every instance.
#[no_mangle]
pub extern "C" fn text_buffer() -> *mut u8 {
    unsafe { TEXT.as_mut_ptr() }
}

/// Words as Unicode's white space separates them; -1 if the text is too long or not UTF-8.
#[no_mangle]
pub extern "C" fn words(length: usize) -> i64 {
    match unsafe { TEXT.get(..length) }.map(core::str::from_utf8) {
        Some(Ok(text)) => text.split_whitespace().count() as i64,
        _ => -1,
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}
