"""Whose turn it is: which model computes next, while rows wait for both.

A forward pass that waits for its weights costs nearly the same for one row as for many, so rows had
better wait until several want the same model. The order of passes changes no sequence, up to the
rounding of matrix products: a token depends on its own text, seed, stream and position only, but
the products of a pass may round otherwise for another number of rows, and so decide a near tie.
"""

from __future__ import annotations

from collections.abc import Mapping

_FEWER = 3  # a model gives way when the other has more than so many times the rows that it has
_PATIENCE = 32  # passes in a row while the other model's rows wait


class WaitingTurns:
    """One model goes on until few of its rows are left, while the rows of the other gather.

    With one row there is nothing to wait for: its model is the only one. No row waits longer than
    ``patience`` passes for its model's turn.
    """

    def __init__(self, fewer: float = _FEWER, patience: int = _PATIENCE) -> None:
        """The first turn is that of the model with more rows.

        Args:
            fewer: See the module; 1 would always choose the model with more rows.
            patience: Passes in a row, >= 1.
        """
        self._fewer = fewer
        self._patience = patience
        self._current: str | None = None
        self._passes = 0  # of the current model while others waited

    def choose(self, waiting: Mapping[str, int]) -> str | None:
        """The model whose rows run next.

        Args:
            waiting: Rows that wait for each model.

        Returns:
            A model with rows, or None when nobody waits.
        """
        busy = {name: count for name, count in waiting.items() if count}
        if not busy:
            return None
        own = busy.pop(self._current, 0) if self._current is not None else 0
        if not busy:
            self._passes = 0
            return self._current
        other = max(busy, key=lambda name: busy[name])
        if own * self._fewer >= busy[other] and self._passes < self._patience and own:
            self._passes += 1
            return self._current
        self._current, self._passes = other, 0
        return other
