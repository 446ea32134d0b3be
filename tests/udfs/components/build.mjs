// Makes funcs-js.wasm of funcs.js: node build.mjs FOLDER, which gets it. WASI is left out.
import { readFile, writeFile } from "node:fs/promises";
import { componentize } from "@bytecodealliance/componentize-js";

const { component } = await componentize({
    sourcePath: new URL("funcs.js", import.meta.url).pathname,
    witPath: new URL("funcs.wit", import.meta.url).pathname,
    worldName: "pure",
    disableFeatures: ["random", "stdio", "clocks", "http", "fetch-event"],
});
await writeFile(`${process.argv[2]}/funcs-js.wasm`, component);
