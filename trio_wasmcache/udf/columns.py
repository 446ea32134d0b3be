"""Columns of data frames and arrays: what `map` takes for them, and results in their kind.

No library is imported that the column is not of, but for pyarrow, which `map` needs for all columns
in Arrow's format.

A number of another type is converted if it keeps its value. Whole columns are; one with a value
that does not keep it goes to `map` as Python values, which says in which row, or makes that null.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final, Literal, TypeAlias

from .._batch.arrow import FACTORIES, is_arrow

Kind: TypeAlias = Literal["arrow", "numpy", "pandas", "polars", "list", "buffer", "scalar"]
"""What a column is, and its result is to be."""

# {type of a function: name of NumPy's type}, of numbers and bools.
NUMPY: Final[dict[str, str]] = {
    name: {"float": "float32", "double": "float64", "bool_": "bool"}.get(factory, factory)
    for name, factory in FACTORIES.items()
    if factory not in ("string", "binary")
}


def kind_of(column: Any) -> Kind:
    """Return what a column is."""
    for library, name, kind in _CLASSES:
        if library in sys.modules and isinstance(column, getattr(sys.modules[library], name)):
            return kind
    if is_arrow(column):
        return "arrow"
    if isinstance(column, (list, tuple, range)):
        return "list"
    if isinstance(column, (str, bytes, bytearray)):
        return "scalar"
    try:
        memoryview(column)
    except (TypeError, ValueError):
        return "scalar"
    return "buffer"


_CLASSES: Final[tuple[tuple[str, str, Kind], ...]] = (
    ("pyarrow", "Array", "arrow"),
    ("pyarrow", "ChunkedArray", "arrow"),
    ("numpy", "ndarray", "numpy"),
    ("numpy", "generic", "scalar"),  # which is a buffer, too
    ("polars", "Series", "polars"),
    ("pandas", "Series", "pandas"),
)


def pyarrow() -> Any:
    """Return pyarrow, which has no types.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise ImportError(
            "columns in Arrow's format take pyarrow: pip install 'trio-wasmcache[arrow]'"
        ) from error


# -- columns in


def may_have_nulls(column: Any, kind: Kind) -> bool:
    """Return whether a column of that type may have nulls; false if its type does not say."""
    if kind != "pandas":
        return False
    numpys = type(column.dtype).__module__.partition(".")[0] == "numpy"
    return not (numpys and column.dtype.kind in "iub")


def for_map(column: Any, kind: Kind, name: str, *, cast: bool) -> Any:
    """Return what `map` takes for a column.

    Args:
        column: the column.
        kind: what it is.
        name: type of the function's argument.
        cast: whether numbers of other types are converted.
    """
    if kind == "scalar":
        arrow = sys.modules.get("pyarrow")
        return column.as_py() if arrow and isinstance(column, arrow.Scalar) else column
    if kind == "pandas":
        column, kind = _of_pandas(column, name)
    wanted = NUMPY.get(name)
    if kind == "numpy":
        return _of_numpy(column, wanted, cast=cast)
    if kind in ("arrow", "polars") and cast and wanted is not None:
        return _of_arrow(column, name, wanted)
    return column


def _of_pandas(column: Any, name: str) -> tuple[Any, Kind]:
    if not may_have_nulls(column, "pandas"):
        return column.to_numpy(), "numpy"
    if column.dtype != object and name in FACTORIES:
        try:
            # In which a NaN of NumPy's is a null, as it is for pandas.
            return pyarrow().Array.from_pandas(column), "arrow"
        except ImportError:
            pass
    valid = column.notna().tolist()
    values = column.astype(object).tolist()
    return [one if there else None for one, there in zip(values, valid, strict=True)], "list"


def _of_numpy(column: Any, wanted: str | None, *, cast: bool) -> Any:
    numpy = sys.modules["numpy"]
    if column.ndim != 1 or not cast:
        return column
    kind = column.dtype.kind
    if isinstance(column, numpy.ma.MaskedArray) or kind in "OUT":
        return column.tolist()
    if wanted is None or kind not in "iufb":
        return column
    target = numpy.dtype(wanted)
    if column.dtype == target and column.dtype.isnative:
        return column
    if (kind == "b") is not (target.kind == "b") and target.kind == "b":
        return column  # `map` refuses it
    converted = _converted(numpy, column, target)
    return _whole(column.tolist(), target.kind) if converted is None else converted


def _converted(numpy: Any, column: Any, target: Any) -> Any:
    """Return an array of another type with the same values; None if there is none."""
    kind = column.dtype.kind
    if numpy.can_cast(column.dtype, target, "safe") or not column.size:
        return column.astype(target)
    if target.kind in "iu":
        limits = numpy.iinfo(target)
        if kind == "f":
            # The limits are powers of two, as floats; a NaN is not between them.
            fits = (column >= float(limits.min)) & (
                column < float(2 ** int(limits.max).bit_length())
            )
            if not fits.all():
                return None
            converted = column.astype(target)
            return converted if (converted == column).all() else None
        if int(column.min()) < limits.min or int(column.max()) > limits.max:
            return None
        return column.astype(target)
    with numpy.errstate(over="ignore"):
        converted = column.astype(target)
    grown = numpy.isinf(converted)
    if kind == "f":
        grown &= ~numpy.isinf(column)
    return None if grown.any() else converted


def _of_arrow(column: Any, name: str, wanted: str) -> Any:
    pa = pyarrow()
    if not isinstance(column, (pa.Array, pa.ChunkedArray)):
        if hasattr(column, "__arrow_c_stream__"):
            column = pa.chunked_array(column)
        else:
            column = pa.array(column)
    target = getattr(pa, FACTORIES[name])()
    if column.type == target or pa.types.is_null(column.type):
        return column
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    elif pa.types.is_run_end_encoded(kind):
        kind = kind.value_type
        column = importlib.import_module("pyarrow.compute").run_end_decode(column)
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not (kind == target or (wanted != "bool" and (numbers or pa.types.is_boolean(kind)))):
        return column  # `map` refuses it
    try:
        converted = column.cast(target)
    except pa.ArrowInvalid:
        return _whole(column.to_pylist(), "f" if pa.types.is_floating(target) else "i")
    if wanted == "float32" and not pa.types.is_float32(kind):
        compute = importlib.import_module("pyarrow.compute")
        if compute.any(compute.is_inf(converted)).as_py():
            return _whole(column.to_pylist(), "f")
    return converted


def _whole(values: list[Any], kind: str) -> list[Any]:
    """Return Python values as `map` takes them: whole numbers as ints for a column of ints."""
    if kind not in "iu":
        return values
    return [
        int(one) if not isinstance(one, (int, type(None))) and one == one // 1 else one
        for one in values
    ]


# -- results


def result_of(result: Any, kind: Kind, name: str, like: Any, *, nulls: bool) -> Any:
    """Return a result of `map` as a column of some kind.

    Args:
        result: a column as `map` returns it: an Arrow array, a memoryview or a list.
        kind: what it is to be.
        name: type of the function's result.
        like: column that was given, for the name and the index of data frames.
        nulls: whether a result may be null that no argument is.
    """
    if kind == "arrow":
        return _to_arrow(result, name)
    if kind == "numpy":
        return _to_numpy(result, name)
    if kind == "polars":
        return sys.modules["polars"].Series(like.name, _to_arrow(result, name))
    if kind == "pandas":
        return _to_pandas(result, name, like, nulls)
    if kind == "buffer" and not isinstance(result, (list, memoryview)):
        return result.to_pylist()
    return result if kind == "buffer" else _to_list(result)


def _to_list(result: Any) -> list[Any]:
    if isinstance(result, list):
        return result
    values: list[Any] = result.tolist() if isinstance(result, memoryview) else result.to_pylist()
    return values


def _to_arrow(result: Any, name: str) -> Any:
    pa = pyarrow()
    if isinstance(result, pa.Array):
        return result
    factory = FACTORIES.get(name)
    return pa.array(_to_list(result), None if factory is None else getattr(pa, factory)())


def _to_numpy(result: Any, name: str) -> Any:
    numpy = importlib.import_module("numpy")
    wanted = NUMPY.get(name)
    if isinstance(result, memoryview) and wanted is not None:
        return numpy.frombuffer(result, wanted)
    values = _to_list(result)
    if wanted is not None and (wanted.startswith("float") or None not in values):
        return numpy.array(values, wanted)  # a None becomes a NaN
    made = numpy.empty(len(values), object)
    made[:] = values
    return made


# {NumPy's type: pandas' type that has nulls, too}
_NULLABLE: Final = {
    "bool": "boolean",
    **{f"int{bits}": f"Int{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"UInt{bits}" for bits in (8, 16, 32, 64)},
}


def _to_pandas(result: Any, name: str, like: Any, nulls: bool) -> Any:
    # The type depends on those of the arguments, and not on the values: so it is that of all parts
    # of a large frame.
    pandas, wanted = sys.modules["pandas"], NUMPY.get(name)
    values: Any
    if isinstance(like.dtype, pandas.ArrowDtype):
        array = _to_arrow(result, name)
        values = array.to_pandas(types_mapper=pandas.ArrowDtype)
        return values.set_axis(like.index).rename(like.name)
    if wanted is None:
        text = FACTORIES.get(name) == "string"
        values, dtype = _to_list(result), "string" if text else object
    elif nulls and wanted in _NULLABLE:
        values, dtype = _to_list(result), _NULLABLE[wanted]
    else:
        values, dtype = _to_numpy(result, name), wanted
    return pandas.Series(values, like.index, dtype, name=like.name)
