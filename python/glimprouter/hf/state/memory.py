"""How much memory the states of a run take beside its pages."""

from __future__ import annotations

from collections.abc import Mapping

from glimprouter.hf.state.form import StateForm
from glimprouter.hf.state.sequences import SequenceStates
from glimprouter.hf.state.slots import StateSlots


def plan_states(
    forms: Mapping[str, StateForm], sequences: int, num_snapshots: int, most_bytes: int
) -> dict[str, SequenceStates]:
    """The states of the models that keep some, by name, in half of the memory at most.

    Snapshots are the first that there is no room for, then sequences, which wait for one another.

    Args:
        forms: Of these models.
        sequences: In flight at most.
        num_snapshots: Of each, >= 0.
        most_bytes: Memory of states and pages.

    Raises:
        ValueError: The states of one sequence take more.
    """
    if not forms:
        return {}
    each = sum(form.num_bytes for form in forms.values())
    slots = min(max(sequences, 1) * (1 + num_snapshots), most_bytes // 2 // each)
    if slots < 1:
        raise ValueError(
            f"the states of one sequence take {each} bytes, and half of the {most_bytes} bytes for"
            " keys, values and states is less; raise kv_memory_bytes"
        )
    return {
        name: SequenceStates(StateSlots(form, slots), num_snapshots) for name, form in forms.items()
    }
