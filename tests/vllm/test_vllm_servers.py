"""Servers of vLLM by their URLs: results, bad requests, one that is killed and comes back."""

from __future__ import annotations

import threading

import httpx
import pytest

import glimprouter as gr
from glimprouter import demo_pair
from glimprouter.vllm import EngineRefused, RoutedEngines, Server
from hf_pairs import trained_pair
from vllm_comparison import CONFIG, PROMPTS, differences
from vllm_servers import GatedServer

pytest.importorskip("vllm", reason="vLLM is not installed: no server was tried")

Servers = dict[str, GatedServer]


def client_of(servers: Servers, **options: float) -> RoutedEngines:
    tokenizer = trained_pair().tokenizer
    config = gr.RouterConfig(**CONFIG)
    return RoutedEngines(servers["small"].url, servers["large"].url, tokenizer, config, **options)


def test_results_are_those_of_a_routed_model(servers: Servers) -> None:
    client = client_of(servers)
    got = client.generate(PROMPTS[:16])
    assert not differences(got, trained_pair().routed(**CONFIG).generate(PROMPTS[:16]))
    assert client.usage["large"].cached_tokens > 0
    client.close()


def test_two_clients_share_a_deployment(servers: Servers) -> None:
    """Gates remember nothing of a client: each request says all there is to say."""
    first, second = client_of(servers), client_of(servers)
    want = trained_pair().routed(**CONFIG).generate(PROMPTS[:8])
    eager = trained_pair().routed(**{**CONFIG, "threshold": 0.0}).generate(PROMPTS[:8])
    other: list[gr.hf.Result] = []  # type: ignore[name-defined]
    thread = threading.Thread(
        target=lambda: other.extend(second.generate(PROMPTS[:8], threshold=0.0))
    )
    thread.start()
    got = first.generate(PROMPTS[:8])
    thread.join()
    assert not differences(got, want)
    assert [r.token_ids for r in other] == [r.token_ids for r in eager]
    first.close()
    second.close()


def test_bad_requests_are_answered_and_the_server_goes_on(servers: Servers) -> None:
    """What is malformed or would change logits behind the gate is HTTP 400."""
    url = f"{servers['small'].url}/v1/completions"
    name = str(demo_pair.small_path())
    base = {"model": name, "prompt": [5, 6], "max_tokens": 2}
    for body in (
        {"vllm_xargs": {"glimprouter": "nonsense"}},
        {"vllm_xargs": {"glimprouter": '{"protocol":99}'}},
    ):
        answer = httpx.post(url, json={**base, **body}, timeout=60)
        assert answer.status_code == 400, answer.text
        assert "glimprouter" in answer.text
    plain = httpx.post(url, json=base, timeout=60)
    assert plain.status_code == 200


def test_another_pair_is_refused(servers: Servers) -> None:
    tokenizer = trained_pair().tokenizer
    client = RoutedEngines(
        Server(servers["small"].url, model="another"), servers["large"].url, tokenizer
    )
    with pytest.raises(EngineRefused, match="does not serve 'another'"):
        client.generate(PROMPTS[:1])
    client.close()


def test_a_server_that_is_killed_and_comes_back(servers: Servers) -> None:
    """Sequences go on where they were; no token changes."""
    client = client_of(servers, patience=600.0)
    want = trained_pair().routed(**CONFIG).generate(PROMPTS[:16])
    client.generate(PROMPTS[:1])
    killed = False
    results = {}
    run = client.stream(PROMPTS[:16])
    for event in run:
        if event.kind == "step" and event.model == "large" and not killed:
            killed = True
            servers["large"].kill()
            servers["large"].start()
        if event.result is not None:
            results[event.sequence] = event.result
    assert killed
    assert client.usage["large"].retries > 0
    assert not run.saved
    assert not differences([results[index] for index in range(16)], want)
    client.close()
