//! Functions that succeed or fail with words, exported from Zig.
const std = @import("std");

export fn collatz(number: i64) i64 {
    var n = number;
    var steps: i64 = 0;
    while (n > 1) : (steps += 1) n = if (@mod(n, 2) == 0) @divTrunc(n, 2) else 3 * n + 1;
    return steps;
}

export fn fail(n: i64) i64 {
    if (n != 0) std.debug.panic("the value is {d}", .{n});
    return n;
}
