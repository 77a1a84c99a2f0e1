"""The config of an endpoint: what is refused before anything starts, and the file for Ray's `serve deploy`."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from deescal.config import load_config
from deescal.errors import UserError
from deescal.serve.adapters import Adapter
from deescal.serve.config import ServeConfig
from deescal.serve.deploy import RAY_ENV, deploy, explain, prepare, serve_config, url_of
from deescal.serve.guard import is_local_host

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEESCAL_API_KEYS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("deescal.dataset.chat.load_tokenizer", lambda name: None)


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "serve").glob("*.yaml")), ids=lambda f: f.stem)
def test_shipped_configs_are_valid_and_ray_takes_them(file: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    config = load_config(file, ServeConfig)
    schema = ServeDeploySchema.model_validate(serve_config(config))
    assert ServeConfig.model_validate(schema.applications[0].args) == config


@pytest.mark.parametrize(
    "override", ["llm.model=qwen2.5-coder-1.5b", "llm.max_num_seqs=32", "lora=null", "limits.burst=7", "name=x"]
)
def test_what_is_deployed_is_what_was_asked_for(override: str) -> None:
    config = load_config(None, ServeConfig, [override])
    (application,) = serve_config(config)["applications"]
    assert ServeConfig.model_validate(application["args"]) == config


def test_local_is_the_default() -> None:
    assert load_config(ROOT / "configs" / "serve" / "local.yaml", ServeConfig) == ServeConfig()


def test_a_serve_config_file_keeps_adapters_apart_from_what_restarts_replicas() -> None:
    config = load_config(None, ServeConfig, ["adapters=[tuned=s3://bucket/runs/a]", "http.port=8123"])
    written = yaml.safe_load(yaml.safe_dump(serve_config(config)))
    (application,) = written["applications"]
    assert application["import_path"] == "deescal.serve.endpoint:application"
    assert "adapters" not in application["args"]
    (deployment,) = application["deployments"]
    assert deployment["user_config"]["adapters"] == [{"name": "tuned", "uri": "s3://bucket/runs/a", "digest": ""}]
    assert (written["http_options"]["host"], written["http_options"]["port"]) == ("127.0.0.1", 8123)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["adapters=[a=x, a=y]"], "'a' names two models"),
        (["adapters=[smollm2-135m=x]"], "'smollm2-135m' names two models"),
        (["adapters=[tuned]"], "adapter 'tuned': expected name=URI"),
        (["adapters=[a=x]", "lora=null"], "adapters need a `lora` section"),
        (["limits.max_tokens=4096"], "leaves no room for a prompt"),
        (["replicas.min=3"], "min=3 is more than max=1"),
        (["replicas.mni=3"], "unknown key 'replicas.mni' .allowed: min, max"),
        (["http.port=99999"], "http.port=99999"),
        (["llm.dtype=fp8"], "llm.dtype='fp8'"),
    ],
)
def test_wrong_configs_are_one_line(overrides: list[str], why: str) -> None:
    with pytest.raises(UserError, match=why) as raised:
        load_config(None, ServeConfig, overrides)
    assert "\n" not in str(raised.value)


def test_without_keys_only_this_machine_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    open_to_all = load_config(None, ServeConfig, ["http.host=0.0.0.0", "http.port=18123"])
    with pytest.raises(UserError, match="without API keys it listens on this machine only"):
        prepare(open_to_all)
    monkeypatch.setenv("DEESCAL_API_KEYS", "academy:a-key-that-is-long")
    ready = prepare(open_to_all)
    assert ready.keys.required, "a node without the keys shall not serve"
    assert "a-key-that-is-long" not in ready.model_dump_json()
    assert url_of(ready) == "http://127.0.0.1:18123"
    monkeypatch.delenv("DEESCAL_API_KEYS")
    there = load_config(None, ServeConfig, ["http.host=0.0.0.0", "keys.required=true", "keys.file=/only/there"])
    assert prepare(there, on_nodes=True).keys == there.keys, "the keys of a cluster are the cluster's"


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"http.port={port} on 127.0.0.1: .*in use"):
            deploy(load_config(None, ServeConfig, [f"http.port={port}"]))


def test_an_adapter_that_is_not_there(tmp_path: Path) -> None:
    asked = ServeConfig(adapters=(Adapter(name="tuned", uri=str(tmp_path)),))
    with pytest.raises(UserError, match=r"adapter 'tuned': no adapter_config.json in"):
        prepare(asked)


@pytest.mark.parametrize(
    ("host", "inside"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.0.0.1", False), ("x", False)],
)
def test_loopback(host: str, inside: bool) -> None:
    assert is_local_host(host) is inside


def test_cluster_nodes_have_rays_settings_too() -> None:
    script = (ROOT / "scripts" / "node_env.sh").read_text()
    exported = dict(re.findall(r"(RAY_SERVE_\w+)=(\S+)", script))
    assert exported == RAY_ENV


def test_a_failed_deployment_is_told_by_our_own_line() -> None:
    def told(message: str) -> str:
        return explain(SimpleNamespace(message="UNHEALTHY", deployments={"Endpoint": SimpleNamespace(message=message)}))

    ours = "ray::ServeReplica\n  File x\ndeescal.errors.UserError: no API key on this node\nSee logs."
    assert told(ours) == "no API key on this node"
    theirs = "Traceback\nRuntimeError: Engine core initialization failed.\nmore"
    assert told(theirs) == "RuntimeError: Engine core initialization failed."
