"""`WasmUDF`: a function as a value, which engines pickle, and call with columns or batches."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, final

from attrs import field, frozen

from .._abi.assemblyscript import AssemblyScriptAbi
from .._abi.buffer import BufferAbi
from .._abi.extism import ExtismAbi
from .._abi.names import AnyAbi
from .._abi.scylla import ScyllaAbi
from .._batch.failures import KEPT, check_options
from .._cache.options import Wasm
from .._core.config import CacheConfig
from .._core.errors import SignatureError
from .._core.keys import INFERRED, MAX_NAME_LENGTH, check_name, normalise_types
from .._core.text import listed, printable, quoted, shown
from .._core.wasm.formats import is_component
from .._core.wasm.isolation import Isolation
from .._core.wasm.reader import HEADER
from .._engine.wasmtime.text import to_wasm
from .._outside import check_row_errors, check_timeout
from .._pool.components import take_apart
from .._pool.registration import Declaration, Missing, declare, read_file
from .._public import public_in_udf
from .._runtime.host import Importable
from .._runtime.prepare import Prepare
from .._runtime.wasi_config import Wasi
from ..blocking import BlockingCache, BlockingFunction
from . import process
from .columns import for_map, kind_of, may_have_nulls, result_of
from .frames import check_once, frame_of
from .identity import digest_of, said

# Default of types, which have another type for users.
_LEFT_OUT: Final[Any] = INFERRED
# Hexadecimal digits of a SHA-256.
DIGITS: Final = 64
# Characters of a name, to which an "@" and a digest are added.
MAX_NAME: Final = MAX_NAME_LENGTH - 1 - DIGITS
# Number of instances at most, as far as it can be checked without the worker's configuration.
ENOUGH: Final = 2**14
# ABIs whose names of types mean the same numbers as pyarrow's.
KNOWN: Final = (AssemblyScriptAbi, BufferAbi, ExtismAbi, ScyllaAbi)


def _wasm(given: object) -> Wasm:
    if isinstance(given, (bytes, bytearray, memoryview)):
        return bytes(given)
    if isinstance(given, str):
        return str.__str__(given)
    if isinstance(given, os.PathLike):
        # Workers have other current folders.
        return Path(os.path.abspath(os.fsdecode(given)))  # noqa: PTH100 -- keeps links
    raise TypeError(
        "wasm must be bytes, WebAssembly text (a str), or a path to a file (pathlib.Path), got "
        f"{shown(given)}"
    )


def _imports(
    given: Mapping[str, Mapping[str, Importable]] | None,
) -> Mapping[str, Mapping[str, Importable]] | None:
    if not isinstance(given, Mapping):
        return given  # None, or refused later
    return MappingProxyType(
        {
            module: MappingProxyType(dict(items)) if isinstance(items, Mapping) else items
            for module, items in given.items()
        }
    )


def _calls(given: Sequence[Prepare]) -> Sequence[Prepare]:
    return tuple(given) if isinstance(given, list) else given


def _folder(given: str | os.PathLike[str] | None) -> str | None:
    if given is None:
        return None
    if not isinstance(given, (str, os.PathLike)) or not os.fspath(given):
        raise TypeError(f"log_dir must be a path or None, got {shown(given)}")
    return os.path.abspath(os.fsdecode(given))  # noqa: PTH100 -- keeps links


@public_in_udf
@final
@frozen(eq=False, slots=False, repr=False)
class WasmUDF:
    """A function for data frames, databases and clusters: it is called with whole columns.

    .. code-block::

        add = WasmUDF("add", Path("add.wasm"), args=("i64", "i64"), returns="i64")
        add(array, array)  # columns in, column out
        table = add.on("a", "b", into="c")(table)  # batch in, batch out
        frame.select(polars.map_batches(["a", "b"], add.polars, return_dtype=polars.Int64))
        database.create_function("wasm_add", add, ["BIGINT", "BIGINT"], "BIGINT", type="arrow")

    With ``on_error="null"`` or ``called_on_null=True``, DuckDB's line takes
    ``null_handling="special"``, too.

    It is a value: it does not change, equal ones are interchangeable, and it is pickled as its
    parameters. Unpickling calls this constructor, which checks them, and nothing else. Pickles
    themselves must be trusted, as with all of Python's.

    Each process that calls it has a cache, shared by all with the same `config` and `log_dir`. The
    first call opens it and compiles the module; the end of the process closes it. After a fork,
    the child opens its own. It can be called in any thread, by several at the same time.

    Versions of a function that differ in anything are registered side by side, under a name with
    the beginning of a digest, such as ``add@1f0c35a8``.

    Raises:
        TypeError, ValueError: a parameter has a bad type or value, a host function can't be
            imported by name, or the module does not have the digest; or types are left out for a
            core module.
        SignatureError: a type is not the name of a type; or types are left out for a function of a
            component that can't be used.
        ExportError, InvalidModuleError, ModuleTooLargeError: types are left out, and the component
            has no such function, or can't be read.
        OSError: `wasm` is a path without a `digest`, and can't be read.
    """

    name: str
    """Name of the function."""
    wasm: Wasm = field(converter=_wasm)
    """Bytes of a module, WebAssembly text, or the path of a file with either. A path is pickled
    without the file, which must be at the same place on each worker."""
    args: Sequence[str] = field(default=_LEFT_OUT, kw_only=True)
    """Types of the arguments, as for `InstanceCache.register`. For a component, they may be left
    out: it is read for them."""
    returns: str | Sequence[str] = field(default=_LEFT_OUT, kw_only=True)
    """Type of the result; several types if there is a column for each of several results. It may be
    left out for a component."""
    digest: str = field(default="", kw_only=True)
    """SHA-256 of the bytes, of the UTF-8 of the text, or of the file, in hexadecimal. It is checked
    whenever a process reads the file. By default, it is that of what `wasm` is now."""
    config: CacheConfig | None = field(default=None, kw_only=True)
    """Limits of the cache in each process. None: those of ``CacheConfig()`` there."""
    on_error: Literal["raise", "null"] = field(default="raise", kw_only=True)
    """Outcome of a row in which the guest fails or whose values do not fit: ``"raise"`` ends the
    batch with the error, ``"null"`` makes its result null. See `Lease.map`."""
    max_errors: int = field(default=KEPT, kw_only=True)
    """Number of rows of a batch that may fail; the error of one more is raised; from 0."""
    timeout: float | None = field(default=None, kw_only=True)
    """Seconds that a batch may take, the time of waiting for an instance included, before its guest
    is stopped and it raises `TimeoutError`; from 0. None: only `total_fuel` limits each row."""
    cast: bool = field(default=True, kw_only=True)
    """Whether columns of other numbers than those declared are converted, if each value stays the
    same; a float may lose digits."""
    log_dir: str | None = field(default=None, converter=_folder, kw_only=True)
    """Folder for the log: each process writes a file of its own there,
    ``wasmcache-HOST-PID.jsonl``. None: there is no log."""
    export: str | None = field(default=None, kw_only=True)
    """Name of the exported function. None: the same as `name`."""
    abi: AnyAbi | None = field(default=None, kw_only=True)
    """Convention by which values cross. None: chosen by the module's exports."""
    called_on_null: bool = field(default=False, kw_only=True)
    """Whether the function is called if an argument is null."""
    imports: Mapping[str, Mapping[str, Importable]] | None = field(
        default=None, converter=_imports, kw_only=True
    )
    """Imports of the module, as for `InstanceCache.register`. Host functions must be importable:
    they are pickled by name, and a worker uses its own function of that name. None: none."""
    wasi: Wasi | None = field(default=None, kw_only=True)
    """Grants through WASI. None: those of `Wasi()`."""
    prepare: Sequence[Prepare] = field(default=(), converter=_calls, kw_only=True)
    """Calls to make once, with whose effects each instance begins."""
    missing: Missing = field(default="error", kw_only=True)
    """Treatment of imported functions that nobody provides, as for `InstanceCache.register`."""
    concurrency: int | None = field(default=None, kw_only=True)
    """Number of instances that may run at the same time in a process. None: the number of CPUs
    there, and at least 2."""
    isolation: Isolation = field(default="reuse", kw_only=True)
    """Traces that a batch may find of the one before it, as for `InstanceCache.register`."""
    _token: str = field(init=False)
    _shared: process.Declared = field(init=False)

    def __attrs_post_init__(self) -> None:
        if _LEFT_OUT in (self.args, self.returns):
            self._set("digest", self._checked_digest())
            self._infer_types()
            declared = self._checked()
        else:
            declared = self._checked()
            self._set("digest", self._checked_digest())
        self._set("args", declared.key.args)
        self._set("returns", declared.returns)
        fields = said(self)
        fields.pop("wasm")
        cache = [fields.pop(name, None) for name in ("config", "log_dir")]
        call = [fields.pop(name, None) for name in ("on_error", "max_errors", "timeout", "cast")]
        place = str(self.wasm) if isinstance(self.wasm, Path) else None
        try:
            keys = digest_of(cache), digest_of(fields)
        except TypeError as error:
            raise TypeError(f"{declared.key}: its declaration {error}") from None
        # Equal ones have the same token; those that share a function, or a cache, the same keys.
        self._set("_token", digest_of(*keys, call, place))
        shared = process.Declared(
            name=self.name,
            config=self.config,
            log_dir=self.log_dir,
            cache_key=keys[0],
            function_key=keys[1],
            register=self._register,
        )
        self._set("_shared", shared)
        _look_like_function(self, self.name, len(self.args))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _checked(self) -> Declaration:
        """Check all parameters but the digest, and return what is registered."""
        declared = declare(
            name=self.name,
            args=self.args,
            returns=self.returns,
            export=self.export,
            abi=self.abi,
            called_on_null=self.called_on_null,
            imports=self.imports,
            wasi=self.wasi,
            prepare=self.prepare,
            concurrency=1 if self.concurrency is None else self.concurrency,
            isolation=self.isolation,
            missing=self.missing,
            replace=False,
            max_instances=ENOUGH,
        )
        if len(self.name) > MAX_NAME:
            raise ValueError(
                f"name must have at most {MAX_NAME} characters, got {len(self.name)}: a digest is "
                "added to it"
            )
        if not declared.results:
            raise ValueError(f"{declared.key}: returns must be one type or several, got none")
        if not isinstance(declared.returns, str) and len(declared.results) == 1:
            raise ValueError(
                f"{declared.key}: returns must be the type itself for one column, got "
                f"{self.returns!r:.100}: a sequence is for several"
            )
        check_options(self.on_error, self.max_errors)
        check_timeout(self.timeout)
        if not isinstance(self.cast, bool):
            raise TypeError(f"{declared.key}: cast must be True or False, got {shown(self.cast)}")
        config = self.config
        if config is not None:
            if not isinstance(config, CacheConfig):
                raise TypeError(
                    f"{declared.key}: config must be a CacheConfig, got {shown(config)}"
                )
            fields = said(config)
            if "cache_dir" in fields:
                fields["cache_dir"] = os.fsdecode(fields["cache_dir"])  # which can be pickled
            self._set("config", CacheConfig(**fields))  # checked again, as it may be unpickled
        return declared

    def _infer_types(self) -> None:
        """Set the types that were left out to those that the component says."""
        name = check_name(self.name)
        config, export = self.config, self.export
        limit = (config if isinstance(config, CacheConfig) else CacheConfig()).max_wasm_size
        data = self._read(self.wasm, limit) if isinstance(self.wasm, Path) else self.wasm
        wasm = to_wasm(data) if isinstance(data, str) else bytes(data)  # type: ignore[arg-type]
        if not is_component(wasm):
            raise TypeError(
                f"{name}: args or returns was left out, but only components say the types of "
                'their functions, and this is a core module: give them, such as args=("i64",), '
                'returns="i64"'
            )
        _, component = take_apart(name, wasm, limit, lambda: None)
        found = component.find(name, export if isinstance(export, str) else name)
        if self.args is _LEFT_OUT:
            self._set("args", found.args)
        elif normalise_types(self.args, f"{name}: args") != found.args:
            raise SignatureError(
                f"{name}: the component has {printable(found.wit, 500)}: leave out args, too, or "
                f"give args={quoted(found.args)}"
            )
        if self.returns is _LEFT_OUT:
            self._set("returns", found.returns)

    def _checked_digest(self) -> str:
        given: object = self.digest
        if not isinstance(given, str):
            raise TypeError(f"{self.name}: digest must be a str, got {shown(given)}")
        given = given.lower()
        if given and (len(given) != DIGITS or not set(given) <= set("0123456789abcdef")):
            raise ValueError(
                f"{self.name}: digest must be the {DIGITS} hexadecimal digits of a SHA-256, got "
                f"{shown(given)}"
            )
        if isinstance(self.wasm, Path):
            if given:
                return given  # it is checked by each process that reads the file
            with self.wasm.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        data = self.wasm.encode() if isinstance(self.wasm, str) else self.wasm
        assert isinstance(data, bytes)
        digest = hashlib.sha256(data).hexdigest()
        if given not in ("", digest):
            raise ValueError(
                f"{self.name}: the module has the digest {digest}, and not the given one, {given}"
            )
        return digest

    # -- as a value

    def __eq__(self, other: object) -> bool:
        """Return whether the other one is a `WasmUDF` with the same parameters and module."""
        return self._token == other._token if isinstance(other, WasmUDF) else NotImplemented

    def __hash__(self) -> int:
        """Return a number that equal ones have in common."""
        return hash(self._token)

    def __repr__(self) -> str:
        fields = said(self)
        name, _, _ = (fields.pop(one) for one in ("name", "wasm", "digest"))
        wasm = str(self.wasm) if isinstance(self.wasm, Path) else f"<{self.digest[:8]}>"
        more = "".join(f", {field}={shown(value)}" for field, value in fields.items())
        return f"WasmUDF({name!r}, {wasm}{more})"

    def __dask_tokenize__(self) -> str:
        """Return a digest, as Dask asks for it: the same in each process."""
        return self._token

    def __reduce__(self) -> tuple[Callable[..., WasmUDF], tuple[dict[str, Any]]]:
        """Return how it is pickled: its constructor, and the parameters that have no default."""
        fields = said(self)
        if self.config is not None:
            fields["config"] = said(self.config)
        if self.imports is not None:
            fields["imports"] = {module: dict(items) for module, items in self.imports.items()}
        return _unpickled, (fields,)

    # -- calls

    def __call__(self, *columns: Any) -> Any:
        """Call the function for every row of some columns.

        Args:
            *columns: a column for each argument: of pyarrow, NumPy, pandas or polars, anything in
                Arrow's format, a buffer, or a list; or one value for all rows.

        Returns:
            A column of the same kind as the first one that is no single value: see `map`.

        Raises:
            Exception: the errors of `map`.
        """
        return self.map(columns)

    def map(
        self,
        columns: Sequence[Any],
        *,
        rows: int | None = None,
        row_errors: dict[int, Exception] | None = None,
        like: Any = None,
    ) -> Any:
        """Call the function for every row of some columns, with more choice.

        Args:
            columns: a column for each argument, as when it is called.
            rows: number of rows; None: the length of the columns.
            row_errors: dict to which the errors of failed rows are added, by row, at most 1,000,
                with ``on_error="null"``; None: they are dropped.
            like: column whose kind the result is to be of; with pandas, also its index and its
                name. None: the first of the columns that is no single value.

        Returns:
            A column; several in a tuple if there are several results. A null is a None in a list.
            An array of NumPy's with nulls is one of objects, or of floats with a NaN. A Series of
            pandas has a type with nulls wherever the types of the columns have them.

        Raises:
            TimeoutError: it did not end within `timeout`.
            RuntimeError: a host function called it, in the cache's own thread; or it needs a cache
                as the program ends; or a signal handler or a finalizer called it while its thread
                was registering it.
            ValueError: the file has another digest.
            TypeError: there are too many columns, or too few.
            Exception: the errors of `BlockingCache.register`, for the first call in a process, and
                of `BlockingFunction.map`.
        """
        if len(columns) != len(self.args):
            noun = "column" if len(self.args) == 1 else "columns"
            raise TypeError(
                f"{self.name}({listed(self.args)}) takes {len(self.args)} {noun}, one for each "
                f"argument, got {len(columns)}"
            )
        check_row_errors(row_errors)
        kinds = [kind_of(column) for column in columns]
        if like is None:
            like = next((c for c, k in zip(columns, kinds, strict=True) if k != "scalar"), [])
        # The names of an ABI of the application's own may mean anything.
        cast = self.cast and not _is_own(self.abi)
        given = [
            for_map(column, kind, name, cast=cast)
            for column, kind, name in zip(columns, kinds, self.args, strict=True)
        ]
        nulls = self.on_error == "null" or any(map(may_have_nulls, columns, kinds))

        def call(function: BlockingFunction[Any]) -> Any:
            return function.map(
                given,
                rows=rows,
                on_error=self.on_error,
                max_errors=self.max_errors,
                row_errors=row_errors,
                timeout=self.timeout,
            )

        result = process.run(self._shared, f"map of {self.name}", call)
        kind = kind_of(like)
        if isinstance(self.returns, str):
            return result_of(result, kind, self.returns, like, nulls=nulls)
        return tuple(
            result_of(one, kind, name, like, nulls=nulls)
            for one, name in zip(result, self.returns, strict=True)
        )

    def polars(self, series: Any) -> Any:
        """Call the function for the rows of polars' Series: for its `map_batches`.

        Args:
            series: a sequence of Series, as of ``polars.map_batches``; or one, as of
                ``Expr.map_batches``, which may be of structs with a field for each argument. A
                Series of one row stands for all rows.

        Returns:
            A Series with the name of the first one.

        Raises:
            TypeError: there is no Series.
            Exception: as when it is called with columns.
        """
        if isinstance(series, (list, tuple)) and not series:
            raise TypeError(f"polars: {self.name} takes one Series at least, got none")
        first = series[0] if isinstance(series, (list, tuple)) else series
        if first is series:
            structs = bool(getattr(series.dtype, "fields", None))
            series = series.struct.unnest().get_columns() if structs else [series]
        lengths = {len(one) for one in series}
        if len(lengths) > 1:
            series = [one[0] if len(one) == 1 else one for one in series]
        return self.map(series, rows=max(lengths - {1}, default=1), like=first)

    def on(self, *names: str, into: str | Sequence[str], error: str | None = None) -> BatchUDF:
        """Return a function of a batch, which adds the results to it as a column.

        Args:
            *names: name of a column for each argument.
            into: name of the column for the result, or a sequence of names if there are several;
                a column of that name is replaced.
            error: name of a column for the errors of rows, as text, which is null where there is
                none. It takes ``on_error="null"``, and a `max_errors` of at most 1,000. None: there
                is no such column.

        Raises:
            TypeError: there are too many names, or too few, or one is no str.
            ValueError: `error` can't be had, or a name is given twice.
        """
        return BatchUDF(self, names, into, error)

    def close(self) -> None:
        """Remove the function from this process; the last one of a cache closes it.

        Functions that share the cache, and calls that are under way in other threads, are not
        disturbed. A later call registers it again. The end of the process does it, too.

        Raises:
            RuntimeError: a host function called it, in the cache's own thread; or a signal handler
                or a finalizer while its thread was registering it.
        """
        process.forget(self._shared, f"close of {self.name}")

    def _register(self, cache: BlockingCache, name: str) -> BlockingFunction[Any]:
        """Register it in a cache of this process."""
        wasm, config = self.wasm, cache.config
        if isinstance(wasm, Path):
            wasm = self._read(wasm, config.max_wasm_size)
        concurrency = self.concurrency
        if concurrency is None:
            concurrency = min(max(2, os.cpu_count() or 1), config.max_instances)
        return cache.register(
            name,
            wasm,
            args=self.args,
            returns=self.returns,
            export=self.name if self.export is None else self.export,
            abi=self.abi,
            called_on_null=self.called_on_null,
            imports=self.imports,
            wasi=self.wasi,
            prepare=self.prepare,
            missing=self.missing,
            concurrency=concurrency,
            isolation=self.isolation,
        )

    def _read(self, path: Path, limit: int) -> Wasm:
        try:
            data = read_file(self.name, path, limit)
        except OSError as error:
            error.add_note(f"while the module of {self.name} was being read")
            raise
        digest = hashlib.sha256(data).hexdigest()
        if digest != self.digest:
            raise ValueError(
                f"{self.name}: the file {shown(str(path))} has the digest {digest}, and not the "
                f"declared one, {self.digest}: this machine has another version of it"
            )
        text = data[: len(HEADER)] != HEADER and data.lstrip()[:1] in (b"(", b";")
        return data.decode() if text else data


def _unpickled(fields: dict[str, Any]) -> WasmUDF:
    """Make one from the parameters with which it was pickled."""
    fields = dict(fields)
    name, wasm, config = fields.pop("name"), fields.pop("wasm"), fields.pop("config", None)
    if isinstance(config, dict):
        config = CacheConfig(**config)
    return WasmUDF(name, wasm, config=config, **fields)


def _is_own(abi: AnyAbi | None) -> bool:
    """Return whether an ABI is the application's own."""
    return abi is not None and not isinstance(abi, str) and type(abi) not in KNOWN


def _look_like_function(thing: object, name: str, parameters: int) -> None:
    """Give a callable object what engines look for: they show the name, and count parameters."""
    only = inspect.Parameter.POSITIONAL_ONLY
    names = [f"column_{number}" for number in range(1, parameters + 1)]
    signature = inspect.Signature([inspect.Parameter(one, only) for one in names])
    for attribute in ("__name__", "__qualname__"):
        object.__setattr__(thing, attribute, name)
    object.__setattr__(thing, "__signature__", signature)


@public_in_udf
@final
@frozen(eq=False, slots=False)
class BatchUDF:
    """A function of a batch, which returns it with a column of results: see `WasmUDF.on`.

    .. code-block::

        table = add.on("a", "b", into="c", error="c_error")(table)

    Use `WasmUDF.on` to make one. It is a value, as the `WasmUDF` is.
    """

    udf: WasmUDF
    """Function that is called."""
    names: tuple[str, ...]
    """Name of a column for each of its arguments."""
    into: str | Sequence[str]
    """Name of the column for its result, or a tuple of names."""
    error: str | None = None
    """Name of the column for the errors of rows. None: there is none."""

    def __attrs_post_init__(self) -> None:
        udf, into = self.udf, self.into
        if not isinstance(into, (str, Sequence)):
            raise TypeError(
                f"on: into must be the name of a column, or a sequence of names, got {shown(into)}"
            )
        results = [into] if isinstance(into, str) else [*into]
        if not isinstance(into, str):
            object.__setattr__(self, "into", tuple(results))
        for name in (*self.names, *results, "" if self.error is None else self.error):
            if not isinstance(name, str):
                raise TypeError(f"on: names of columns must be str, got {shown(name)}")
        if len(self.names) != len(udf.args):
            raise TypeError(
                f"on: {udf.name}({listed(udf.args)}) takes the names of {len(udf.args)} columns, "
                f"got {len(self.names)}"
            )
        expected = 1 if isinstance(udf.returns, str) else len(udf.returns)
        if isinstance(into, str) is not isinstance(udf.returns, str) or len(results) != expected:
            noun = "the name of a column" if isinstance(udf.returns, str) else f"{expected} names"
            raise TypeError(
                f"on: into must be {noun} for what {udf.name} returns, got {into!r:.100}"
            )
        added = [*results, *([] if self.error is None else [self.error])]
        if len(set(added)) < len(added):
            raise ValueError(f"on: a name is given twice: {listed(added)}")
        if self.error is not None and udf.on_error != "null":
            raise ValueError(
                f'on: error= takes a WasmUDF with on_error="null"; with {udf.on_error!r}, the '
                "first error ends the batch"
            )
        if self.error is not None and udf.max_errors > KEPT:
            raise ValueError(
                f"on: error= takes max_errors of at most {KEPT}, got {udf.max_errors}: of more "
                "rows in a batch, no messages are kept"
            )
        _look_like_function(self, udf.name, 1)

    def __eq__(self, other: object) -> bool:
        """Return whether the other one is a `BatchUDF` of an equal function, with equal names."""
        return self._values() == other._values() if isinstance(other, BatchUDF) else NotImplemented

    def __hash__(self) -> int:
        """Return a number that equal ones have in common."""
        return hash(self._values())

    def __dask_tokenize__(self) -> object:
        """Return a value, as Dask asks for it: the same in each process."""
        return self.udf.__dask_tokenize__(), self.names, self.into, self.error

    def __reduce__(self) -> tuple[type[BatchUDF], tuple[Any, ...]]:
        """Return how it is pickled: its constructor, and its fields."""
        return BatchUDF, self._values()

    def _values(self) -> tuple[Any, ...]:
        return self.udf, self.names, self.into, self.error

    def __call__(self, batch: Any) -> Any:
        """Call the function for every row of a batch.

        Args:
            batch: an Arrow table or record batch, a data frame of pandas or polars, or a dict of
                NumPy arrays. Anything else in Arrow's format becomes a table.

        Returns:
            A batch of the same kind, with the results; the one given is not changed.

        Raises:
            KeyError: it has no column of a name.
            ValueError: it has several columns of a name.
            TypeError: it is no batch.
            Exception: the errors of a `WasmUDF` that is called with columns.
        """
        frame, into = frame_of(batch), self.into
        results = [into] if isinstance(into, str) else into
        check_once(frame, [*self.names, *results, self.error])
        columns = [frame.column(name) for name in self.names]
        like = frame.like(columns)
        errors: dict[int, Exception] | None = None if self.error is None else {}
        rows = None if columns else frame.rows
        result = self.udf.map(columns, rows=rows, row_errors=errors, like=like)
        added = {into: result} if isinstance(into, str) else dict(zip(into, result, strict=True))
        if self.error is not None and errors is not None:
            texts = {row: _text(error) for row, error in errors.items()}
            added[self.error] = frame.texts(texts)
        return frame.add(added)


def _text(error: Exception) -> str:
    """Return an error as a column has it: its type, and the first line of its message."""
    return f"{type(error).__name__}: {error}".split("\n", 1)[0]
