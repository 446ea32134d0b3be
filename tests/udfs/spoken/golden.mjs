// Writes what each module gives under Node to golden.json: unpack go.wasm.xz, then `node golden.mjs`.
import { openSync, readFileSync, writeFileSync } from "node:fs";
import { WASI } from "node:wasi";

const golden = { node: process.version };
for (const name of ["assemblyscript", "c", "emscripten", "go", "rust", "zig"]) {
  const files = ["stdout", "stderr"].map((stream) => `/tmp/golden-${name}-${stream}`);
  const [stdout, stderr] = files.map((file) => openSync(file, "w+"));
  const wasi = new WASI({ version: "preview1", stdout, stderr, returnOnExit: true });
  let aborted = null;
  const env = {
    abort: (at) => {
      const { buffer } = exports.memory;
      const size = new Uint32Array(buffer, at - 4, 1)[0];
      aborted = Buffer.from(buffer, at, size).toString("utf16le");
      throw new Error("abort");
    },
  };
  const imports = { wasi_snapshot_preview1: wasi.wasiImport, env };
  const module = new WebAssembly.Module(readFileSync(`${name}.wasm`));
  const instance = new WebAssembly.Instance(module, imports);
  const { exports } = instance;
  if (exports.memory) wasi.initialize(instance);
  const collatz = [];
  for (let n = 1n; n <= 30n; n++) collatz.push(Number(exports.collatz(n)));
  const zero = Number(exports.fail(0n));
  let failed = "nothing";
  try {
    exports.fail(7n);
  } catch (error) {
    failed = error instanceof Error ? error.name : "exit";
  }
  const [out, err] = files.map((file) => readFileSync(file, "utf8"));
  golden[name] = { collatz, zero, failed, out, err, aborted };
}
writeFileSync("golden.json", JSON.stringify(golden) + "\n");
