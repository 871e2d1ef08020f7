"""Clients that leave, are killed and send nonsense: the others get what they would get alone."""

from __future__ import annotations

from serving import new_pair, running
from soak import KINDS, soaked, unlike_alone


def test_sixty_requests_sixteen_at_a_time() -> None:
    with running(new_pair(max_sequences=6)) as server:
        empty = server.held()
        soak = soaked(server, 60, 16, seed=4)
        assert server.held() == empty == (0, 0, 0, 0, 0)
        assert server.chat("Reduce 18,39,12").choices[0].finish_reason == "stop"
    assert soak.wrong == []
    assert set(soak.kinds) == set(KINDS)
    assert set(soak.statuses) == {200}
    assert unlike_alone(soak) == []
