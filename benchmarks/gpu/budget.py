"""Time that measurements may take."""

from __future__ import annotations

import math
import time


class Budget:
    """Seconds from now on, which are not exceeded by beginning what does not fit any more."""

    def __init__(self, seconds: float = math.inf) -> None:
        """Begins now."""
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds, below 0 when they are over."""
        return self._end - time.monotonic()

    def share(self, seconds: float) -> Budget:
        """A budget within this one."""
        return Budget(min(seconds, self.left))

    def refusal(self, seconds: float) -> str | None:
        """Why something of so many seconds is left out; None where it fits."""
        if seconds <= self.left:
            return None
        return f"it takes about {seconds:.0f} s, and {max(0.0, self.left):.0f} s are left"
