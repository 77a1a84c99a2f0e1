"""The real endpoint: clients, mistakes, adapters that come and go, and that it says what the models say."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from bench.metrics import real_pairs
from deescal.models import resolve
from tests.conftest import ROOT

from .conftest import KEY, MODEL, OTHER_KEY, Served
from .lora import write_adapter

pytestmark = [pytest.mark.engine, pytest.mark.ray]

HEADERS = {"Authorization": f"Bearer {KEY}"}
SECRET_WORD = "Zanzibarian"
LINES = [
    "Step out of the car, please.",
    "Sir, I need to see your license and registration.",
    "Why were you running?",
    "Put the bottle down and talk to me.",
    "Do you know how fast you were going?",
    "Is anybody else in the house?",
    "Keep your hands where I can see them.",
]


def say(text: str, model: str = MODEL, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 16, **fields}


def deescal(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "deescal", *arguments], capture_output=True, text=True, timeout=400)


def test_the_official_client_chats_streams_and_lists(served: Served) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=f"{served.url}/v1", api_key=KEY)
    assert [model.id for model in client.models.list()] == [MODEL, *served.adapters]
    assert client.models.retrieve("tuned-1").id == "tuned-1"
    asked: dict[str, Any] = say(LINES[0])
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage is not None
    assert 0 < whole.usage.completion_tokens <= 16
    pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert text == whole.choices[0].message.content, "greedy by default"
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len(pieces) > 4, "token by token"
    completed = client.completions.create(model="tuned-2", prompt="The officer said", max_tokens=4)
    assert completed.choices[0].text


def test_curl(served: Served) -> None:
    body = '{"model": "smollm2-135m", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}'
    command = ["curl", "-s", "-w", "%{http_code}", f"{served.url}/v1/chat/completions", "-d", body]
    headers = ["-H", f"Authorization: Bearer {OTHER_KEY}", "-H", "Content-Type: application/json"]
    done = subprocess.run([*command, *headers], capture_output=True, text=True)
    assert done.stdout.endswith("200")
    assert '"content":' in done.stdout
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.stdout.endswith("401")


def test_mistakes_have_their_status_and_the_replica_stays_healthy(served: Served) -> None:
    with served.client() as client:
        assert client.post("/v1/chat/completions", json=say("hi", "nobody")).status_code == 404
        long = client.post("/v1/chat/completions", json=say("out of the car " * 2000))
        assert long.status_code == 400
        assert "4096" in long.json()["error"]["message"]
        assert client.post("/v1/chat/completions", json=say("hi", max_tokens=10**6)).status_code == 400
        assert client.post("/v1/chat/completions", content=b"{").status_code == 400
        assert client.get("/metrics").status_code == 404, "of vLLM's own routes none is open"
        endless = say("Count to 1000.", max_tokens=400, stream=True)
        with client.stream("POST", "/v1/chat/completions", json=endless) as stream:
            assert next(stream.iter_lines()).startswith("data: ")  # and the client leaves
        assert client.get("/health").status_code == 200
        began = time.monotonic()
        assert client.post("/v1/chat/completions", json=say("hi", max_tokens=1)).status_code == 200
        assert time.monotonic() - began < 60
    with served.client("a-key-that-nobody-has") as stranger:
        assert stranger.get("/v1/models").status_code == 401
        assert stranger.get("/health").status_code == 200
    with served.client(None) as nobody:
        assert nobody.post("/v1/chat/completions", json=say("hi")).status_code == 401


def test_a_rehearsal_is_the_chat_that_training_has(served: Served) -> None:
    asked = {
        "model": "tuned-1",
        "scenario": "A parked car at night.",
        "character": "Tired, on the way home.",
        "temperament": {"agitation": 4},
        "turns": [
            {"who": "officer", "text": LINES[0]},
            {"who": "civilian", "text": "What for?"},
            {"who": "bystander", "text": "Leave him alone!"},
            {"who": "officer", "text": LINES[1]},
        ],
        "max_tokens": 12,
        "echo_prompt": True,
    }
    with served.client() as client:
        answer = client.post("/v1/rehearse", json=asked)
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert [m["role"] for m in told["messages"]] == ["system", "user", "assistant", "user"]
        same = client.post(
            "/v1/chat/completions", json={"model": "tuned-1", "messages": told["messages"], "max_tokens": 12}
        )
        assert same.json()["choices"][0]["message"]["content"] == told["reply"]


@pytest.fixture(scope="module")
def prompts() -> list[list[dict[str, str]]]:
    """Twenty: of real held-out conversations where they are, else made-up lines after each other's answers."""
    chats = []
    if (archive := ROOT.parent / "shared" / "data" / "deescalwild" / "deescalwild-csv.tar.xz").is_file():
        said = real_pairs(archive, 40)  # (next turn, turn), from all over the test scenarios
        for (reply, line), (_, answer) in zip(said[::2], said[1::2], strict=True):
            turns = zip(("user", "assistant", "user"), (line, reply, answer), strict=True)
            chats.append([{"role": role, "content": text[:300]} for role, text in turns])
        return chats
    for i in range(20):
        first, second = LINES[i % len(LINES)], LINES[(i * 3 + 1) % len(LINES)]
        chat = [{"role": "user", "content": first}]
        if i >= len(LINES):
            chat += [{"role": "assistant", "content": f"I said no, {i} times."}, {"role": "user", "content": second}]
        chats.append(chat)
    return chats


def test_base_and_adapters_say_what_transformers_and_peft_say(
    served: Served, prompts: list[list[dict[str, str]]]
) -> None:
    said: dict[str, list[str]] = {}
    with served.client() as client, ThreadPoolExecutor(16) as pool:

        def ask(model: str, chat: list[dict[str, str]]) -> str:
            fields = {"model": model, "messages": chat, "max_tokens": 16}
            answer = client.post("/v1/chat/completions", json=fields).json()
            return answer["choices"][0]["message"]["content"]

        for model in (MODEL, *served.adapters):
            said[model] = list(pool.map(lambda chat, model=model: ask(model, chat), prompts))
    margins = {name: list(_shortfalls(prompts, said[name], served.adapters.get(name))) for name in said}
    for name, found in margins.items():
        # Rounded to bfloat16 in another order, near ties fall either way: how many there are is the adapter's affair,
        # how near they are is ours.
        assert max(found) < 0.5, f"{name}: a token that is not the best by {max(found):.2f} nats"
        assert mean(found) < 0.02, f"{name}: tokens that are not the best by {mean(found):.3f} nats on average"
    wrong = list(_shortfalls(prompts, said["tuned-1"], served.adapters["tuned-2"]))
    assert mean(wrong) > 0.1, "the check tells one adapter from the other"


def _shortfalls(prompts: list[Any], replies: list[str], adapter: str | None) -> Iterator[float]:
    """By how many nats each token of the replies is behind the best one, in transformers (and PEFT)."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from deescal.engine import resolve_dtype

    folder = resolve(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, resolve_dtype("auto")))
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    heads = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True, return_dict=False)
    tails = tokenizer(replies, add_special_tokens=False)["input_ids"]
    whole = [torch.tensor(head + tail) for head, tail in zip(heads, tails, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True)  # behind what is compared, so no mask is needed
    with torch.no_grad():
        logits = model.eval()(padded).logits.float()
    for row, head, tail in zip(logits, heads, tails, strict=True):
        for i, token in enumerate(tail):
            at = row[len(head) + i - 1]
            yield float(at.max() - at[token])


def test_long_prompts_with_a_seed_are_answered_and_answered_alike(served: Served) -> None:
    """vLLM would read them in parts, which on a CPU kills it where a request has a seed."""
    with served.client() as client, ThreadPoolExecutor(4) as pool:

        def ask(n: int) -> str:
            text = f"{n}: " + "step out of the car, " * 400
            fields = say(text, temperature=1.0, top_p=0.9, seed=7, max_tokens=8)
            answer = client.post("/v1/chat/completions", json=fields)
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["prompt_tokens"] > 2000
            return answer.json()["choices"][0]["message"]["content"]

        first = list(pool.map(ask, range(4)))
        assert list(pool.map(ask, range(4))) == first


def test_adapters_that_do_not_fit_together_are_read_again_when_asked(served: Served) -> None:
    """The endpoint holds one adapter at a time (`served`): each question after another's evicts it."""
    with served.client() as client:

        def ask(model: str) -> str:
            answer = client.post("/v1/chat/completions", json=say(LINES[1], model)).json()
            return answer["choices"][0]["message"]["content"]

        models = ("tuned-1", "tuned-2", MODEL)
        first = [ask(model) for model in models]
        assert len(set(first)) == 3
        assert [ask(model) for model in models * 2] == first * 2
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(ask, models * 2)) == first * 2


def test_an_adapter_comes_and_goes_under_traffic_and_no_request_fails(served: Served, tmp_path: Path) -> None:
    statuses: list[int] = []
    stop = threading.Event()

    def traffic() -> None:
        with served.client() as client:
            while not stop.is_set():
                for model in (MODEL, "tuned-1"):
                    statuses.append(
                        client.post("/v1/chat/completions", json=say("hi", model, max_tokens=4)).status_code
                    )

    threads = [threading.Thread(target=traffic) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        third = write_adapter(tmp_path / "third", MODEL, seed=3)
        loaded = deescal("serve", "load", f"third={third}", "--port", str(served.port))
        assert loaded.returncode == 0, loaded.stdout + loaded.stderr
        assert "third" in loaded.stdout
        with served.client() as client:
            assert client.post("/v1/chat/completions", json=say("hi", "third", max_tokens=2)).status_code == 200
            wide = write_adapter(tmp_path / "wide", MODEL, rank=128)
            refused = deescal("serve", "load", f"wide={wide}", "--port", str(served.port))
            assert refused.returncode == 2
            assert refused.stderr.strip().endswith(
                "rank 128, lora.max_rank=64: raise it, or tune with a smaller lora.r"
            )
            unloaded = deescal("serve", "unload", "third", "--port", str(served.port))
            assert unloaded.returncode == 0, unloaded.stdout + unloaded.stderr
            gone = client.post("/v1/chat/completions", json=say("hi", "third"))
            assert gone.status_code == 404
            assert "tuned-2" in gone.json()["error"]["message"], "it says what is served"
    finally:
        stop.set()
        for thread in threads:
            thread.join(240)
    assert len(statuses) > 4
    assert set(statuses) == {200}


def test_whatever_the_published_schema_allows_is_no_5xx(served: Served) -> None:
    """Schemathesis, with known models and short replies, so that requests get as far as the engine."""
    import schemathesis
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json", headers=HEADERS)
    for operation in [found.ok() for found in schema.get_all_operations()]:

        @settings(max_examples=10, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy())
        def check(case: Any) -> None:
            if isinstance(case.body, dict):
                if isinstance(case.body.get("model"), str):
                    case.body["model"] = MODEL
                for field in ("max_tokens", "max_completion_tokens"):
                    if isinstance(case.body.get(field), int):
                        case.body[field] = min(case.body[field], 4)
                case.body.setdefault("max_tokens", 4)
            case.call_and_validate(headers=HEADERS, excluded_checks=[positive_data_acceptance], timeout=120)

        check()


def test_metrics_are_exported_and_logs_have_no_prompt(served: Served) -> None:
    import httpx

    with served.client() as client:
        client.post("/v1/chat/completions", json=say(f"I am {SECRET_WORD}.", max_tokens=2))
        client.post("/v1/chat/completions", json=say(SECRET_WORD * 5000))  # refused: too long
        with client.stream("POST", "/v1/chat/completions", json=say("hi", stream=True)) as stream:
            stream.read()
    (line,) = [line for line in served.log.read_text().splitlines() if line.strip().startswith("metrics")]
    url = line.split()[-1]
    wanted = {"ray_vllm_generation_tokens", "ray_deescal_requests", "ray_deescal_first_token_seconds", "ray_serve_"}
    deadline = time.monotonic() + 60
    while True:
        text = httpx.get(url).text
        missing = {name for name in wanted if f"\n{name}" not in text}
        if not missing or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert not missing
    status = deescal("serve", "status", "--port", str(served.port))
    assert status.returncode == 0, status.stdout + status.stderr
    assert "1 running" in status.stdout
    logs = [file for file in served.ray_logs.rglob("*.*") if file.suffix in (".log", ".err", ".out") and file.is_file()]
    assert any("POST /v1/chat/completions" in file.read_text(errors="ignore") for file in logs), "a line a request"
    assert not [file for file in (*logs, served.log) if SECRET_WORD in file.read_text(errors="ignore")]


def test_a_stream_under_way_is_finished_when_another_command_stops_the_endpoint(served: Served) -> None:
    """The last test of this file, which ends it."""
    asked = say("Count to 1000.", max_tokens=150, stream=True, ignore_eos=True)
    with served.client() as client, client.stream("POST", "/v1/chat/completions", json=asked) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        with ThreadPoolExecutor(1) as other:
            stopped = other.submit(deescal, "serve", "stop", "--port", str(served.port))
            events = [line for line in lines if line]
            assert stopped.result().returncode == 0, stopped.result().stderr
    assert events[-1] == "data: [DONE]"
    assert len(events) > 100
    assert served.process.wait(60) == 0, "the command that served ends, too"
    assert "stopped by another command" in served.log.read_text()
    status = deescal("serve", "status", "--port", str(served.port))
    assert status.returncode == 2
    assert "no endpoint on port" in status.stderr
