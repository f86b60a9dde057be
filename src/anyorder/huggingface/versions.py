"""What differs between the supported versions of transformers: 5.24 renamed `past_key_values` to `cache`.

A caller may use both names under every version; transformers' own methods get the one that they know.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from transformers import GenerationMixin
from transformers.utils import ModelOutput

from anyorder.errors import UserError

CACHE_NAMES = ("cache", "past_key_values")
"""Of a forward pass's cache, as an argument and in outputs."""

_known = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE_NAME = next(name for name in CACHE_NAMES if name in _known)
"""Of the two, the name that the installed transformers uses."""


def name_cache(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments with the cache, if there is one, under the name that transformers uses.

    Raises:
        UserError: both names are given.
    """
    given = [arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None]
    if len(given) > 1:
        raise UserError("cache and past_key_values are both given, but name the same argument: give one of them.")
    others = {name: value for name, value in arguments.items() if name not in CACHE_NAMES}
    return others | {CACHE_NAME: given[0]} if given else others


def read_by_both_names(output: Any) -> Any:
    """Return an output of transformers whose cache can be read as `cache` and as `past_key_values`.

    Anything but a `ModelOutput` is returned as it is.
    """
    if not isinstance(output, ModelOutput) or isinstance(output, _BothNames) or CACHE_NAME == "cache":
        return output  # from 5.24 on, transformers reads the old name
    return _with_both_names(type(output))(**output)


class _BothNames:
    """Adds the new name to an output class of transformers before 5.24."""

    @property
    def cache(self) -> Any:
        return getattr(self, CACHE_NAME)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(CACHE_NAME if key == "cache" else key)  # type: ignore[misc]


@functools.cache
def _with_both_names(output_class: type) -> type:
    return type(output_class.__name__, (_BothNames, output_class), {})
