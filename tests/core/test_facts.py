"""Frozen values whose methods are written once."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any, ClassVar

import pytest

from trio_wasmcache._core.events import Fact


class Measured(Fact):
    unit: ClassVar[str] = "bytes"
    size: int
    limit: int | None = None


class Named(Measured):
    unit = "pages"
    name: str


def test_fields_follow_those_of_the_base() -> None:
    """In the order of the text, without class variables."""
    assert Named.field_names == ("size", "limit", "name")
    made = Named(name="a", size=3)
    assert made.fields() == {"size": 3, "limit": None, "name": "a"}
    assert list(made.fields()) == ["size", "limit", "name"]
    assert repr(made) == "Named(size=3, limit=None, name='a')"
    assert made == Named.of((3, None, "a"))
    with pytest.raises(ValueError, match="shorter"):
        Named.of((3, None))


def test_a_default_and_the_same_value_are_equal() -> None:
    """Wherever the value is kept; facts of different kinds are not."""
    assert Measured(size=3) == Measured(size=3, limit=None)
    assert hash(Measured(size=3)) == hash(Measured(size=3, limit=None))
    assert Measured(size=3) != Measured(size=3, limit=4)
    assert Measured(size=3) != Named(size=3, name="a")
    assert Measured(size=3) != 3


@pytest.mark.parametrize("fields", [{}, {"limit": 1}, {"size": 1, "unit": "pages"}])
def test_it_has_all_fields_and_no_others(fields: dict[str, Any]) -> None:
    """Like any call with keywords."""
    with pytest.raises(TypeError, match=re.escape("Measured: missing [")):
        Measured(**fields)
    with pytest.raises(TypeError, match=re.escape("Measured: missing [], unknown ['more']")):
        Measured(size=1).changed(more=2)


def test_it_is_frozen() -> None:
    """What has happened does not change; there is another fact with a change."""
    made = Measured(size=1)
    with pytest.raises(AttributeError, match="Measured is frozen"):
        made.size = 2  # type: ignore[misc] # so says the type checker
    with pytest.raises(AttributeError, match="Measured is frozen"):
        del made.size
    assert made.changed(limit=2) == Measured(size=1, limit=2)
    assert made == Measured(size=1)


def test_it_can_be_copied_and_pickled() -> None:
    """As values can."""
    made = Named(size=1, name="a")
    assert copy.copy(made) == copy.deepcopy(made) == pickle.loads(pickle.dumps(made)) == made
