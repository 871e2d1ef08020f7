"""torch and transformers as the commands want them: quiet, local files only, chosen threads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from glimprouter.cli.errors import UserError

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")


def use_threads(count: int) -> None:
    """Sets the threads of torch's operations and of the library's own."""
    import torch

    import glimprouter

    glimprouter.set_num_threads(count)  # first: it refuses more than it can have
    torch.set_num_threads(count)


def quiet_transformers() -> None:
    """Keeps loading bars and advice out of the output."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging  # it has no annotations
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def torch_dtype(name: str) -> torch.dtype | str:
    """The dtype for ``from_pretrained``.

    Raises:
        UserError: An unknown name.
    """
    import torch

    if name not in DTYPES:
        raise UserError(f"--dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return "auto" if name == "auto" else getattr(torch, name)


def load_causal_lm(
    what: str, directory: Path, dtype: str, device: str | None = None
) -> tuple[Any, Any]:
    """The model, in evaluation mode, and the tokenizer of a local directory.

    Args:
        what: Name of the model in an error.
        directory: A Hugging Face model directory.
        dtype: One of ``DTYPES``.
        device: Where the model goes; None for the CPU.

    Raises:
        ValueError: No such device.
        UserError: Something in the directory cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from glimprouter.hf.pair.devices import torch_device
    from glimprouter.hf.pair.loading import check_device

    place = torch_device(check_device(device) or "cpu")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch_dtype(dtype), local_files_only=True
        )
    except ModuleNotFoundError:
        raise
    except Exception as error:  # transformers, safetensors and json each have their own kinds
        raise UserError(f"cannot load {what} from {directory}: {error}") from error
    return model.to(place).eval(), tokenizer
