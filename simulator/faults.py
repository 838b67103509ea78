"""Faults: what a controller may do wrong, where its driver would; and a log of when (imports acquisition's types)."""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lowdose.acquisition.controllers.base import ControllerError
from lowdose.scan_patterns.checks import require_positive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lowdose.acquisition.controllers.base import Samples

NEVER_NS = (1 << 63) - 1
"""Time of what does not happen."""
EXIT_CODE = 70
"""Of a process that a fault ends."""


@dataclass(frozen=True, slots=True)
class Faults:
    """After how many blocks of a scan each goes wrong; None = never.

    Parameters
    ----------
    stall : int, optional
        Nothing is delivered any more, though the beam scans on.
    drop, duplicate : int, optional
        This block does not come, or comes twice.
    reorder : int, optional
        This block comes after the next one.
    wrong_count : int, optional
        This block lacks its last sample.
    late : int, optional
        The driver does nothing for `late_ms` before it delivers this block.
    die, exit : int, optional
        Instead of this block the driver raises an error, or takes its process along.
    refuse_to_blank : int, optional
        The blanker sticks with the beam on.
    late_ms : float
        How late [ms].
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 read by pydantic

    stall: int | None = None
    drop: int | None = None
    duplicate: int | None = None
    reorder: int | None = None
    wrong_count: int | None = None
    late: int | None = None
    die: int | None = None
    exit: int | None = None
    refuse_to_blank: int | None = None
    late_ms: float = 20.0

    def __post_init__(self) -> None:
        require_positive(late_ms=self.late_ms)
        for name in self.__slots__:
            blocks = getattr(self, name)
            if isinstance(blocks, int) and blocks < 0:
                raise ValueError(f"{name} must be >= 0 blocks, got {blocks}")

    def disturb(
        self,
        blocks: Iterator[Samples],
        *,
        sleep: Callable[[float], None],
        stick: Callable[[], None],
        note: Callable[[Moment], None],
    ) -> Iterator[Samples]:
        """Yield the blocks of one scan, with what goes wrong.

        Parameters
        ----------
        blocks : iterator of Samples
            As measured.
        sleep, stick : callable
            Waits [s]; makes the blanker stick.
        note : callable
            Is told when something goes wrong, and when a block is delivered.
        """
        held: Samples | None = None
        for n, samples in enumerate(blocks):
            if n in (self.drop, self.duplicate, self.reorder, self.wrong_count, self.late, self.die, self.stall):
                note("fault")
            if self.stall is not None and n >= self.stall:
                continue
            self._break_down(n, sleep, stick)
            if n == self.reorder:
                held = samples
            elif n != self.drop:
                note("delivered")
                yield replace(samples, counts=samples.counts[:, :-1]) if n == self.wrong_count else samples
            if n == self.duplicate:
                yield samples
            if held is not None and n != self.reorder:
                yield held
                held = None

    def _break_down(self, n: int, sleep: Callable[[float], None], stick: Callable[[], None]) -> None:
        if n == self.die:
            raise ControllerError(f"the driver failed after {n} blocks, as configured")
        if n == self.exit:
            os._exit(EXIT_CODE)
        if n == self.refuse_to_blank:
            stick()
        if n == self.late:
            sleep(self.late_ms / 1e3)


Moment = Literal["on_until", "delivered", "fault"]
MOMENTS: tuple[Moment, ...] = ("on_until", "delivered", "fault")


class InstrumentLog:
    """The instrument's own times in a small file, which other processes may read, and which outlives a killed one.

    Until when the beam is on (or was), when the last block was delivered, when a fault came: monotonic [ns].

    Parameters
    ----------
    path : str or Path
        The file; made if there is none.
    """

    def __init__(self, path: str | Path) -> None:
        size = 8 * len(MOMENTS)
        with Path(path).open("a+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)

    def note(self, moment: Moment, t_ns: int) -> None:
        """Write a time; the one before is forgotten."""
        struct.pack_into("<q", self._map, 8 * MOMENTS.index(moment), t_ns)

    def read(self, moment: Moment) -> int:
        """Return a time [ns], 0 if there was none."""
        return int(struct.unpack_from("<q", self._map, 8 * MOMENTS.index(moment))[0])

    def close(self) -> None:
        """Let go of the file; twice is fine."""
        self._map.close()
