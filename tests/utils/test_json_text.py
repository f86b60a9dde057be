"""JSON without Python's infinities."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyorder.utils.json_text import json_text

FINITE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(FINITE, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(VALUES)
def test_what_is_finite_is_as_python_writes_it(value: Any) -> None:
    assert json_text(value, indent=1) == json.dumps(value, ensure_ascii=False, indent=1)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_what_is_not_is_null_wherever_it_is(number: float) -> None:
    assert json.loads(json_text({"a": [1.5, (number,)], "b": {"c": number}})) == {"a": [1.5, [None]], "b": {"c": None}}
