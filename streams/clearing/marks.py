"""What a shard knows of the marks: the last price of each symbol, whether it may be decided on, and what scales.

Owns the liveness of marks and the epoch of the oracle that may set them. What follows from a price is the business of
the decisions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from schemas.messages import Mark, MarkFrame
from streams.clearing.journal import Cursor
from streams.feeds.marks import FullFrames
from streams.margin.parameters import RiskParameters
from streams.margin.portfolio import Portfolio

MARK_AGE_MS_DEFAULT = 5000
"""``max_age_ms`` of a symbol without oracle parameters."""

_NEVER_US = 2**62


@dataclass(slots=True)
class _MarkState:
    status: str
    publish_time: int
    live: bool


class Marks:
    """The marks of one shard, which it sets in ``portfolio``.

    ``epoch`` is the highest of the frames walked, ``scales`` those in force by key of a parameter record.
    ``liveness_changed``: a mark has become live, or ceased to be, since somebody has set this to False.
    """

    def __init__(self, cursor: Cursor, portfolio: Portfolio) -> None:
        self._cursor = cursor
        self._portfolio = portfolio
        self._marks: dict[str, _MarkState] = {}
        self._full_frames = FullFrames()
        self._stale_at_us = _NEVER_US
        self.epoch = -1
        self.scales: dict[str, str] = {}
        self.liveness_changed = False

    @property
    def skew_us(self) -> int:
        """How far a host's clock may be from the broker's."""
        return 1000 * self._portfolio.parameters.policy.clock_skew_ms_max

    def status(self, symbol: str) -> str | None:
        """What the oracle last said of a symbol's mark: ``live`` or why not; None if it never said anything."""
        mark = self._marks.get(symbol)
        return None if mark is None else mark.status

    def has_live(self, symbol: str) -> bool:
        """Whether ``symbol`` has a mark that may be decided on now."""
        mark = self._marks.get(symbol)
        return mark is not None and mark.live

    def set_parameters(self, parameters: RiskParameters) -> None:
        """Put ``parameters``, scaled as the last full frame says, in force.

        Raises:
            ParameterError: the ledger cannot be held in them; those in force stay.
        """
        scales = {key: Decimal(scale) for key, scale in self.scales.items()}
        self._portfolio.set_parameters(parameters.with_scales(scales))

    def learn(self, offset: int, frame: MarkFrame, appended_us: int) -> tuple[dict[str, Decimal], set[str]]:
        """Set a frame's prices and scales, at the clock as it stands.

        Returns the prices that changed, and the symbols that concern all who hold them: their marks have become live,
        or what they weigh is scaled anew.
        """
        self._cursor.skip_marks(offset)
        self.epoch = frame.epoch
        full = self._full_frames.add(offset, frame)
        concerned: set[str] = set()
        if full is not None:
            self._cursor.marks_full = full.first
            concerned = self._rescale(full.frame.scales)
        moved: dict[str, Decimal] = {}
        latest_us = appended_us + self.skew_us  # a source's clock may be ahead, too
        for mark in frame.marks:
            self._learn_mark(mark, min(mark.publish_time, latest_us), moved, concerned)
        return moved, concerned | self.refresh()

    def refresh(self, *, force: bool = False) -> set[str]:
        """Marks that grew older than their symbol allows are not live any more, whoever stopped publishing them.

        Returns the symbols of which that has changed.
        """
        changed: set[str] = set()
        clock_us = self._cursor.clock.now_us
        if clock_us <= self._stale_at_us and not force:
            return changed
        self._stale_at_us = _NEVER_US
        for symbol, mark in self._marks.items():
            limit = self._age_limit(symbol, mark.publish_time)
            live = mark.status == "live" and limit >= clock_us
            if live:
                self._stale_at_us = min(self._stale_at_us, limit)
            if live != mark.live:
                mark.live = live
                self.liveness_changed = True
                changed.add(symbol)
                self._portfolio.set_live(symbol, live)
        return changed

    def _rescale(self, scales: Mapping[str, str]) -> set[str]:
        """Put ``scales`` in force; the symbols of the records that are scaled anew."""
        before, self.scales = self.scales, dict(scales)
        changed = {key for key in {**before, **scales} if before.get(key) != scales.get(key)}
        if not changed:
            return changed
        parameters = self._portfolio.parameters
        self.set_parameters(parameters)
        instruments = {symbol for symbol in parameters.instruments if f"instrument:{symbol}" in changed}
        priced = {
            rules.price_symbol
            for asset, rules in parameters.assets.items()
            if f"asset:{asset}" in changed and rules.price_symbol is not None
        }
        return instruments | priced

    def _learn_mark(self, mark: Mark, published: int, moved: dict[str, Decimal], concerned: set[str]) -> None:
        known = self._marks.get(mark.symbol)
        price = Decimal(mark.price)
        limit = self._age_limit(mark.symbol, published)
        live = mark.status == "live" and limit >= self._cursor.clock.now_us
        if self._portfolio.marks.get(mark.symbol) != price:
            moved[mark.symbol] = price
        if known is None or known.live != live or (not live and mark.symbol in moved):
            concerned.add(mark.symbol)
        self._marks[mark.symbol] = _MarkState(mark.status, published, live)
        if live:
            self._stale_at_us = min(self._stale_at_us, limit)
        self.liveness_changed |= known is None or known.live != live
        if mark.symbol in moved or known is None or known.live != live:
            self._portfolio.set_mark(mark.symbol, price, live)

    def _age_limit(self, symbol: str, publish_time: int) -> int:
        rules = self._portfolio.parameters.oracle.get(symbol)
        return publish_time + 1000 * (MARK_AGE_MS_DEFAULT if rules is None else rules.max_age_ms)
