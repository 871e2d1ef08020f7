"""The families that people run most; docs/families.md has all of them, from family_table.py."""

from __future__ import annotations

import pytest

from families import FAMILIES
from family_checks import FREQUENT, checked
from family_table import line_of, rows_of_page


@pytest.mark.parametrize("name", FREQUENT)
def test_a_family_is_as_the_table_says(name: str) -> None:
    """Equal to generate(), to full passes across hand-offs, and after fork, rewind and save."""
    assert line_of(checked(name)) == rows_of_page()[name]


def test_the_table_is_whole() -> None:
    assert set(rows_of_page()) - {"family", "---"} == set(FAMILIES)
    assert len(FAMILIES) >= 40
