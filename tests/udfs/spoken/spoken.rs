// Functions that succeed or fail with words, exported from Rust, for wasm32-wasi.
#[no_mangle]
pub extern "C" fn collatz(mut n: i64) -> i64 {
    let mut steps = 0;
    while n > 1 {
        n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
        steps += 1;
    }
    steps
}

#[no_mangle]
pub extern "C" fn fail(n: i64) -> i64 {
    assert!(n == 0, "the value is {n}");
    n
}
