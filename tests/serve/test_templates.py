"""What chat templates show, and what they would drop without a word."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from glimprouter.serve.templates import Templates
from hf_pairs import byte_tokenizer

TURN = "{{ m.role }}: {{ m.content }}\n"
PLAIN = "{% for m in messages %}" + TURN + "{% endfor %}"
NAMES_ONLY_IN_A_COMMENT = "{# name tools tool_calls documents #}" + PLAIN
KNOWS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.name or '' }}"
    + TURN
    + "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}{% endfor %}"
    "{% if documents %}{{ documents | tojson }}{% endif %}{{ enable_thinking }}"
)
DROPS = "{% for m in messages %}{% if m.role in ('user', 'assistant') %}" + TURN
DROPS += "{% endif %}{% endfor %}{% set own = 1 %}{{ own }}"
REFUSES = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}" + TURN + "{% endfor %}"
)


def templates(*texts: str) -> Templates:
    return Templates([byte_tokenizer(text) for text in texts])


def shown(own: Templates) -> dict[str, Any]:
    return {
        "name": own.show_name("user"),
        "calls": own.show_calls(),
        "tools": own.show_tools(),
        "documents": own.know_option("documents"),
    }


def test_a_template_that_shows_it() -> None:
    own = templates(KNOWS)
    assert all(shown(own).values())
    assert own.know_option("enable_thinking")
    assert not own.know_option("enable")


@pytest.mark.parametrize("template", [PLAIN, NAMES_ONLY_IN_A_COMMENT])
def test_a_template_that_does_not(template: str) -> None:
    for own in (templates(template), templates(KNOWS, template), templates(template, KNOWS)):
        assert not any(shown(own).values())


def test_roles_that_are_dropped() -> None:
    own = templates(DROPS)
    roles = ("system", "developer", "user", "assistant", "tool")
    assert [role for role in roles if own.show_role(role)] == ["user", "assistant"]
    assert all(templates(PLAIN).show_role(role) for role in roles)
    assert not own.know_option("own")  # it is the template's


def test_a_template_that_refuses_says_so_itself() -> None:
    assert templates(REFUSES).show_role("system")


def test_a_marked_generation_is_parsed() -> None:
    text = "{%- generation -%}{{ effort }}{% endgeneration %}"
    own = Templates([SimpleNamespace(chat_template={"default": text})])
    assert own.know_option("effort")
