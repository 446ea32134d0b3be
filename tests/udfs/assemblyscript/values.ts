// Every type that crosses, in both directions, and functions that leave garbage, keep and fail.
export function addI64(a: i64, b: i64): i64 { return a + b; }
export function addU32(a: u32, b: u32): u32 { return a + b; }
export function half(a: f64): f32 { return <f32>(a / 2); }
export function not(a: bool): bool { return !a; }
export function short(a: i32): i8 { return <i8>a; }

export function same(text: string): string { return text; }
export function shout(text: string): string { return text.toUpperCase() + "!"; }
export function join(a: string, b: string, c: string): string { return a + "-" + b + "-" + c; }
export function units(text: string): i32 { return text.length; }
export function repeat(text: string, times: i32): string { return text.repeat(times); }
export function unit(code: i32): string { return String.fromCharCode(code); }
export function orNull(text: string | null): string | null {
  if (text === null) return "it was null";
  return text.length ? text : null;
}
export function lengths(a: string | null, b: Array<i32> | null): i32 {
  return (a === null ? -1 : a.length) * 100 + (b === null ? -1 : b.length);
}

export function reverse(data: Uint8Array): Uint8Array { return data.slice().reverse(); }
export function rest(data: Uint8Array): Uint8Array { return data.subarray(1); }
export function clamped(data: Uint8ClampedArray): Uint8ClampedArray {
  for (let i = 0; i < data.length; i++) data[i] = <u8>min(<i32>data[i] * 2, 255);
  return data;
}
export function tail(data: ArrayBuffer): ArrayBuffer { return data.slice(1); }

export function arrayI8(a: Array<i8>): Array<i8> { return a.reverse(); }
export function arrayU8(a: Array<u8>): Array<u8> { return a.reverse(); }
export function arrayBool(a: Array<bool>): Array<bool> { return a.reverse(); }
export function arrayI16(a: Array<i16>): Array<i16> { return a.reverse(); }
export function arrayU16(a: Array<u16>): Array<u16> { return a.reverse(); }
export function arrayI32(a: Array<i32>): Array<i32> { a.push(a.length); return a.reverse(); }
export function arrayU32(a: Array<u32>): Array<u32> { return a.reverse(); }
export function arrayI64(a: Array<i64>): Array<i64> { return a.reverse(); }
export function arrayU64(a: Array<u64>): Array<u64> { return a.reverse(); }
export function arrayF32(a: Array<f32>): Array<f32> { return a.reverse(); }
export function arrayF64(a: Array<f64>): Array<f64> { return a.reverse(); }
export function typedI8(a: Int8Array): Int8Array { return a.reverse(); }
export function typedI16(a: Int16Array): Int16Array { return a.reverse(); }
export function typedU16(a: Uint16Array): Uint16Array { return a.reverse(); }
export function typedI32(a: Int32Array): Int32Array { return a.reverse().subarray(1); }
export function typedU32(a: Uint32Array): Uint32Array { return a.reverse(); }
export function typedI64(a: Int64Array): Int64Array { return a.reverse(); }
export function typedU64(a: Uint64Array): Uint64Array { return a.reverse(); }
export function typedF32(a: Float32Array): Float32Array { return a.reverse(); }
export function typedF64(a: Float64Array): Float64Array { return a.reverse(); }
export function staticI16(a: StaticArray<i16>): StaticArray<i16> { return a.reverse(); }
export function staticF64(a: StaticArray<f64>): StaticArray<f64> { return a.reverse(); }
export function sum(a: Array<f64>, factor: f64, b: StaticArray<f64>, text: string): f64 {
  let sum: f64 = text.length;
  for (let i = 0; i < a.length; i++) sum += a[i] * factor;
  for (let i = 0; i < b.length; i++) sum += b[i];
  return sum;
}

export function defaults(a: i32, b: i32 = 7, text: string = "default"): string {
  return a.toString() + " " + b.toString() + " " + text;
}
export function plus(a: i64, b: i64 = 5, c: f64 = 0.5): f64 { return <f64>(a + b) + c; }

let kept: string[] = [];
export function keep(text: string): i32 { kept.push(text); return kept.length; }
export function recall(at: i32): string { return kept[at]; }
export function litter(rounds: i32): i32 {
  let total = 0;
  for (let i = 0; i < rounds; i++) total += new Array<i32>(100).length;
  return total;
}

export function fail(text: string): string {
  if (text.length) throw new Error(text);
  return text;
}
export function outside(a: Array<i32>): i32 { return a[a.length]; }
export function spin(text: string): i32 { let n = 0; while (true) n += text.length; }
export function say(text: string): void {
  console.log(text);
  console.error("error: " + text);
  trace("traced", 5, 1, -0.5, 1e21, 1.5e-7, NaN);
  trace("nothing");
}
export function now(): f64 { return <f64>Date.now(); }
export function random(): f64 { return Math.random(); }
