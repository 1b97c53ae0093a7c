"""What a run sets in production besides what the constructors take: constants, silence, and parameters parsed once."""

import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from streams.margin.parameters import RiskParameters


@contextmanager
def with_constants(constants: Mapping[str, Any]) -> Iterator[None]:
    """Run production code with ``constants`` (by dotted name) and without logs.

    Raises:
        LookupError: there is no such constant.
    """
    undo: list[tuple[Any, str, Any]] = []
    for dotted in constants:
        module_name, _, name = dotted.rpartition(".")
        module = importlib.import_module(module_name)
        if name not in vars(module):
            raise LookupError(f"{dotted} is not there any more: tests/simulation must follow")
        undo.append((module, name, getattr(module, name)))
    logged = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        for module, name, _ in undo:
            setattr(module, name, constants[f"{module.__name__}.{name}"])
        yield
    finally:
        for module, name, value in undo:
            setattr(module, name, value)
        logging.disable(logged)


# --- parameters, parsed once -----------------------------------------------------------------------------------------

_PARSED_MAX = 2_000


class ParsedParameters:
    """``RiskParameters.with_encoded``, remembered: sets are immutable, and seeds write the same few records.

    A set is known by the records that led to it, so that runs share what they have in common.
    """

    def __init__(self) -> None:
        self.empty = RiskParameters.empty()
        self._known: dict[tuple[int, bytes | None, bytes | None], RiskParameters | Exception] = {}
        self._kept: list[RiskParameters] = [self.empty]

    def __len__(self) -> int:
        """How many sets are kept alive."""
        return len(self._kept)

    def with_encoded(self, before: RiskParameters, key: bytes | None, value: bytes | None) -> RiskParameters:
        """The set after a record."""
        place = (id(before), key, value)
        parsed = self._known.get(place)
        if parsed is None:
            self._kept.append(before)  # an id says something only about what is alive
            try:
                parsed = WITH_ENCODED(before, key, value)
            except Exception as error:
                parsed = error
            self._known[place] = parsed
        if isinstance(parsed, Exception):
            raise parsed.with_traceback(None)
        return parsed


WITH_ENCODED = RiskParameters.with_encoded
_parsed = ParsedParameters()


@contextmanager
def remembered_parameters() -> Iterator[ParsedParameters]:
    """Let production code parse each parameter record once for all runs of this process."""
    global _parsed  # noqa: PLW0603
    if len(_parsed) > _PARSED_MAX:
        _parsed = ParsedParameters()
    parsed = _parsed
    empty = RiskParameters.__dict__["empty"]
    RiskParameters.empty = classmethod(lambda _: parsed.empty)  # type: ignore[assignment, method-assign]

    def with_encoded(self: RiskParameters, key: bytes | None, value: bytes | None) -> RiskParameters:
        return parsed.with_encoded(self, key, value)

    RiskParameters.with_encoded = with_encoded  # type: ignore[method-assign]
    try:
        yield parsed
    finally:
        RiskParameters.empty = empty  # type: ignore[method-assign]
        RiskParameters.with_encoded = WITH_ENCODED  # type: ignore[method-assign]
