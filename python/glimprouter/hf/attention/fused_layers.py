"""What stands between the matrix products of a model as one operation each, during our own passes.

Between the matrix products of a layer, transformers calls some forty small operations of torch; for
a single token they cost more than the products of a small model. What they compute is found by
trying, and only what gives the model's own results is replaced: a norm and a gated MLP by its
``forward``, the rotary embedding by the function that the attention calls. On a device, passes of a
few rows have their matrix products, too, in few launches. Everything is put on the instances of the
modules when a pass begins and taken away when it ends, so the user's model, its hooks and all other
code of transformers stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from glimprouter.hf.attention.fused_decoder import find_layer
from glimprouter.hf.attention.fused_mlp import FusedMlp, find_mlp
from glimprouter.hf.attention.fused_norms import FoundNorm, find_norm
from glimprouter.hf.attention.fused_operations import NARROW, Operations, operations_on
from glimprouter.hf.attention.fused_products import FewRowProducts, ProductGroup, products_on
from glimprouter.hf.attention.fused_rotary import FusedRotary
from glimprouter.kv import KvCache, PagePool, RaggedBatch
from glimprouter.router import StepOutputs, StepRouter

# Names of linear layers in attention modules and MLPs: those that read the same rows, and others.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_ALONE = ("o_proj", "down_proj", "qkv_proj", "gate_up_proj")

Forward = Callable[..., Any]


class Writing(NamedTuple):
    """Sequences that a model goes on writing behind a step of the router.

    Attributes:
        cache: Of the sequences.
        router: Of their rows.
        model: Index of the model.
        sequences: In the cache.
        rows: In the router.
        last: Outputs of the step.
        ahead: Outputs of the steps to come.
    """

    cache: KvCache
    router: StepRouter
    model: int
    sequences: Sequence[int]
    rows: Sequence[int]
    last: StepOutputs
    ahead: StepOutputs


class WholePass(Protocol):
    """All layers of a model in one call."""

    def takes(self, tokens: int) -> bool:
        """Whether it computes what the model's own code would, and is not the slower one."""

    def __call__(
        self, pool: PagePool, batch: RaggedBatch, rows: npt.NDArray[np.int32] | None = None
    ) -> torch.Tensor:
        """The batch's tokens; logits ``[rows, V]`` of some of them."""

    def passes_ahead(self, writing: Writing, longest: int, seconds: float) -> None:
        """Further passes behind a step, as :meth:`HostDecoderPass.passes_ahead` does them."""


class FusedLayers:
    """What of one model has a fused form: norms, rotary embeddings, activations, products.

    Attributes:
        whole: All of it in one call; None where there is no such form.
    """

    def __init__(self, model: Any, device: str = "cpu") -> None:
        """Tries every module of a model; takes some milliseconds a layer.

        Args:
            model: A model of transformers, left as it is. On the CPU in float32, or nothing is
                found: in the narrow types the model's own roundings are kept there.
            device: The engine's name of the device that the model is on.
        """
        self._model = model
        self._forwards: list[tuple[dict[str, Any], Forward]] = []
        self._groups: list[ProductGroup] = []
        self.whole: WholePass | None = None
        narrow = model.dtype in NARROW and device != "cpu"
        if model.dtype is not torch.float32 and not narrow:
            return
        operations = operations_on(device)
        if model.device != operations.home:
            return
        with torch.inference_mode():
            self._find(model, operations)

    def _find(self, model: Any, operations: Operations) -> None:
        modules = list(model.modules())
        norms: dict[int, FoundNorm] = {}
        for module in modules:
            if (norm := find_norm(module, operations)) is not None:
                norms[id(module)] = norm
        rotary = FusedRotary(operations, model.dtype)
        products = products_on(operations, model.dtype)
        mlps: dict[int, FusedMlp] = {}
        taken: set[int] = set()  # norms that come with something else
        width = model.config.get_text_config().hidden_size
        for module in modules:
            forward = rotary.find(module, norms, width)
            if forward is None and (mlp := find_mlp(module, operations, model.dtype, products)):
                forward = mlps[id(module)] = mlp
            if forward is not None:
                self._forwards.append((module.__dict__, forward))
        for module in modules:
            forward = find_layer(module, norms, mlps, operations, model.dtype, width)
            if forward is not None:
                taken.add(id(module._modules["post_attention_layernorm"]))
                self._forwards.append((module.__dict__, forward))
        taken |= rotary.postponed
        for module in modules:
            if id(module) in norms and id(module) not in taken:
                self._forwards.append((module.__dict__, norms[id(module)].fused(operations)))
        if products is not None:
            self._find_products(modules, products, mlps)
            head = model.get_output_embeddings()
            if products.learn(head) and "forward" not in head.__dict__:
                self._forwards.append((head.__dict__, products.alone(head)))

    def _find_products(
        self, modules: list[torch.nn.Module], products: FewRowProducts, mlps: dict[int, FusedMlp]
    ) -> None:
        for module in modules:
            for names in _TOGETHER[: 1 if id(module) in mlps else None]:
                linears: list[Any] = [module._modules.get(name) for name in names]
                if any(each is None or "forward" in each.__dict__ for each in linears):
                    continue
                if products.learn(*linears):
                    self._groups.append(group := ProductGroup(products, linears))
                    for index, each in enumerate(linears):
                        self._forwards.append((each.__dict__, group.forward(index)))
            for name in _ALONE:
                own: Any = module._modules.get(name)
                if own is not None and "forward" not in own.__dict__ and products.learn(own):
                    self._forwards.append((own.__dict__, products.alone(own)))

    def __len__(self) -> int:
        """Modules that run otherwise in a pass."""
        return len(self._forwards)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The modules compute in their fused form until the block ends, however it ends.

        Not in training mode, and not where somebody else (``accelerate``, say) has put a forward on
        the instance.
        """
        changed: list[tuple[dict[str, Any], Forward]] = []
        try:
            if not self._model.training:
                for state, forward in self._forwards:
                    if "forward" not in state:
                        state["forward"] = forward
                        changed.append((state, forward))
            yield
        finally:
            for group in self._groups:
                group.forget()
            for state, forward in changed:
                if state.get("forward") is forward:
                    del state["forward"]
