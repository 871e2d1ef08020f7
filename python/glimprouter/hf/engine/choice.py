"""Which engine serves a pair, and which of its layers run in their fused form: found by trying."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from glimprouter.hf.attention.fused_layers import FusedLayers
from glimprouter.hf.attention.trial import trial_of, why_not_paged
from glimprouter.hf.decoder.host_pass import find_host_pass
from glimprouter.hf.engine.gather_runner import why_not_gathered
from glimprouter.hf.engine.native_runner import CallForm, find_form
from glimprouter.hf.pair.facts import rope_depends_on_length
from glimprouter.hf.state.form import StateForm, find_state_form

EngineName = Literal["paged", "gather", "native"]
ENGINES = ("auto", "paged", "gather", "native")
Execution = Literal["eager", "graphs", "compiled"]
EXECUTIONS = ("auto", "eager", "graphs", "compiled")


@dataclass(frozen=True)
class EngineChoice:
    """What the trials found.

    Attributes:
        name: Name of the engine.
        fused: Layers that eager passes over pages compute in their fused form, by the name of the
            model. The gathering engine has none: it is the reference for the other one, and what
            both had would be tested by neither.
        states: What models on pages keep beside keys and values, by name; the others have none.
        forms: How models with caches of their own are called, by name; the others gather.
        varying: Models whose keys depend on how long the pass is that computes them.
    """

    name: EngineName
    fused: Mapping[str, FusedLayers] = field(default_factory=dict)
    states: Mapping[str, StateForm] = field(default_factory=dict)
    forms: Mapping[str, CallForm] = field(default_factory=dict)
    varying: frozenset[str] = frozenset()

    @property
    def takes_drafts(self) -> bool:
        """Whether both models can drop what they have computed of drafts that did not hold."""
        return not self.states and not self.forms and not self.varying

    def uncut(self, model: str) -> str | None:
        """What a model keeps that cannot be cut; None where it is keys and values alone."""
        if model in self.states:
            return f"the {model} model keeps a state of its layers"
        if model in self.varying:
            return f"keys of the {model} model (longrope) depend on the longest position of a pass"
        return f"the {model} model has a cache of its own" if model in self.forms else None


def fuses_layers(wanted: bool | Literal["auto"], device: str) -> bool:
    """Whether layers are tried in their fused form.

    Args:
        wanted: ``"auto"``: not on a GPU, where their kernels have only been compiled so far.
        device: The device of the pages.
    """
    return not device.startswith("cuda") if wanted == "auto" else wanted


def choose_engine(
    wanted: str,
    models: Mapping[str, Any],
    devices: Mapping[str, str],
    fuse: bool | Literal["auto"] = True,
) -> EngineChoice:
    """Tries the models on pages, with fused layers first; then gathering; then their own caches.

    Args:
        wanted: One of :data:`ENGINES`.
        models: By name.
        devices: The device of each model's pages, by name.
        fuse: Whether layers may run in their fused form (:func:`fuses_layers`); not in compiled
            graphs, where the compiler fuses.

    Raises:
        ValueError: A model cannot be served by the engine that is wanted, or by none.

    Warns:
        RuntimeWarning: ``"auto"`` falls back.
    """
    tried = {name: _Tried(name, model) for name, model in models.items()}
    if wanted in ("auto", "paged"):
        fused = {}
        for name, each in tried.items():
            device = devices[name]
            if (layers := each.on_pages(device, fuses_layers(fuse, device))) is not None:
                fused[name] = layers
        unpaged = [each for each in tried.values() if each.reasons]
        if not unpaged:
            forms_of = {name: find_state_form(model) for name, model in models.items()}
            states = {name: form for name, form in forms_of.items() if form is not None}
            return EngineChoice("paged", {name: own for name, own in fused.items() if own}, states)
        if wanted == "paged":
            raise ValueError(f'{unpaged[0].refusal()}; engine="auto" takes what serves it')
    forms = {}
    for name, each in tried.items():
        if wanted != "native" and each.gathers():
            continue
        if wanted == "gather":
            raise ValueError(f'{each.refusal()}; engine="auto" takes what serves it')
        forms[name] = each.form()
    if wanted == "auto":
        for name, each in tried.items():
            if name not in forms:
                fate = "falling back to the gathering engine"
            elif forms[name].consistent:
                fate = "it computes one sequence after another, on caches of its own"
            else:
                fate = (
                    "its passes with a cache are not those without one, so it computes what"
                    " generate() does: one sequence after another, token by token"
                )
            if each.reasons:
                warnings.warn(f"{each.refusal()}; {fate}", RuntimeWarning, stacklevel=3)
    texts = {name: model.config.get_text_config() for name, model in models.items()}
    varying = frozenset(name for name, text in texts.items() if rope_depends_on_length(text))
    return EngineChoice("native" if forms else "gather", forms=forms, varying=varying)


class _Tried:
    """One model, and why engines cannot serve it.

    Attributes:
        reasons: By what it was tried on.
    """

    def __init__(self, name: str, model: Any) -> None:
        self.name = name
        self.model = model
        self.reasons: dict[str, str] = {}
        self._trial = trial_of(model)

    def on_pages(self, device: str, fuse: bool) -> FusedLayers | None:
        """Layers that run in their fused form there; None where there are none, or no pages."""
        layers = FusedLayers(self.model, device) if fuse else None
        if layers and why_not_paged(self.model, device, layers, self._trial) is None:
            # Behind the trial of the layers, which run where the whole pass may not.
            layers.whole = find_host_pass(self.model) if device == "cpu" else None
            if why_not_paged(self.model, device, layers, self._trial) is not None:
                layers.whole = None
            return layers
        self._note("on pages", why_not_paged(self.model, device, None, self._trial))
        return None

    def gathers(self) -> bool:
        """Whether plain attention over a cache of ours serves it."""
        return self._note("by gathering", why_not_gathered(self.model, self._trial))

    def form(self) -> CallForm:
        """How it goes on with a cache of its own.

        Raises:
            ValueError: It does not.
        """
        form, reason = find_form(self.model, self._trial)
        self._note("on a cache of its own", reason)
        if form is None:
            raise ValueError(self.refusal())
        return form

    def refusal(self) -> str:
        """What was tried, and why it does not do."""
        tried = ", nor ".join(f"{place}: {reason}" for place, reason in self.reasons.items())
        return f"the {self.name} model cannot be served {tried}"

    def _note(self, place: str, reason: str | None) -> bool:
        if reason is not None:
            self.reasons[place] = reason
        return reason is None


def check_execution(wanted: str) -> None:
    """Refuses a name that is none, before anything is tried.

    Raises:
        ValueError: Another one.
    """
    if wanted not in EXECUTIONS:
        names = ", ".join(f'"{name}"' for name in EXECUTIONS)
        raise ValueError(f"execution must be one of {names}, got {wanted!r}")


def choose_execution(wanted: str, choice: EngineChoice, devices: Collection[str]) -> Execution:
    """How forward passes over pages are computed.

    Args:
        wanted: One of :data:`EXECUTIONS`; ``"auto"`` is graphs where they can be had.
        choice: The engine that serves the pair. Models with states cannot be compiled.
        devices: Where its pages lie.

    Raises:
        ValueError: What is wanted cannot be had.
    """
    engine, stateful = choice.name, " and the ".join(sorted(choice.states))
    if stateful and wanted == "compiled":
        raise ValueError(
            'execution="compiled" serves models with keys and values only, the'
            f' {stateful} model keeps states beside them; "auto" takes what can be had'
        )
    places = list(dict.fromkeys(devices))
    replays = engine == "paged" and places != ["cpu"]
    if wanted == "graphs" and not replays:
        raise ValueError(
            'execution="graphs" needs engine="paged" on a device, this pair runs on'
            f' {engine!r} on {", ".join(places)}; "auto" takes what can be had'
        )
    if wanted == "compiled" and engine != "paged":
        raise ValueError(
            f'execution="compiled" needs engine="paged", this pair runs on {engine!r}; "auto" takes'
            " what can be had"
        )
    if wanted == "compiled" and "cpu" in places and len(places) > 1:
        raise ValueError(
            f'execution="compiled" compiles for the CPU or for devices, this pair runs on'
            f' {" and ".join(places)}; "auto" takes what can be had'
        )
    if wanted == "auto":
        return "graphs" if replays else "eager"
    return wanted  # type: ignore[return-value]
