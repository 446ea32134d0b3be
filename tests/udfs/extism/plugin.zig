// An Extism plugin in Zig, against the functions of Extism's host.
const env = struct {
    extern "extism:host/env" fn alloc(size: u64) u64;
    extern "extism:host/env" fn store_u8(at: u64, byte: u32) void;
    extern "extism:host/env" fn input_length() u64;
    extern "extism:host/env" fn input_load_u8(at: u64) u32;
    extern "extism:host/env" fn output_set(at: u64, size: u64) void;
    extern "extism:host/env" fn error_set(at: u64) void;
};

fn put(data: []const u8) u64 {
    const at = env.alloc(data.len);
    for (data, 0..) |byte, i| env.store_u8(at + i, byte);
    return at;
}

export fn reverse() i32 {
    const size: usize = @intCast(env.input_length());
    if (size == 0) {
        env.error_set(put("nothing to reverse"));
        return 1;
    }
    const to = env.alloc(size);
    for (0..size) |i| env.store_u8(to + i, env.input_load_u8(size - 1 - i));
    env.output_set(to, size);
    return 0;
}
