"""Conversion of bytes and text, for the ABIs whose values are in a guest's memory as such."""

from __future__ import annotations

from contextlib import ExitStack

from .._core.buffers import flat
from .._core.errors import AbiError
from .._core.tally import BYTES_SIZE, Tally, text_size
from .base import Value
from .plain import shown

BUFFERS = ("bytes", "str")
"""Names of the types."""


def lower_buffer(place: str, name: str, value: Value, views: ExitStack) -> bytes | memoryview:
    """Return the bytes of a value, or a view of them; only text is copied.

    Args:
        place: name of the value, for messages.
        name: type of the value, one of `BUFFERS`.
        value: the value.
        views: closes the view once it is not used any more.

    Raises:
        TypeError, ValueError, OverflowError: the value does not fit its type.
    """
    data: bytes | memoryview
    if name == "str":
        if not isinstance(value, str):
            raise TypeError(f"{place}: str takes a str, got {shown(value)}")
        try:
            data = str.encode(value)
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{place}: str has no UTF-8 for {shown(value)}: {error.reason}"
            ) from None
    else:
        try:
            view = views.enter_context(memoryview(value))
        except TypeError:
            raise TypeError(f"{place}: bytes takes bytes or a buffer, got {shown(value)}") from None
        data = views.enter_context(flat(view))
    if len(data) >= 1 << 31:
        raise OverflowError(f"{place}: {name} of {len(data)} bytes is too large")
    return data


def lift_buffer(got: str, name: str, data: bytes, tally: Tally) -> Value:
    """Return the Python value of a guest's bytes, which are counted.

    Args:
        got: beginning of messages.
        name: type of the value, one of `BUFFERS`.
        data: the bytes.
        tally: counts the value.

    Raises:
        AbiError: a text is not UTF-8.
        ResultTooLargeError: the value would exceed `max_result_size`.
    """
    if name == "bytes":
        tally.add_made(BYTES_SIZE + len(data), 1)
        return data
    return lift_text(f"{got} what is", data, tally)


def lift_text(got: str, data: bytes, tally: Tally) -> str:
    """Return the text of a guest's bytes, which is counted.

    Args:
        got: beginning of the message of an error.
        data: the bytes.
        tally: counts the text.

    Raises:
        AbiError: it is not UTF-8.
        ResultTooLargeError: the text would exceed `max_result_size`.
    """
    tally.add_made(text_size(data), 1)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        problem = str(error)
    # Not in the handler: that error refers to all of the data.
    raise AbiError(f"{got} not UTF-8: {problem}")
