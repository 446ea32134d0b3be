// A library that prints, and panics on a bad index.

#[no_mangle]
pub extern "C" fn item(at: i64) -> i64 {
    println!("looking at {at}");
    [1, 2, 3][at as usize]
}
