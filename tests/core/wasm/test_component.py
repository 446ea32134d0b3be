"""The reader of components: what they link with what, names of types, refusals, and damage."""

from __future__ import annotations

import contextlib
import pickle

import pytest
import wasmtime
import wasmtime.component
from hypothesis import given, strategies as st
from kits import tries

from trio_wasmcache._core.wasm.component.exports import (
    ExportMatchError,
    find_export,
    find_interface,
    is_compatible,
)
from trio_wasmcache._core.wasm.component.reader import (
    COMPONENT_HEADER,
    INSTANCE_LIMIT,
    MODULE_LIMIT,
    NESTING_LIMIT,
    read_component,
)
from trio_wasmcache._core.wasm.component.types import (
    BuiltIn,
    Component,
    CoreExport,
    ImportedFunction,
    Lifted,
    Lowered,
    Options,
    Unsupported,
    UnsupportedComponentError,
)
from trio_wasmcache._core.wasm.editor import section, uleb, vector
from trio_wasmcache._core.wasm.reader import (
    HEADER,
    ExcessiveModuleError,
    MalformedModuleError,
    read_module,
)
from trio_wasmcache._core.wit.text import definition_text, function_text, named_types
from trio_wasmcache._core.wit.types import (
    F64,
    PRIMITIVES,
    STRING,
    U32,
    Enum,
    Flags,
    Function,
    Handle,
    List,
    Option,
    Record,
    Resource,
    Result,
    Tuple,
    Variant,
)

TYPES, FUNCS = "demo:shapes/types@0.1.0", "demo:shapes/funcs@0.1.0"

# As wit-component makes them: types come in by an imported interface, and the functions that are
# exported get theirs from a nested component.
SHAPES = """
(component
  (type $types (instance
    (type $record (record (field "x" f64) (field "y" f64)))
    (export "point" (type $point (eq $record)))
    (type $same (record (field "x" f64) (field "y" f64)))
    (export "pair" (type $pair (eq $same)))
    (export "other" (type $other (eq $pair)))
    (type $log (func (param "a" $point) (param "b" $pair) (param "c" $other)))
    (export "log" (func (type $log)))
    (export "file" (type $file (sub resource)))
    (type $close (func (param "what" (own $file)) (param "by" (borrow $file))))
    (export "close" (func (type $close)))))
  (import "demo:shapes/types@0.1.0" (instance $t (type $types)))
  (import "now" (func $now (result u64)))
  (alias export $t "point" (type $point))
  (alias export $t "log" (func $log))
  (alias export $t "file" (type $file))
  (core module $shim
    (table (export "table") 1 funcref)
    (memory (export "memory") 1)
    (func (export "indirect") (param f64 f64 f64 f64 f64 f64)))
  (core module $main
    (import "host" "log" (func (param f64 f64 f64 f64 f64 f64)))
    (import "host" "now" (func (result i64)))
    (import "host" "drop" (func (param i32)))
    (import "shim" "memory" (memory 1))
    (func (export "area") (param i32 f64 f64) (result f64) local.get 1)
    (func (export "twice") (param f64) (result f64) local.get 0)
    (func (export "cabi_post_area") (param f64))
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable))
  (core instance $s (instantiate $shim))
  (core func $log-core (canon lower (func $log)))
  (core func $now-core (canon lower (func $now)))
  (core func $drop (canon resource.drop $file))
  (core instance $host
    (export "log" (func $log-core)) (export "now" (func $now-core)) (export "drop" (func $drop)))
  (core instance $m (instantiate $main
    (with "host" (instance $host)) (with "shim" (instance $s))))
  (type $shape (variant (case "circle" f64) (case "box" $point) (case "none")))
  (alias core export $m "area" (core func $area-core))
  (alias core export $m "cabi_post_area" (core func $post))
  (alias core export $m "cabi_realloc" (core func $realloc))
  (alias core export $s "memory" (core memory $memory))
  (func $area (param "of" $shape) (result f64)
    (canon lift (core func $area-core) (memory $memory) (realloc $realloc) (post-return $post)))
  (func $twice (param "a" f64) (result f64) (canon lift (core func $m "twice")))
  (component $nested
    (type $given-point (record (field "x" f64) (field "y" f64)))
    (import "import-type-point" (type $point (eq $given-point)))
    (type $given-shape (variant (case "circle" f64) (case "box" $point) (case "none")))
    (import "import-type-shape" (type $shape (eq $given-shape)))
    (import "import-func-area" (func $area (param "of" $shape) (result f64)))
    (export $exported-point "point" (type $point))
    (export $exported "shape" (type $shape))
    (export "area" (func $area) (func (param "of" $exported) (result f64))))
  (instance $e (instantiate $nested
    (with "import-type-point" (type $point))
    (with "import-type-shape" (type $shape))
    (with "import-func-area" (func $area))))
  (export "demo:shapes/funcs@0.1.0" (instance $e))
  (export "twice" (func $twice)))
"""

POINT = Record((("x", F64), ("y", F64)), "point", TYPES)
SHAPE = Variant((("circle", F64), ("box", POINT), ("none", None)), "shape", FUNCS)

LIFT = """
  (core module $m (memory (export "memory") 1)
    (func (export "f") (param i32) (result i32) local.get 0)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) unreachable))
  (core instance $i (instantiate $m))
  (alias core export $i "f" (core func $f))
  (alias core export $i "memory" (core memory $memory))
  (alias core export $i "realloc" (core func $realloc))
"""


def wat(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


def read(text: str) -> Component:
    return read_component(wat(text))


def component(*sections: tuple[int, bytes]) -> bytes:
    return COMPONENT_HEADER + b"".join(section(*one) for one in sections)


def type_of(declared: str, *params: str) -> Function | Unsupported:
    """The type of a function with these parameters, with some types declared before it."""
    listed = " ".join(f'(param "p{number}" {one})' for number, one in enumerate(params))
    text = f'(component {declared} (type $it (func {listed})) (import "f" (func (type $it))))'
    (found,) = read(text).imports
    return found.type


def test_the_whole_of_a_component() -> None:
    """It is read as instances in order, what they import, and functions with their types."""
    wasm = wat(SHAPES)
    found = read_component(wasm)
    shim, main = found.modules
    for module in found.modules:
        assert read_module(wasm[module.start : module.end]).exports
    first, second = found.instances
    assert (first.module, second.module) == (shim, main)
    assert (first.number, second.number) == (0, 1)
    log, close, now = found.imports
    assert (log.interface, log.name) == (TYPES, "log")
    assert (now.interface, now.name, now.type) == ("", "now", Function((), PRIMITIVES["u64"]))

    lowered = second.source("host", "log", "func")
    assert isinstance(lowered, Lowered)
    assert lowered.function is log
    drop = second.source("host", "drop", "func")
    assert isinstance(drop, BuiltIn)
    assert drop.name == "resource.drop"
    (resource,) = found.resources
    assert drop.resource is resource
    assert (resource.name, resource.home, resource.imported) == ("file", TYPES, True)
    file = Resource("file", TYPES)
    handles = (("what", Handle(file, owned=True)), ("by", Handle(file, owned=False)))
    assert close.type == Function(handles)

    memory = CoreExport(first, "memory", "memory")
    assert second.source("shim", "memory", "memory") == memory
    assert second.source("host", "nothing", "func") is None
    assert second.source("nobody", "log", "func") is None

    area, twice = found.exports
    assert (area.export, twice.export) == (f"{FUNCS}#area", "twice")
    assert twice.type == Function((("a", F64),), F64)
    assert isinstance(area.function, Lifted)
    assert area.function.core == CoreExport(second, "area", "func")
    assert area.function.options == Options(
        "utf8",
        memory,
        CoreExport(second, "cabi_realloc", "func"),
        CoreExport(second, "cabi_post_area", "func"),
    )
    assert area.type == Function((("of", SHAPE),), F64)


def test_names_of_types_and_their_homes() -> None:
    """A type has the name that its first interface gives it; the same structure may have two."""
    log = read(SHAPES).imports[0].type
    assert isinstance(log, Function)
    pair = Record(POINT.fields, "pair", TYPES)
    assert [one for _, one in log.params] == [POINT, pair, pair]
    assert [definition_text(one) for one in named_types(SHAPE)] == [
        "record point { x: f64, y: f64 }",
        "variant shape { circle(f64), box(point), none }",
    ]


def test_a_type_of_the_world_has_no_home() -> None:
    (made,) = read(
        f"""(component {LIFT}
          (type $hue (enum "red" "blue"))
          (export $named "hue" (type $hue))
          (func $f (param "a" $hue) (result u32) (canon lift (core func $f)))
          (export "f" (func $f) (func (param "a" $named) (result u32))))"""
    ).exports
    assert made.type == Function((("a", Enum(("red", "blue"), "hue")),), U32)


def test_a_function_without_a_type_of_its_own_takes_the_names_too() -> None:
    (made,) = read(
        f"""(component {LIFT}
          (type $hue (enum "red" "blue"))
          (export "hue" (type $hue))
          (func $f (param "a" $hue) (result u32) (canon lift (core func $f)))
          (instance $e (export "hue" (type $hue)) (export "f" (func $f)))
          (export "a:b/c" (instance $e)))"""
    ).exports
    assert made.export == "a:b/c#f"
    assert function_text(made.type) == "func(a: hue) -> u32"  # type: ignore[arg-type]


def test_all_types_of_values() -> None:
    """Each type of the component model is read as WIT's."""
    names = list(PRIMITIVES)
    assert type_of("", *names) == Function(
        tuple((f"p{number}", one) for number, one in enumerate(PRIMITIVES.values()))
    )
    declared = """
      (type $r (record (field "a-b" u32) (field "c" string)))
      (import "r" (type $ri (eq $r)))
      (type $v (variant (case "a" string) (case "b")))
      (import "v" (type $vi (eq $v)))
      (type $e (enum "a" "b"))
      (import "e" (type $ei (eq $e)))
      (type $g (flags "x" "y"))
      (import "g" (type $gi (eq $g)))
    """
    record = Record((("a-b", U32), ("c", STRING)), "r")
    found = type_of(
        declared,
        *("$ri", "$vi", "$ei", "$gi", "(list (list $ri))", "(tuple u32 string)"),
        *("(option (option u32))", "(result)", "(result u32)", "(result (error string))"),
        "(result u32 (error string))",
    )
    assert isinstance(found, Function)
    assert [one for _, one in found.params] == [
        record,
        Variant((("a", STRING), ("b", None)), "v"),
        Enum(("a", "b"), "e"),
        Flags(("x", "y"), "g"),
        List(List(record)),
        Tuple((U32, STRING)),
        Option(Option(U32)),
        Result(),
        Result(U32),
        Result(None, STRING),
        Result(U32, STRING),
    ]


@pytest.mark.parametrize(
    ("declared", "what"),
    [
        ("(stream u8)", "a stream"),
        ("(future string)", "a future"),
        ("(list (stream))", "a stream"),
        ("(list u8 4)", "a list of fixed length"),
    ],
)
def test_a_type_that_is_not_supported_concerns_its_functions_only(declared: str, what: str) -> None:
    """Others of the component can be used."""
    wasm = wat(f"""(component (import "f" (func (param "a" {declared}))) (import "g" (func)))""")
    first, second = read_component(wasm).imports
    assert isinstance(first.type, Unsupported)
    assert first.type.what == what
    assert 0 < first.type.offset < len(wasm)
    assert second.type == Function(())


@pytest.mark.parametrize("kind", ["async", ""])
def test_asynchronous_functions(kind: str) -> None:
    """Either the type says it, or how the function is lifted does."""
    (made,) = read(
        f"""(component {LIFT}
          (core module $c (func (export "c") (param i32 i32 i32) (result i32) unreachable))
          (core instance $ci (instantiate $c))
          (alias core export $ci "c" (core func $c))
          (func $x {kind} (param "a" u32) (result u32)
            (canon lift (core func $f) async (callback $c)))
          (export "x" (func $x)))"""
    ).exports
    assert isinstance(made.function, Lifted)
    assert isinstance(made.function.type, Unsupported)
    assert made.function.type.what == "the asynchronous ABI"
    assert isinstance(made.type, Unsupported) is bool(kind)


def test_a_component_that_exports_what_it_imports() -> None:
    found = read('(component (import "f" (func $f)) (export "g" (func $f)))')
    (made,) = found.exports
    assert made.function is found.imports[0]
    assert isinstance(made.function, ImportedFunction)


def test_a_nested_component_is_instantiated_each_time_anew() -> None:
    """Each instance has core instances of its own, of one module."""
    found = read(
        """(component
          (component $c
            (core module $m (func (export "f")))
            (core instance $i (instantiate $m))
            (alias core export $i "f" (core func $f))
            (func $g (canon lift (core func $f)))
            (export "g" (func $g)))
          (instance $a (instantiate $c))
          (instance $b (instantiate $c))
          (alias export $a "g" (func $ga))
          (alias export $b "g" (func $gb))
          (export "ga" (func $ga)) (export "gb" (func $gb)))"""
    )
    first, second = found.instances
    assert first is not second
    assert first.module is second.module
    assert len(found.modules) == 1
    lifted = [one.function for one in found.exports]
    assert [one.core.instance for one in lifted if isinstance(one, Lifted)] == [first, second]


def test_components_that_call_each_other_are_seen() -> None:
    found = read(
        """(component
          (component $a
            (core module $m (func (export "f")))
            (core instance $i (instantiate $m))
            (func $g (canon lift (core func $i "f")))
            (export "g" (func $g)))
          (instance $a (instantiate $a))
          (component $b
            (import "g" (func $g))
            (core func $low (canon lower (func $g)))
            (core module $m (import "a" "g" (func)))
            (core instance $i (instantiate $m (with "a" (instance (export "g" (func $low)))))))
          (instance $b (instantiate $b (with "g" (func $a "g")))))"""
    )
    called = found.instances[1].source("a", "g", "func")
    assert isinstance(called, Lowered)
    assert isinstance(called.function, Lifted)
    assert called.function.core.instance is found.instances[0]


def test_outer_aliases_and_modules_as_arguments() -> None:
    found = read(
        """(component $top
          (core module $m (func (export "f")))
          (type $t (func (result u32)))
          (component $c
            (import "it" (core module $given))
            (alias outer $top $m (core module $outer))
            (core instance (instantiate $given))
            (core instance (instantiate $outer))
            (alias outer $top $t (type $t))
            (import "g" (func $g (type $t)))
            (export "h" (func $g)))
          (import "g" (func $g (result u32)))
          (instance $i (instantiate $c (with "it" (core module $m)) (with "g" (func $g))))
          (export "i" (instance $i)))"""
    )
    assert [one.module for one in found.instances] == [found.modules[0]] * 2
    assert [one.export for one in found.exports] == ["i#h"]


REFUSED = [
    ('(component (import "a" (component)))', "an import of a component"),
    ('(component (import "a" (core module)))', "an import of a core module"),
    (
        '(component (import "a" (instance (export "b" (instance)))))',
        "an import of an instance in an interface",
    ),
]


@pytest.mark.parametrize(("text", "what"), REFUSED)
def test_what_is_refused_is_named(text: str, what: str) -> None:
    with pytest.raises(UnsupportedComponentError) as caught:
        read(text)
    assert caught.value.feature == what
    assert "at offset 0x" in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


TYPE, FUNC = 7, 8


@pytest.mark.parametrize(
    ("wasm", "message"),
    [
        (b"", "8 bytes needed where 0 are left"),
        (HEADER, "not a component"),
        (b"\0asm\x0c\0\1\0", "a component of version 0xc, and not 0xd"),
        (component((13, b"")), "unknown section 13 of a component"),
        (component((9, b"\0")), "the component uses a start function, which is not supported"),
        (component((12, b"\0")), "the component uses values"),
        (component((7, vector([b"\x50\0"]))), "unknown type 0x50"),
        (component((7, vector([b"\x70\5"]))), "type 5 named where there are 0"),
        (component((7, vector([b"\x3f\x7e\0"]))), "not represented by an i32"),
        (component((7, vector([b"\x40\0\0\x40"]))), "unknown type 0x40"),
        (component((7, vector([b"\x40\0\1\0", b"\x70\0"]))), "a func where the type of a value"),
        (component((7, vector([b"\x40\0\1\1"]))), "several results of one function"),
        (component((7, vector([b"\x69\0", b"\x40\0\1\0"]))), "type 0 named where there are 0"),
        (component((7, b"\1\x72\xff\xff\xff\xff\x0f")), "items announced with"),
        (component((7, vector([b"\x7f"]) + b"\0")), "1 bytes too many in section 7"),
        (component((1, b"\0asm\2\0\0\0")), "a core module that does not begin as one"),
        (component((2, vector([b"\0\0\0"]))), "core module 0 named where there are 0"),
        (component((2, vector([b"\1\1\1a\x11\0"]))), "a core instance that exports a module"),
        (component((4, COMPONENT_HEADER), (5, vector([b"\0\0\1\1a\1\0"]))), "func 0 named"),
        (component((4, HEADER), (5, vector([b"\0\0\0"]))), "not a component"),
        (component((6, vector([b"\1\2\1\0"]))), "outside of the component"),
        (component((6, vector([b"\1\2\x40\0"]))), "enclosing component 64 named"),
        (component((6, vector([b"\1\2\0\0"]))), "an outer alias of a func"),
        (component((6, vector([b"\7\0\0\0"]))), "unknown sort 0x7"),
        (component((6, vector([b"\2\0\0\0"]))), "instance 0 named where there are 0"),
        (component((8, vector([b"\x4f\0"]))), "unknown canonical definition 0x4f"),
        (component((8, vector([b"\0\0\0\0\0"]))), "core func 0 named where there are 0"),
        (component((10, vector([b"\3\0\3\1"]))), "unknown form 0x3 of a name"),
        (component((10, vector([b"\0\1a\3\1", b"\0\1a\3\1"]))), "a second item named 'a'"),
        (component((11, vector([b"\0\1a\3\0\0"]))), "type 0 named where there are 0"),
    ],
)
def test_damage_is_described(wasm: bytes, message: str) -> None:
    with pytest.raises(MalformedModuleError) as caught:
        read_component(wasm)
    assert message in str(caught.value)
    assert caught.value.offset <= len(wasm)


def nested(depth: int) -> bytes:
    made = component()
    for _ in range(depth):
        made = component((4, made), (5, vector([b"\0\0\0"])))
    return made


def doubled(depth: int) -> bytes:
    """Nested components of which each instantiates the next one twice."""
    made = component((1, HEADER), (2, vector([b"\0\0\0"])))
    for _ in range(depth):
        made = component((4, made), (5, vector([b"\0\0\0"] * 2)))
    return made


def test_nesting_has_a_limit() -> None:
    assert read_component(nested(NESTING_LIMIT)).exports == ()
    with pytest.raises(MalformedModuleError, match="nested more than 32 deep"):
        read_component(nested(NESTING_LIMIT + 1))
    declared = b"\x42\0"
    for _ in range(NESTING_LIMIT + 1):
        declared = b"\x42\1\1" + declared
    with pytest.raises(MalformedModuleError, match="nested more than 32 deep"):
        read_component(component((7, vector([declared]))))


def test_types_are_not_nested_deeply() -> None:
    """wasmtime's own limit is 100, too."""
    chain = [b"\x7d"] + [b"\x70" + bytes([number | 0x80, 0]) for number in range(100)]
    read_component(component((7, vector(chain[:-1]))))
    with pytest.raises(MalformedModuleError, match="nested more than 100 deep"):
        read_component(component((7, vector(chain))))


def test_instantiating_costs_each_time() -> None:
    """Components that double their instances end at a limit, long before they are all made."""
    assert len(read_component(doubled(3)).instances) == 8
    with pytest.raises(ExcessiveModuleError, match="more than 1000 core instances"):
        read_component(doubled(20))
    made = component()
    for _ in range(30):
        made = component((4, made), (5, vector([b"\0\0\0"] * 2)))
    with pytest.raises(ExcessiveModuleError, match="steps"):
        read_component(made)


@pytest.mark.parametrize(
    ("wasm", "message"),
    [
        (component(*[(1, HEADER)] * (MODULE_LIMIT + 1)), "more than 1000 core modules"),
        (
            component((1, HEADER), (2, vector([b"\0\0\0"] * (INSTANCE_LIMIT + 1)))),
            "more than 1000 core instances",
        ),
        (component((7, vector([b"\x7d"] * 100_000))), "more than a module of"),
    ],
)
def test_what_is_kept_is_bounded(wasm: bytes, message: str) -> None:
    with pytest.raises(ExcessiveModuleError, match=message):
        read_component(wasm)


def test_types_that_double_are_refused_where_they_are_used() -> None:
    """A few bytes may describe a type of any size; it is a function's, which is not supported."""
    doubling = [b"\x7d"] + [b"\x6f\2" + 2 * uleb(number) for number in range(40)]
    function = b"\x40\1\1a" + uleb(40) + b"\1\0"
    wasm = component((7, vector([*doubling, function])), (10, vector([b"\0\1f\1" + uleb(41)])))
    (found,) = read_component(wasm).imports
    assert isinstance(found.type, Unsupported)
    assert "types, more than 10000" in found.type.what


def test_a_large_component_is_read_in_small_steps() -> None:
    calls = 0

    def breathe() -> None:
        nonlocal calls
        calls += 1

    read_component(component((7, vector([b"\x7d"] * 20_000))), breathe)
    assert calls >= 20_000 // 256


def read_or_refuse(wasm: bytes) -> None:
    with contextlib.suppress(MalformedModuleError, ExcessiveModuleError):
        read_component(wasm)


MADE = wat(SHAPES)
ENGINE = wasmtime.Engine()


def test_every_truncation_is_refused_or_read() -> None:
    for length in range(0, len(MADE), 7):
        read_or_refuse(MADE[:length])


@tries(80)
@given(st.data())
def test_mutated_components(data: st.DataObject) -> None:
    """Damage is refused by an error of the reader, or not noticed; nothing else happens."""
    damaged = bytearray(MADE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(8, len(damaged) - 1))
        if data.draw(st.booleans()):
            damaged[at] = data.draw(st.integers(0, 255))
        else:
            length = data.draw(st.integers(1, 8))
            damaged[at : at + length] = data.draw(st.binary(max_size=8))
    read_or_refuse(bytes(damaged))


@tries(8)
@given(st.integers(8, len(MADE) - 1), st.integers(0, 255))
def test_what_wasmtime_takes_is_read(at: int, byte: int) -> None:
    """Nothing that is valid is called damaged."""
    damaged = MADE[:at] + bytes([byte]) + MADE[at + 1 :]
    try:
        wasmtime.component.Component(ENGINE, damaged)
    except wasmtime.WasmtimeError:
        return
    read_component(damaged)


@tries(50)
@given(st.lists(st.tuples(st.integers(0, 12), st.binary(max_size=40)), max_size=6))
def test_random_sections(sections: list[tuple[int, bytes]]) -> None:
    read_or_refuse(component(*sections))


# -- names


NAMES = [
    "demo:shapes/funcs@0.1.2#area",
    "demo:shapes/funcs@0.1.2#name",
    "demo:words/funcs@1.2.0#name",
    "run",
]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("demo:shapes/funcs@0.1.2#area", 0),
        ("area", 0),
        ("funcs#area", 0),
        ("demo:shapes/funcs#area", 0),
        ("demo:shapes/funcs@0.1#name", 1),
        ("demo:shapes/funcs@0.1.9#name", 1),
        ("demo:words/funcs@1#name", 2),
        ("demo:words/funcs@1.0.0#name", 2),
        ("run", 3),
    ],
)
def test_an_export_is_found_by_a_part_of_its_name(wanted: str, found: int) -> None:
    assert find_export(NAMES, wanted) == NAMES[found]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("name", f"'name' may be {NAMES[1]} or {NAMES[2]}: give more of the name"),
        ("funcs#name", "may be"),
        ("aera", "it exports no function 'aera', but demo:shapes/funcs@0.1.2#area, "),
        ("aera", "; did you mean demo:shapes/funcs@0.1.2#area?"),
        ("demo:shapes/funcs@0.2#area", "exports no function"),
        ("shapes/funcs#area", "exports no function"),
        ("", "exports no function ''"),
    ],
)
def test_candidates_are_listed(wanted: str, message: str) -> None:
    with pytest.raises(ExportMatchError) as caught:
        find_export(NAMES, wanted)
    assert message in str(caught.value)


def test_the_very_version_is_taken_before_compatible_ones() -> None:
    """With several compatible ones and without that one, the name may mean any of them."""
    names = ["a:b/one@1.0.0#f", "a:b/one@1.3.0#f", "c:d/two@1.0.0#f"]
    assert find_export(names, "one@1.0.0#f") == names[0]
    assert find_export(names, "a:b/one@1.3.0#f") == find_export(names, "one@1.3.0#f") == names[1]
    with pytest.raises(ExportMatchError, match=r"may be a:b/one@1\.0\.0#f or a:b/one@1\.3\.0#f: "):
        find_export(names, "one@1#f")
    interfaces = [name.partition("#")[0] for name in names]
    assert find_interface(interfaces, "one@1.0.0") == interfaces[0]
    with pytest.raises(ExportMatchError, match="may be"):
        find_interface(["a:b/one@1.0.0", "c:d/one@1.0.0"], "one@1.0.0")


def test_an_interface_is_found_likewise() -> None:
    names = [name.rpartition("#")[0] for name in NAMES[:3]]
    assert find_interface(names, "demo:shapes/funcs") == "demo:shapes/funcs@0.1.2"
    assert find_interface(names, names[2]) == names[2]
    with pytest.raises(ExportMatchError, match="may be"):
        find_interface(names, "funcs")
    with pytest.raises(ExportMatchError, match="exports no interface 'x', but demo:shapes"):
        find_interface(names, "x")


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("0.1.0", "0.1.0", True),
        ("0.1.3", "0.1.0", True),
        ("0.1.0", "0.1.3", True),
        ("0.2.0", "0.1.0", False),
        ("0.0.1", "0.0.2", False),
        ("1.4.0", "1.2.9", True),
        ("2.0.0", "1.2.9", False),
        ("1.4.0", "1", True),
        ("0.1.4", "0.1", True),
        ("0.2.4", "0", True),
        ("1.0.0-rc1", "1.0.0", False),
        ("1.0.0-rc1", "1.0.0-rc1", True),
        ("", "1.0.0", False),
        ("abc", "1", False),
    ],
)
def test_compatible_versions(version: str, wanted: str, fits: bool) -> None:
    assert is_compatible(version, wanted) is fits


def test_versions_may_have_any_number_of_digits() -> None:
    """Python makes no number of so many."""
    digits = "1" + "0" * 5000
    assert is_compatible(f"{digits}.2", f"{digits}.1")
    assert not is_compatible(f"{digits}.2", f"{digits}1.2")


def test_a_message_does_not_grow_with_the_component() -> None:
    names = [f"a:b/c#{'x' * 10_000}{number}" for number in range(1000)]
    with pytest.raises(ExportMatchError) as caught:
        find_export(names, "y\n")
    assert len(str(caught.value)) < 3000
    assert "\n" not in str(caught.value)
