// count.ts
import { Config, Host, Memory, Var } from "@extism/as-pdk";
import { error_set } from "@extism/as-pdk/lib/env";

export function count(): i32 {
  const letters = Config.get("letters");
  if (letters === null) {
    error_set(Memory.allocateString("no letters are configured").offset);
    return 1;
  }
  const text = Host.inputString();
  let found = 0;
  for (let i = 0; i < text.length; i++) {
    if (letters.includes(text.charAt(i))) found += 1;
  }
  const before = Var.getString("total");
  const total = found + (before === null ? 0 : I32.parseInt(before));
  Var.set("total", Uint8Array.wrap(String.UTF8.encode(total.toString())));
  Host.outputString(`${found} of ${total}`);
  return 0;
}

function stop(message: string | null, file: string | null, line: u32, column: u32): void {
  const text = message === null ? "stopped" : message;
  error_set(Memory.allocateString(`${text}, in line ${line}`).offset);
}
