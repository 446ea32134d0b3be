"""Valid modules at random whose functions compute: what two compilers must do alike.

Every module is made of a number. Its functions have numbers as parameters and results; in them are
all instructions of numbers, loads and stores of every width, vectors of integers, calls, tables,
jumps, loops that end, bulk instructions, growth, and traps.

The bits of a NaN are the compiler's choice, so no instruction sees them: a float becomes the one
NaN before it is stored, reinterpreted, or gives its sign.
"""

from __future__ import annotations

from random import Random

from attrs import define, field

NUMBERS = ("i32", "i64", "f32", "f64")
TYPES = (*NUMBERS, "v128")
# {type of operands: binary and unary instructions, and comparisons}
_INTEGERS = (
    "add sub mul and or xor shl shr_s shr_u rotl rotr div_s div_u rem_s rem_u".split(),
    "clz ctz popcnt extend8_s extend16_s".split(),
    "eq ne lt_s lt_u gt_s gt_u le_s le_u ge_s ge_u".split(),
)
_FLOATS = (
    "add sub mul div min max".split(),
    "abs neg ceil floor trunc nearest sqrt".split(),
    "eq ne lt gt le ge".split(),
)
_OPERATORS = dict.fromkeys(("i32", "i64"), _INTEGERS) | dict.fromkeys(("f32", "f64"), _FLOATS)
_VECTORS = (
    *(f"i{bits}.{name}" for bits in ("8x16", "16x8", "32x4", "64x2") for name in ("add", "sub")),
    *(f"i{bits}.{name}" for bits in ("16x8", "32x4", "64x2") for name in ("mul", "eq")),
    *(f"i{bits}.{name}" for bits in ("8x16", "16x8") for name in ("add_sat_s", "avgr_u", "max_u")),
    *("v128.and", "v128.or", "v128.xor", "v128.andnot", "i8x16.swizzle", "i32x4.min_s"),
    *("i8x16.narrow_i16x8_s", "i16x8.narrow_i32x4_u", "i32x4.dot_i16x8_s"),
    *("i64x2.extmul_low_i32x4_u", "i16x8.q15mulr_sat_s", "i64x2.gt_s", "i8x16.lt_u"),
)
_LOADS = {
    "i32": ("load", "load8_s", "load8_u", "load16_s", "load16_u"),
    "i64": ("load", *(f"load{bits}_{sign}" for bits in (8, 16, 32) for sign in "su")),
    "f32": ("load",),
    "f64": ("load",),
    "v128": ("load", "load8x8_s", "load32x2_u", "load16_splat", "load64_zero"),
}
_STORES = {
    "i32": ("store", "store8", "store16"),
    "i64": ("store", "store8", "store16", "store32"),
    "f32": ("store",),
    "f64": ("store",),
    "v128": ("store",),
}
_SPECIAL = {
    "i32": (0, 1, -1, 7, 63, 0x7FFFFFFF, -0x80000000, 0x55AA, 65_535),
    "i64": (0, 1, -1, 9, 2**63 - 1, -(2**63), 2**32, -(2**31)),
    "f32": ("0", "-0", "1.5", "-1", "nan", "inf", "-inf", "0x1p-149", "16777217", "2147483648"),
    "f64": ("0", "-0", "2.5", "-1", "nan", "inf", "-inf", "0x1p-1074", "9007199254740993", "1e300"),
}
LOCALS = 3
"""Locals of each type in each function."""
PAGES = 1
TABLE = 8
DATA = "some data" * 30


@define
class Signature:
    """The types of a function."""

    params: tuple[str, ...]
    results: tuple[str, ...]

    @property
    def text(self) -> str:
        """As it is written in a module."""
        return _clause("param", self.params) + _clause("result", self.results)


@define
class Program:
    """A module, and what it exports."""

    text: str
    functions: dict[str, Signature]
    """Exported functions."""
    grows: bool
    """Whether it has `memory.grow` or `table.grow`, which may cost a little more or less."""


def program(seed: int) -> Program:
    """Return the module of that number: always the same."""
    random = Random(seed)
    signatures = [
        Signature(
            tuple(random.choices(NUMBERS, k=random.randrange(4))),
            tuple(random.choices(NUMBERS, k=random.choice((1, 1, 1, 0, 2)))),
        )
        for _ in range(random.randint(2, 4))
    ]
    grows = random.random() < 0.2
    bodies = [_Body(random, signatures, number, grows).text() for number in range(len(signatures))]
    entries = " ".join(f"$f{random.randrange(len(signatures))}" for _ in range(TABLE - 2))
    globals_ = "".join(
        f"(global $g{kind} (mut {kind}) ({kind}.const {random.choice(_SPECIAL[kind])}))"
        for kind in NUMBERS
    )
    text = f"""(module (memory (export "memory") {PAGES} 3) (memory $other 1 2)
        (table $t {TABLE} 20 funcref) (table $u 9 funcref)
        (elem (table $t) (i32.const 1) func {entries}) (elem $e func {entries}) (data $d "{DATA}")
        (data (i32.const 100) "more of it")
        {globals_}
        (func $nan32 (param f32) (result f32) (select (f32.const nan) (local.get 0)
            (f32.ne (local.get 0) (local.get 0))))
        (func $nan64 (param f64) (result f64) (select (f64.const nan) (local.get 0)
            (f64.ne (local.get 0) (local.get 0))))
        {"".join(bodies)})"""
    return Program(text, {f"f{n}": one for n, one in enumerate(signatures)}, grows)


def arguments(random: Random, signature: Signature) -> tuple[float, ...]:
    """Return values for a function, of which some are extreme."""
    return tuple(
        float(random.choice(("-0", "nan", "inf", "-1.5", "1e10", "3")))
        if kind in ("f32", "f64")
        else random.choice((*_SPECIAL[kind], random.randrange(-100, 100)))  # type: ignore[misc]
        for kind in signature.params
    )


def _clause(word: str, types: tuple[str, ...]) -> str:
    return f"({word} {' '.join(types)})" if types else ""


@define
class _Body:
    """Writes one function. Calls go to functions of higher numbers only, so all of them end."""

    random: Random
    signatures: list[Signature]
    number: int
    grows: bool
    left: int = field(init=False)
    """Number of instructions that may still be written, more or less."""
    labels: int = 0
    """Number of blocks around, of those that take no value."""
    counters: int = 0
    """Number of loops; each has a local of its own."""

    def __attrs_post_init__(self) -> None:
        self.left = self.random.choice((30, 120, 500))

    def text(self) -> str:
        own = self.signatures[self.number]
        statements = "".join(self.statement(5) for _ in range(self.random.randint(2, 8)))
        results = " ".join(self.value(kind, 5) for kind in own.results)
        named = "".join(f"(local ${kind}{n} {kind})" for kind in TYPES for n in range(LOCALS))
        named += "".join(f"(local $loop{n} i32)" for n in range(self.counters))
        name = f'$f{self.number} (export "f{self.number}")'
        return f"(func {name} {own.text} {named} {statements} {results})\n"

    def value(self, kind: str, depth: int) -> str:
        """Return an expression of that type."""
        self.left -= 1
        if depth <= 0 or self.left <= 0 or self.random.random() < 0.1:
            return self.leaf(kind)
        if self.random.random() < 0.3:
            return self.control(kind, depth - 1)
        return self.vector(depth - 1) if kind == "v128" else self.numeric(kind, depth - 1)

    def leaf(self, kind: str) -> str:
        own = self.signatures[self.number].params
        params = [n for n, one in enumerate(own) if one == kind]
        if params and self.random.random() < 0.5:
            return f"(local.get {self.random.choice(params)})"
        if kind == "v128":
            if self.random.random() < 0.5:
                return f"(v128.const i64x2 {self.constant('i64')} {self.constant('i64')})"
        elif self.random.random() < 0.4:
            return f"({kind}.const {self.constant(kind)})"
        elif self.random.random() < 0.2:
            return f"(global.get $g{kind})"
        return f"(local.get ${kind}{self.random.randrange(LOCALS)})"

    def constant(self, kind: str) -> str:
        return str(self.random.choice(_SPECIAL[kind]))

    def numeric(self, kind: str, depth: int) -> str:
        random = self.random
        binary, unary, _ = _OPERATORS[kind]
        choice = random.randrange(10)
        if choice < 4:
            first, second = self.value(kind, depth), self.value(kind, depth)
            return f"({kind}.{random.choice(binary)} {first} {second})"
        if choice == 4:
            return f"({kind}.{random.choice(unary)} {self.value(kind, depth)})"
        if choice == 5:
            return f"({kind}.{random.choice(_LOADS[kind])}{self.place(depth)})"
        if choice == 6 and kind in ("f32", "f64"):
            sign = self.one_nan(kind, self.value(kind, depth))
            return f"({kind}.copysign {self.value(kind, depth)} {sign})"
        if choice == 6 and kind == "i32":
            other = random.choice(NUMBERS)
            compare = random.choice(_OPERATORS[other][2])
            first, second = self.value(other, depth), self.value(other, depth)
            return f"({other}.{compare} {first} {second})"
        if choice == 7 and kind in ("i32", "i64"):
            shape = random.choice(("i8x16", "i16x8")) if kind == "i32" else "i64x2"
            sign = "_s" if kind == "i32" else ""
            return f"({shape}.extract_lane{sign} 1 {self.value('v128', depth)})"
        return self.converted(kind, depth)

    def converted(self, kind: str, depth: int) -> str:
        random = self.random

        def of(other: str) -> str:
            return self.value(other, depth)

        other = random.choice(("f32", "f64"))
        sign = random.choice("su")
        match kind:
            case "i32":
                bits = f"(i32.reinterpret_f32 {self.one_nan('f32', of('f32'))})"
                choices = [
                    f"(i32.wrap_i64 {of('i64')})",
                    f"(i32.eqz {of('i32')})",
                    f"(i64.eqz {of('i64')})",
                    f"(i32.trunc_{other}_{sign} {of(other)})",
                    f"(i32.trunc_sat_{other}_{sign} {of(other)})",
                    bits,
                    "(memory.size)",
                    "(table.size $t)",
                    f"(ref.is_null (table.get $t (i32.and {of('i32')} (i32.const 15))))",
                    f"(i8x16.bitmask {of('v128')})",
                    f"(i32x4.all_true {of('v128')})",
                ]
                if self.grows:
                    choices += [
                        f"(memory.grow (i32.eqz {of('i32')}))",
                        f"(table.grow $t (ref.null func) (i32.and {of('i32')} (i32.const 3)))",
                    ]
                return random.choice(choices)
            case "i64":
                return random.choice(
                    (
                        f"(i64.extend_i32_{sign} {of('i32')})",
                        f"(i64.extend32_s {of('i64')})",
                        f"(i64.trunc_{other}_{sign} {of(other)})",
                        f"(i64.trunc_sat_{other}_{sign} {of(other)})",
                        f"(i64.reinterpret_f64 {self.one_nan('f64', of('f64'))})",
                    )
                )
            case "f32":
                return random.choice(
                    (
                        f"(f32.demote_f64 {of('f64')})",
                        f"(f32.convert_i32_{sign} {of('i32')})",
                        f"(f32.convert_i64_{sign} {of('i64')})",
                        f"(f32.reinterpret_i32 {of('i32')})",
                    )
                )
            case _:
                return random.choice(
                    (
                        f"(f64.promote_f32 {of('f32')})",
                        f"(f64.convert_i32_{sign} {of('i32')})",
                        f"(f64.convert_i64_{sign} {of('i64')})",
                        f"(f64.reinterpret_i64 {of('i64')})",
                    )
                )

    def vector(self, depth: int) -> str:
        random = self.random
        choice = random.randrange(5)
        if choice < 2:
            first, second = self.value("v128", depth), self.value("v128", depth)
            if choice:
                lanes = " ".join(str(random.randrange(32)) for _ in range(16))
                return f"(i8x16.shuffle {lanes} {first} {second})"
            return f"({random.choice(_VECTORS)} {first} {second})"
        if choice == 2:
            return f"(v128.{random.choice(_LOADS['v128'])}{self.place(depth)})"
        if choice == 3:
            shape = random.choice(("i8x16", "i16x8", "i32x4"))
            number = self.value("i32", depth)
            if random.random() < 0.5:
                return f"({shape}.splat {number})"
            shift = random.choice(("shl", "shr_s", "shr_u"))
            return f"({shape}.{shift} {self.value('v128', depth)} {number})"
        return f"(i64x2.replace_lane 1 {self.value('v128', depth)} {self.value('i64', depth)})"

    def control(self, kind: str, depth: int) -> str:
        """Return an expression with jumps, calls or assignments."""
        random = self.random

        def of(other: str) -> str:
            return self.value(other, depth)

        def in_block() -> str:
            self.labels += 1
            try:
                return self.value(kind, depth)
            finally:
                self.labels -= 1

        match random.randrange(7):
            case 0:
                return f"(if (result {kind}) {of('i32')} (then {in_block()}) (else {in_block()}))"
            case 1:
                return f"(select (result {kind}) {of(kind)} {of(kind)} {of('i32')})"
            case 2:
                return f"(block (result {kind}) (br_table 0 0 {in_block()} {of('i32')}))"
            case 3:
                return f"(local.tee ${kind}{random.randrange(LOCALS)} {of(kind)})"
            case 4:
                inner = self.statement(depth)
                return f"(block (result {kind}) {inner} (br_if 0 {in_block()} {of('i32')}))"
            case 5 if kind != "v128":
                made = self.call(depth, (kind,))
                return of(kind) if made is None else made
            case _:
                return f"(block (result {kind}) {self.statement(depth)} {of(kind)})"

    def call(self, depth: int, results: tuple[str, ...]) -> str | None:
        """Return a call of a later function with these results; None: there is none."""
        some = [
            number
            for number in range(self.number + 1, len(self.signatures))
            if self.signatures[number].results == results
        ]
        if not some:
            return None
        callee = self.random.choice(some)
        signature = self.signatures[callee]
        values = " ".join(self.value(kind, depth) for kind in signature.params)
        return f"(call $f{callee} {values})"

    def statement(self, depth: int) -> str:
        """Return instructions that leave nothing."""
        random = self.random
        self.left -= 1
        if depth <= 0 or self.left <= 0:
            return "(nop)"
        depth -= 1
        kind = random.choice(TYPES)
        match random.randrange(12):
            case 0 | 1:
                return f"(local.set ${kind}{random.randrange(LOCALS)} {self.value(kind, depth)})"
            case 2:
                kind = random.choice(NUMBERS)
                return f"(global.set $g{kind} {self.one_nan(kind, self.value(kind, depth))})"
            case 3 | 4:
                value = self.one_nan(kind, self.value(kind, depth))
                return f"({kind}.{random.choice(_STORES[kind])}{self.place(depth)} {value})"
            case 5:
                inner = "".join(self.statement(depth) for _ in range(2))
                return f"(if {self.value('i32', depth)} (then {inner}) (else (nop)))"
            case 6 | 7:
                return self.loop(depth)
            case 8 | 9:
                return self.bulk(depth)
            case 10:
                return self.jump(depth)
            case _:
                signature = random.choice(self.signatures)
                made = self.call(depth, signature.results)
                if made is None:
                    return f"(drop {self.value(kind, depth)})"
                return made + "(drop)" * len(signature.results)

    def loop(self, depth: int) -> str:
        """Return a loop of at most four turns."""
        counter = f"$loop{self.counters}"
        self.counters += 1
        inner = "".join(self.statement(depth) for _ in range(2))
        return f"""(local.set {counter} (i32.const {self.random.randint(1, 4)}))
            (loop {inner} (br_if 0 (local.tee {counter}
            (i32.sub (local.get {counter}) (i32.const 1)))))"""

    def jump(self, depth: int) -> str:
        """Return what leaves the function, or traps, now and then."""
        random = self.random
        what = "(unreachable)"
        if random.random() < 0.7:
            results = self.signatures[self.number].results
            what = f"(return {' '.join(self.value(kind, depth) for kind in results)})"
        elif random.random() < 0.5:
            # To one of any signature, through the table: most of these trap.
            signature = random.choice(self.signatures)
            if self.number < len(self.signatures) - 1:
                return f"(drop {self.value('i64', depth)})"
            values = " ".join(self.value(kind, depth) for kind in signature.params)
            index = f"(i32.and {self.value('i32', depth)} (i32.const 0))"
            what = f"(call_indirect $t {signature.text} {values} {index})"
            what += "(drop)" * len(signature.results)
        return f"(if (i32.eq {self.value('i32', depth)} (i32.const 7)) (then {what}))"

    def bulk(self, depth: int) -> str:
        """Return a bulk instruction: of a constant length, or one from 64 on."""
        random = self.random

        def length(most: int) -> str:
            if random.random() < 0.5:
                return f"(i32.const {random.choice((0, 1, 5, 63, 64, 128))})"
            some = f"(i32.and {self.value('i32', depth)} (i32.const {most}))"
            return f"(i32.or (i32.const 64) {some})"

        def at(mask: int = 0xFFFF) -> str:
            return f"(i32.and {self.value('i32', depth)} (i32.const {mask}))"

        few = f"(i32.const {random.randrange(4)})"
        match random.randrange(7):
            case 0 | 1:
                return f"(memory.fill {at()} {self.value('i32', depth)} {length(4095)})"
            case 2:
                return f"(memory.copy {at()} {at()} {length(1023)})"
            case 3:
                return f"(memory.copy $other 0 {at()} {at()} {length(8191)})"
            case 4:
                return f"(memory.init $d {at()} (i32.const 9) {length(127)})"
            case 5:
                return f"(table.copy $u $t {at(3)} {at(3)} {few})"
            case _:
                filled = f"(table.fill $u {at(3)} (ref.null func) {few})"
                return random.choice((filled, f"(table.init $u $e {at(3)} (i32.const 1) {few})"))

    def place(self, depth: int) -> str:
        """Return offset and address of a load or store, which is out of bounds now and then."""
        offset = self.random.choice(("", "", " offset=8", " offset=65530"))
        mask = self.random.choice((0xFF, 0x7FFF, 0xFFFF, -1 if self.random.random() < 0.2 else 1))
        return f"{offset} (i32.and {self.value('i32', depth)} (i32.const {mask}))"

    def one_nan(self, kind: str, value: str) -> str:
        return f"(call $nan{kind[1:]} {value})" if kind in ("f32", "f64") else value
