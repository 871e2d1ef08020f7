"""Files of saved sequences: whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from glimprouter.serve.saving import save_sequence


class _Run:
    def save(self, index: int) -> bytes:
        return b"saved"


def test_a_disk_that_is_full_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    run: Any = _Run()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert save_sequence(run, 0, "x", tmp_path) is None
    assert not list(tmp_path.iterdir())
    assert save_sequence(run, 0, "x", tmp_path) is not None
    (saved,) = tmp_path.iterdir()
    assert (saved.name, saved.read_bytes()) == ("x.sequence", b"saved")
    assert saved.stat().st_mode & 0o777 == 0o600
