"""How much memory the states of a run take beside its pages."""

from __future__ import annotations

from collections.abc import Collection

from glimprouter.hf.state.form import StateForm


def slots_wanted(
    forms: Collection[StateForm], sequences: int, num_snapshots: int, most_bytes: int
) -> int:
    """Slots of each model that keeps states, in half of the memory at most.

    Snapshots are the first that there is no room for, then sequences, which wait for one another.

    Args:
        forms: Of these models; without any no slot is wanted.
        sequences: In flight at most.
        num_snapshots: Of each, >= 0.
        most_bytes: Memory of states and pages.

    Raises:
        ValueError: The states of one sequence take more.
    """
    each = sum(form.num_bytes for form in forms)
    if each == 0:
        return 0
    slots = min(max(sequences, 1) * (1 + num_snapshots), most_bytes // 2 // each - 1)  # of padding
    if slots < 1:
        raise ValueError(
            f"the states of one sequence, and of padding, take {2 * each} bytes, and half of the"
            f" {most_bytes} bytes for keys, values and states is less; raise kv_memory_bytes"
        )
    return slots
