"""The order in which training visits the sequences."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyro_ltm.errors import UserError


class DataOrder:
    """Batches of sequence numbers, a new permutation each epoch, as a pure function of `seed` and the position.

    There is no iterator state: a run that stopped at a position goes on from there exactly.
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
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def indices(self, position: int) -> npt.NDArray[np.int64]:
        """Sequence numbers, int64 [batch_size], of the batch that begins at `position`.

        Args:
            position: sequences visited since training began, over all epochs.
        """
        if position < 0:
            raise UserError(f"position = {position}: must be at least 0")
        parts, end = [], position + self.batch_size
        while position < end:
            epoch, start = divmod(position, self.size)
            parts.append(self._shuffled(epoch)[start : start + end - position])
            position += len(parts[-1])
        return np.concatenate(parts)

    def _shuffled(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch != self._epoch:
            # NumPy promises that a bit generator's raw numbers never change between releases; not so `permutation`.
            numbers = np.random.PCG64([self.seed, epoch]).random_raw(self.size)
            self._permutation = np.argsort(numbers, kind="stable").astype(np.int64, copy=False)
            self._epoch = epoch
        return self._permutation
