"""What a run has on one device: pages of the models there, slots of their states, graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from glimprouter.hf.engine.arena_plan import ArenaPlan
from glimprouter.hf.engine.kept_pool import KeptPool
from glimprouter.hf.graphs.pass_graphs import PassGraphs
from glimprouter.hf.pair.devices import default_arena_bytes
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.state.form import StateForm
from glimprouter.hf.state.memory import slots_wanted
from glimprouter.hf.state.slots import StateSlots
from glimprouter.kv import KvLayout, PagePool


class DeviceMemory:
    """The arena of a device, which the models there share: pages go to whichever needs them.

    Attributes:
        plan: Of the arena.
        pool: Its pages.
        graphs: Of passes of the models, by name; none where passes are not replayed.
        slots: Of the states of models that keep some, by name.
    """

    def __init__(
        self,
        user: object,
        device: str,
        models: Sequence[str],
        layouts: Sequence[KvLayout],
        lengths: Sequence[Sequence[int]],
        *,
        num_bytes: int | None,
        max_sequences: int,
        spare_rows: bool,
        growth: int,
        kept: KeptPool | None,
        state_forms: Mapping[str, StateForm],
        num_snapshots: int,
    ) -> None:
        """An arena that holds the longest sequences, as far as it may.

        Args:
            user: Who has what is kept to itself while it lives.
            device: A device of this build.
            models: Names of the models on it.
            layouts: Of both models of the pair.
            lengths: The most tokens of each sequence to come, for each model of the pair.
            num_bytes: Memory for keys, values and states; None for what ``max_sequences`` of the
                longest sequences need, up to half of the device's.
            max_sequences: Sequences in flight.
            spare_rows: Whether more sequences may come, each as long as the longest.
            growth: Factor of what the lengths ask for.
            kept: Where the pool comes from, with graphs of passes; None for a pool of its own, and
                no graphs.
            state_forms: Of the models of the pair that keep states, by name.
            num_snapshots: Earlier states of a sequence that are kept, >= 0.

        Raises:
            ValueError: The arena cannot hold the longest sequence.
        """
        self.plan = plan = ArenaPlan(layouts, [MODELS.index(name) for name in models])
        self.graphs: Mapping[str, PassGraphs] = {}
        held = 0 if kept is None else kept.free_bytes
        most = default_arena_bytes(device, held) if num_bytes is None else num_bytes
        rows = max_sequences if spare_rows else min(max_sequences, len(lengths))
        forms = {name: state_forms[name] for name in models if name in state_forms}
        count = slots_wanted(forms.values(), rows, num_snapshots, most)
        self.slots: Mapping[str, StateSlots] = (
            {name: StateSlots(form, count) for name, form in forms.items()}
            if kept is None
            else kept.take_slots(count)
        )
        most -= sum(own.num_bytes for own in self.slots.values())
        sectors = plan.wanted(
            lengths,
            most,
            take_all=num_bytes is not None,
            max_sequences=max_sequences,
            spare_rows=spare_rows,
            growth=growth,
        )
        self._num_bytes = sectors * plan.sector_bytes
        if kept is None:
            self.pool = PagePool(plan.layouts, self._num_bytes, plan.sector_bytes, device)
        else:
            self.pool, self.graphs = kept.take(
                user, plan.layouts, sectors, most // plan.sector_bytes
            )

    def check(self, tokens: Sequence[int]) -> None:
        """Checks that a sequence with so many tokens of each model has room alone.

        Raises:
            ValueError: It has not.
        """
        self.plan.check(self._num_bytes, self.plan.sectors(tokens))

    def has_room(self, tokens: Sequence[int], spare: int) -> bool:
        """Whether there are pages for so many tokens of each model, and so many pages more."""
        return self.pool.can_allocate(self.plan.pages(tokens, spare))
