"""Store: arrays that are made once, kept as NPY files and memory-mapped, so that all processes share them (numpy)."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

MAX_TEMPORARY_BYTES = 8 << 30
"""More is refused unless a folder was named for it."""
KEPT_OPEN = 256
"""Entries whose files stay mapped."""


class DataError(ValueError):
    """Training data that cannot be used: what was got, what was expected, what to do."""


class StoreError(RuntimeError):
    """The folder cannot be written: which, why, what to do (no OSError, which a file that cannot be read raises)."""


class Store:
    """Entries of named arrays; an entry is there whole or not at all, whoever writes it and whatever ends the process.

    Parameters
    ----------
    folder : Path, optional
        Where entries are kept from run to run; default: a temporary folder, gone with `close` or the process.
    """

    def __init__(self, folder: Path | None = None) -> None:
        # kept for as long as this is: it goes with the object at the latest
        self._temporary = tempfile.TemporaryDirectory(prefix="lowdose-data-") if folder is None else None
        self._folder = Path(self._temporary.name) if self._temporary else Path(os.path.expanduser(str(folder)))
        self._written = 0
        self._bounded = folder is None
        self._open: OrderedDict[str, dict[str, NDArray[Any]]] = OrderedDict()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cache folder {self._folder} cannot be made ({error.strerror}): name another") from None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what only the process that made it can own: worker processes map the files themselves."""
        return {**self.__dict__, "_temporary": None, "_open": OrderedDict()}

    def get(self, name: str, make: Callable[[], Iterable[tuple[str, NDArray[Any]]]]) -> dict[str, NDArray[Any]]:
        """Return the arrays of an entry, read-only, made by `make` if they are not there.

        Parameters
        ----------
        name : str
            As `entry_name` returns it.
        make : callable
            Yields name and array; what it raises is not kept.

        Raises
        ------
        DataError
            If they are too many, or do not come back.
        StoreError
            If they cannot be written.
        """
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        entry = self._folder / name
        arrays = _mapped(entry) if entry.is_dir() else None
        if arrays is None:
            self._write(entry, make)
            arrays = _mapped(entry)
        if arrays is None:
            raise DataError(f"cache folder {self._folder} does not give back what was written: name another")
        self._open[name] = arrays
        if len(self._open) > KEPT_OPEN:
            self._open.popitem(last=False)
        return arrays

    def close(self) -> None:
        """Remove the folder if it is a temporary one; twice is fine."""
        self._open.clear()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _write(self, entry: Path, make: Callable[[], Iterable[tuple[str, NDArray[Any]]]]) -> None:
        with self._telling():
            part = Path(tempfile.mkdtemp(prefix="part-", dir=self._folder))
        try:
            for name, array in make():
                self._require_room(array.nbytes)
                with self._telling():
                    np.save(part / f"{name}.npy", array, allow_pickle=False)
            shutil.rmtree(entry, ignore_errors=True)  # a damaged one
            with self._telling(unless=entry.is_dir):  # another process was faster with the same
                os.replace(part, entry)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    @contextmanager
    def _telling(self, *, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Say what to do where something cannot be written, unless that does not matter."""
        try:
            yield
        except OSError as error:
            if not unless():
                raise StoreError(
                    f"cannot write decoded images and masks into {self._folder}: {error.strerror or 'no room left'}. "
                    "Free some space there, or set data.cache to another folder"
                ) from error

    def _require_room(self, n_bytes: int) -> None:
        self._written += n_bytes
        if self._bounded and self._written > MAX_TEMPORARY_BYTES:
            raise DataError(
                f"decoded images and masks take more than {MAX_TEMPORARY_BYTES >> 30} GiB, the most that is put into a "
                "temporary folder: set cache: FOLDER, which is also kept for the next run"
            )


def entry_name(*parts: object) -> str:
    """Return the name of what depends on all these, 32 hexadecimal digits."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _mapped(entry: Path) -> dict[str, NDArray[Any]] | None:
    """Return the arrays of an entry, None where one is damaged."""
    try:
        # plain arrays on the mapped files: slicing a memmap costs ten times as much
        files = sorted(entry.glob("*.npy"))
        return {file.stem: np.asarray(np.load(file, mmap_mode="r", allow_pickle=False)) for file in files}
    except (ValueError, EOFError, OSError) as error:
        logger.warning("%s is damaged and is made anew: %s", entry, error)
        return None
