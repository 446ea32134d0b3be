// The policy access.rego, written by hand with the ABI of the modules that `opa build -t wasm` makes.
// It stands in for one, as OPA's compiler is in no package registry. A parsed value is its own text.
//
// asc access.ts -o access.wasm -O3 --runtime stub --importMemory --noExportMemory \
//     --initialMemory 2 --use abort=

@external("env", "opa_abort")
declare function opa_abort(message: usize): void;

export const opa_wasm_abi_version: i32 = 1;
export const opa_wasm_abi_minor_version: i32 = 2;

let heap: usize = __heap_base;

export function opa_malloc(size: usize): usize {
  const at = heap;
  heap = (heap + size + 7) & ~7;
  const missing = <isize>heap - (<isize>memory.size() << 16);
  if (missing > 0 && memory.grow(<i32>((missing + 65535) >> 16)) < 0) unreachable();
  return at;
}

export function opa_heap_ptr_get(): usize { return heap; }
export function opa_heap_ptr_set(at: usize): void { heap = at; }
export function opa_json_dump(value: usize): usize { return value; }
export function builtins(): usize { return ascii("{}"); }
export function entrypoints(): usize { return ascii('{"access/allow": 0, "access/owner": 1}'); }

export function opa_json_parse(at: usize, size: usize): usize {
  const made = copied(at, size);
  after(made);
  return made;
}

/** Bytes on the heap, with a zero after them. */
function copied(at: usize, size: usize): usize {
  const made = opa_malloc(size + 1);
  memory.copy(made, at, size);
  store<u8>(made + size, 0);
  return made;
}

function ascii(text: string): usize {
  const made = opa_malloc(text.length + 1);
  for (let i = 0; i < text.length; i++) store<u8>(made + i, text.charCodeAt(i));
  store<u8>(made + text.length, 0);
  return made;
}

function blank(at: usize): usize {
  while (load<u8>(at) == 32 || load<u8>(at) == 10) at++;
  return at;
}

/** The address after the value that begins at `at`. */
function after(at: usize): usize {
  let depth = 0, inside = false, done = false;
  while (!done) {
    const letter = load<u8>(at);
    if (!letter) opa_abort(ascii("a document is no JSON"));
    if (letter == 34) inside = !inside;
    else if (letter == 92) at++;
    else if (!inside && (letter == 123 || letter == 91)) depth++;
    else if (!inside && (letter == 125 || letter == 93)) depth--;
    at++;
    const next = load<u8>(at);
    const ends = next <= 32 || next == 44 || next == 125 || next == 93;
    done = !inside && depth == 0 && (ends || letter == 34 || letter == 125 || letter == 93);
  }
  return at;
}

/** The member of an object whose key is the text from `key` to `end`; 0 if there is none. */
function member(object: usize, key: usize, end: usize): usize {
  let at = blank(object);
  if (load<u8>(at) != 123) return 0;
  at = blank(at + 1);
  while (load<u8>(at) == 34) {
    const nameEnd = after(at);
    const value = blank(blank(nameEnd) + 1);
    if (nameEnd - at - 2 == end - key && !memory.compare(at + 1, key, end - key)) return value;
    at = blank(after(value));
    if (load<u8>(at) == 44) at = blank(at + 1);
  }
  return 0;
}

function field(object: usize, name: string): usize {
  const key = ascii(name);
  return member(object, key, key + name.length);
}

/** The member of one of the data's tables whose key is a text of the input. */
function looked(data: usize, table: string, key: usize): usize {
  const found = field(data, table);
  return found && key && load<u8>(key) == 34 ? member(found, key + 1, after(key) - 1) : 0;
}

function equal(one: usize, other: usize): bool {
  if (!one || !other) return false;
  const size = after(one) - one;
  return after(other) - other == size && !memory.compare(one, other, size);
}

export function opa_eval(
  _: i32, entrypoint: i32, data: usize, at: usize, size: usize, free: usize, _format: i32
): usize {
  heap = free;
  const input = size ? opa_json_parse(at, size) : ascii("null");
  const document = field(input, "document");
  const owner = looked(data, "owners", document);
  let value = owner;
  if (entrypoint == 0) {
    const reads = equal(field(input, "action"), ascii('"read"'));
    const open = equal(looked(data, "public", document), ascii("true"));
    value = ascii(equal(field(input, "user"), owner) || (reads && open) ? "true" : "false");
  }
  if (!value) return ascii("[]");
  const length = after(value) - value;
  const made = opa_malloc(length + 14);
  memory.copy(made, ascii('[{"result":'), 11);
  memory.copy(made + 11, value, length);
  memory.copy(made + 11 + length, ascii("}]"), 3);
  return made;
}
