"""The order in which training visits sequences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pyro_ltm.errors import UserError

WINDOW = 1 << 20
"""Sequences of an epoch, about, whose order is in memory at a time: some 30 MiB, whatever the size of the data."""


class DataOrder:
    """Batches of sequence numbers, a new permutation each epoch, as a pure function of `seed` and the position.

    There is no iterator state: a run that stopped at a position goes on from there exactly. An epoch visits the
    sequences in the order of random numbers, one for each. Of many sequences only a window of that order is sorted at
    a time: those whose numbers have the same first bits, which a pass over all numbers finds.
    """

    def __init__(self, size: int, batch_size: int, seed: int):
        """`size` sequences, `batch_size` of them a batch (it may exceed `size`).

        Raises:
            UserError: `size` or `batch_size` below 1, or `seed` below 0.
        """
        for name, value, low in (("size", size, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value < low:
                raise UserError(f"{name} = {value}: must be at least {low}")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self._bits = (size // WINDOW).bit_length()  # of a number, by which it belongs to a window
        self._epoch = -1
        self._window = slice(0, 0)  # places in the epoch
        self._ends = self._order = np.empty(0, dtype=np.int64)  # where each window ends; the sequences of one

    def indices(self, position: int) -> npt.NDArray[np.int64]:
        """Sequence numbers, int64 [batch_size], of the batch that begins at `position`.

        Args:
            position: sequences visited since training began, over all epochs.
        """
        if position < 0:
            raise UserError(f"position = {position}: must be at least 0")
        parts, end = [], position + self.batch_size
        while position < end:
            epoch, place = divmod(position, self.size)
            self._sort(epoch, place)
            start = place - self._window.start
            parts.append(self._order[start : start + end - position])
            position += len(parts[-1])
        return np.concatenate(parts)

    def _sort(self, epoch: int, place: int) -> None:
        """Makes the window that holds `place` of the epoch the one in memory."""
        if epoch == self._epoch and self._window.start <= place < self._window.stop:
            return
        if epoch != self._epoch:
            sizes = np.zeros(1 << self._bits, dtype=np.int64)
            for _, numbers in self._numbers(epoch):
                sizes += np.bincount(self._windows(numbers), minlength=len(sizes))
            self._epoch, self._ends = epoch, sizes.cumsum()
        window = int(np.searchsorted(self._ends, place, side="right"))
        found = [
            (first + inside, numbers[inside])
            for first, numbers in self._numbers(epoch)
            for inside in [np.flatnonzero(self._windows(numbers) == window)]
        ]
        sequences, numbers = (np.concatenate(parts) for parts in zip(*found, strict=True))
        self._order = sequences[np.argsort(numbers, kind="stable")]
        self._window = slice(int(self._ends[window]) - len(sequences), int(self._ends[window]))

    def _numbers(self, epoch: int) -> Iterator[tuple[int, npt.NDArray[np.uint64]]]:
        """The random numbers by which an epoch is sorted, in chunks, each with its first sequence."""
        # NumPy promises that a bit generator's raw numbers never change between releases; not so `permutation`.
        generator = np.random.PCG64([self.seed, epoch])
        for first in range(0, self.size, WINDOW):
            yield first, generator.random_raw(min(WINDOW, self.size - first))

    def _windows(self, numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """The window of each number: its first bits."""
        return (numbers >> np.uint64(63 - self._bits) >> np.uint64(1)).astype(np.int64)
