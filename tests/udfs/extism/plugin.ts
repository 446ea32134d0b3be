// An Extism plugin in AssemblyScript, with Extism's own kit: @extism/as-pdk.
import { Config, Host, LogLevel, Var } from "@extism/as-pdk";

function myAbort(message: string | null, file: string | null, line: u32, column: u32): void {}

function vowels(text: string): i32 {
  let count = 0;
  for (let i = 0; i < text.length; i++) {
    if ("aeiouAEIOU".includes(text.charAt(i))) count += 1;
  }
  return count;
}

export function count_vowels(): i32 {
  const count = vowels(Host.inputString());
  const before = Var.getString("total");
  const total = count + (before === null ? 0 : I32.parseInt(before));
  Var.set("total", Uint8Array.wrap(String.UTF8.encode(total.toString())));
  Host.outputString('{"count":' + count.toString() + ',"total":' + total.toString() + "}");
  return 0;
}

export function config(): i32 {
  const found = Config.get(Host.inputString());
  if (found === null) return 7;
  Host.outputString(found);
  return 0;
}

export function echo(): i32 {
  Host.output(Host.input());
  return 0;
}

export function forget(): i32 {
  Var.remove("total");
  return 0;
}

export function logs(): i32 {
  Host.log(LogLevel.Info, "hello");
  return 0;
}
