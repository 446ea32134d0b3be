// An Extism plugin in Rust with its standard library, for WASI: without Extism's kit, which is not
// needed for as little as this.
#[link(wasm_import_module = "extism:host/env")]
extern "C" {
    fn alloc(size: u64) -> u64;
    fn length(at: u64) -> u64;
    fn load_u8(at: u64) -> u32;
    fn store_u8(at: u64, byte: u32);
    fn input_offset() -> u64;
    fn output_set(at: u64, size: u64);
    fn error_set(at: u64);
    fn var_get(key: u64) -> u64;
    fn var_set(key: u64, value: u64);
}

fn put(data: &[u8]) -> u64 {
    unsafe {
        let at = alloc(data.len() as u64);
        for (place, byte) in (at..).zip(data) {
            store_u8(place, *byte as u32);
        }
        at
    }
}

fn get(at: u64) -> Vec<u8> {
    unsafe { (at..at + length(at)).map(|place| load_u8(place) as u8).collect() }
}

fn output(text: &str) {
    unsafe { output_set(put(text.as_bytes()), text.len() as u64) }
}

#[no_mangle]
pub extern "C" fn count_vowels() -> i32 {
    let text = match String::from_utf8(get(unsafe { input_offset() })) {
        Ok(text) => text,
        Err(error) => {
            unsafe { error_set(put(error.to_string().as_bytes())) };
            return 1;
        }
    };
    let count = text.chars().filter(|letter| "aeiouAEIOU".contains(*letter)).count();
    let before = String::from_utf8_lossy(&get(unsafe { var_get(put(b"total")) })).into_owned();
    let total = count + before.parse::<usize>().unwrap_or(0);
    unsafe { var_set(put(b"total"), put(total.to_string().as_bytes())) };
    println!("{} vowels", count);
    output(&format!("{{\"count\":{},\"total\":{},\"vowels\":\"aeiouAEIOU\"}}", count, total));
    0
}

#[no_mangle]
pub extern "C" fn panics() -> i32 {
    let data = get(unsafe { input_offset() });
    output("so far");
    data[data.len() + 1] as i32
}
