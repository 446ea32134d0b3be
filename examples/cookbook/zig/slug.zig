// slug.zig
const std = @import("std");
const memory = std.heap.wasm_allocator;

export fn alloc(size: usize) ?[*]u8 {
    return (memory.alloc(u8, size) catch return null).ptr;
}

export fn dealloc(at: [*]u8, size: usize) void {
    memory.free(at[0..size]);
}

export fn slug(at: [*]const u8, size: usize, most: u32) u64 {
    if (most == 0) std.debug.panic("a slug has at least one word, not {d}", .{most});
    return packed_slug(at[0..size], most) catch @panic("no memory is left");
}

fn packed_slug(text: []const u8, most: u32) !u64 {
    var out: std.ArrayList(u8) = .empty;
    var words = std.mem.tokenizeAny(u8, text, &std.ascii.whitespace);
    for (0..most) |_| {
        const word = words.next() orelse break;
        if (out.items.len > 0) try out.append(memory, '-');
        for (word) |letter| try out.append(memory, std.ascii.toLower(letter));
    }
    const result = try out.toOwnedSlice(memory);
    return if (result.len == 0) 0 else @as(u64, @intFromPtr(result.ptr)) << 32 | result.len;
}
