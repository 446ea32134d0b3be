// Writes what the functions give under Node, for the calls in cases.json, by the compiler's bindings.
import { readFileSync } from "node:fs";
const made = process.argv[2];
const { instantiate } = await import(`data:text/javascript;base64,${readFileSync(`${made}/values.js`, "base64")}`);
const said = [];
console.log = (...all) => said.push(["stdout", all.map(String).join(" ")]);
console.error = (...all) => said.push(["stderr", all.map(String).join(" ")]);
const module = await WebAssembly.compile(readFileSync(`${made}/values.wasm`));
const cases = JSON.parse(readFileSync("cases.json", "utf8"));
const number = (type, x) => (type.includes("64") && !type.includes("f64") ? BigInt(x) : type === "bool" ? x : Number(x));
const LISTS = /^(?:array|staticarray)<(.*)>$|^list\[(.*)\]$|^(u?int|float)(8|16|32|64)array$/;
const element = (type) => {
  const [, a, b, kind, bits] = LISTS.exec(type);
  return a ?? b ?? { int: "i", uint: "u", float: "f" }[kind] + bits;
};
const lower = (type, x) => {
  if (x === null || type === "str") return x;
  if (type === "bytes") return Uint8Array.from(Buffer.from(x, "hex"));
  if (type === "uint8clampedarray") return Uint8ClampedArray.from(Buffer.from(x, "hex"));
  if (type === "arraybuffer") return Uint8Array.from(Buffer.from(x, "hex")).buffer;
  return LISTS.test(type) ? x.map((one) => number(element(type), one)) : number(type, x);
};
const lift = (x) => {
  if (typeof x === "bigint") return { int: String(x) };
  if (typeof x === "number") return Object.is(x, -0) || !Number.isFinite(x) ? { float: Object.is(x, -0) ? "-0" : String(x) } : x;
  if (x instanceof ArrayBuffer) return { bytes: Buffer.from(x).toString("hex") };
  if (x instanceof Uint8Array || x instanceof Uint8ClampedArray) return { bytes: Buffer.from(x).toString("hex") };
  if (Array.isArray(x) || ArrayBuffer.isView(x)) return Array.from(x, lift);
  return x ?? null;
};
const results = [];
for (const [name, types, , ...values] of cases) {
  const exports = await instantiate(module, {});
  said.length = 0;
  let result;
  try {
    result = { gives: lift(exports[name](...values.map((x, n) => lower(types[n], x)))) };
  } catch (error) {
    result = { fails: error.message };
  }
  if (said.length) result.said = [...said];
  results.push(result);
}
process.stdout.write(JSON.stringify({ node: process.version, results }) + "\n");
