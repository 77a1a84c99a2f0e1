"""cluster.yaml and runtime_env.yaml against Ray's own checks, EC2's parameters, and what the stages ask for."""

from __future__ import annotations

import os
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deescal.config import TaskResources, load_config
from deescal.curate.config import CurateConfig
from deescal.stage import StageConfig

ROOT = Path(__file__).parents[1]
GPU_CONFIG = ROOT / "configs" / "gpu.yaml"
# Stage -> the group it is meant for: the smallest that one worker of it fits; as docs/cluster.md has it.
MEANT_FOR = {
    "audio": "cpu",
    "transcribe": "speech",
    "diarize": "speech",
    "turns": "cpu",
    "interpret": "large",
    "select": "cpu",
}
Demand = tuple[float, float, float]  # GPUs, GiB of memory, CPUs


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def groups(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The worker groups, from the smallest machine to the largest."""
    workers = {k: v for k, v in cluster["available_node_types"].items() if k != cluster["head_node_type"]}
    return dict(sorted(workers.items(), key=lambda item: capacity(item[1])))


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """EC2 and IAM simulated in this process; nothing of the user's is read or written."""
    from moto import mock_aws

    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes a key pair to ~/.ssh
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "simulated")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "simulated")
    with mock_aws():
        yield


def capacity(group: dict[str, Any]) -> Demand:
    resources = group["resources"]
    return resources.get("GPU", 0), resources["memory"] / 2**30, resources["CPU"]


def demand(resources: TaskResources) -> Demand:
    return resources.num_gpus, resources.memory_gib, resources.num_cpus


def fits(asked: Demand, free: Demand) -> bool:
    return all(a <= f + 1e-9 for a, f in zip(asked, free, strict=True))


def stage_resources() -> dict[str, TaskResources]:
    """Stage -> what one worker or task asks for and how many workers there are, under the cluster profile."""
    config = load_config(GPU_CONFIG, CurateConfig)
    sections = {name: getattr(config, name) for name in CurateConfig.model_fields}
    return {name: section.resources for name, section in sections.items() if isinstance(section, StageConfig)}


def nodes_needed(asked: list[Demand], groups: dict[str, dict[str, Any]]) -> dict[str, int] | None:
    """Nodes of each group that hold all the workers at once, the most demanding first; None if they do not fit."""
    nodes: list[tuple[str, Demand]] = []
    counts = dict.fromkeys(groups, 0)
    for one in sorted(asked, reverse=True):
        # Like Ray: an open node before a new one, the smallest that will do before a larger one.
        room = [i for i, (_, free) in enumerate(nodes) if fits(one, free)]
        if not room:
            new = [
                name
                for name, group in groups.items()
                if fits(one, capacity(group)) and counts[name] < group["max_workers"]
            ]
            if not new:
                return None
            counts[new[0]] += 1
            nodes.append((new[0], capacity(groups[new[0]])))
            room = [len(nodes) - 1]
        i = min(room, key=lambda i: list(groups).index(nodes[i][0]))
        name, free = nodes[i]
        nodes[i] = (name, (free[0] - one[0], free[1] - one[1], free[2] - one[2]))
    return counts


def test_ray_accepts_the_cluster(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(cluster)
    validate_config(prepared)  # Ray's JSON schema, and its rules beyond it
    assert prepared["available_node_types"]["head"]["max_workers"] == 0


def test_every_group_can_be_launched(aws: None, cluster: dict[str, Any]) -> None:
    """Ray's launcher and boto3's parameter checks, on a simulated EC2: typing errors show, a full region does not."""
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    iam = boto3.client("iam", cluster["provider"]["region"])
    for group in cluster["available_node_types"].values():
        name = group["node_config"]["IamInstanceProfile"]["Name"]
        if name not in {p["InstanceProfileName"] for p in iam.list_instance_profiles()["InstanceProfiles"]}:
            iam.create_instance_profile(InstanceProfileName=name)

    config = bootstrap_aws(prepare_config(cluster))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, group in config["available_node_types"].items():
        (node,) = provider.create_node(dict(group["node_config"]), {"ray-node-type": "worker"}, 1).values()
        assert node.instance_type == group["node_config"]["InstanceType"], name


def test_groups_promise_no_more_than_the_machines_have(cluster: dict[str, Any]) -> None:
    from moto.ec2.models.instance_types import INSTANCE_TYPES  # AWS's own description of its machines

    for name, group in cluster["available_node_types"].items():
        machine = INSTANCE_TYPES[group["node_config"]["InstanceType"]]
        resources = group["resources"]
        gpus = sum(gpu["Count"] for gpu in machine.get("GpuInfo", {}).get("Gpus", []))
        assert resources.get("GPU", 0) == gpus, name
        assert resources["CPU"] in (0, machine["VCpuInfo"]["DefaultVCpus"]), name
        # 30 % of a machine's memory is the object store's.
        assert resources.get("memory", 0) <= 0.7 * machine["MemoryInfo"]["SizeInMiB"] * 2**20, name


def test_no_work_on_the_head_and_spot_elsewhere(cluster: dict[str, Any], groups: dict[str, dict[str, Any]]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    for name, group in groups.items():
        assert group["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}, name
        assert group["min_workers"] == 0, name
    assert cluster["max_workers"] == sum(group["max_workers"] for group in groups.values())


def test_nodes_get_access_by_profile_and_start_in_a_known_environment(cluster: dict[str, Any]) -> None:
    text = (ROOT / "cluster.yaml").read_text() + (ROOT / "runtime_env.yaml").read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{20}|aws_credentials|SECRET|PASSWORD", text)
    for name, group in cluster["available_node_types"].items():
        assert "IamInstanceProfile" in group["node_config"], name
    for local in cluster["file_mounts"].values():
        assert local.startswith("~/") or (ROOT / local).exists(), local
    starts = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    assert all("node_env.sh && " in command for command in starts)
    exported = (ROOT / "scripts" / "node_env.sh").read_text()
    for name, value in yaml.safe_load((ROOT / "runtime_env.yaml").read_text())["env_vars"].items():
        assert f"{name}={value}" in exported


def test_every_node_wants_the_token_that_ray_up_brings(cluster: dict[str, Any], tmp_path: Path) -> None:
    from ray._private.authentication.authentication_token_setup import _get_default_token_path

    token = _get_default_token_path().relative_to(Path.home())
    assert cluster["file_mounts"][f"/home/{cluster['auth']['ssh_user']}/{token}"] == f"~/{token}"
    # As a node does it, without a parameter store: the environment in which `ray start` runs.
    command = [f". {ROOT}/scripts/node_env.sh && echo $RAY_AUTH_MODE"]
    stub = tmp_path / "venv" / "bin" / "python"
    stub.parent.mkdir(parents=True)
    stub.write_text("#!/bin/sh\nexit 1\n")
    stub.chmod(0o755)
    result = subprocess.run(
        ["bash", "-c", *command],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "token\n", result.stderr


def test_nodes_read_secrets_from_the_parameter_store(s3: object, tmp_path: Path) -> None:
    import boto3

    ssm = boto3.client("ssm")
    for name, value in (("HF_TOKEN", "hf 'x' $y"), ("JUDGE_KEY", "k"), ("bad-name", "z")):
        ssm.put_parameter(Name=f"/deescal/env/{name}", Value=value, Type="SecureString")
    command = f'. {ROOT}/scripts/node_env.sh && echo "$HF_TOKEN|$JUDGE_KEY|${{secrets-gone}}"'
    found = subprocess.run(
        ["bash", "-c", command], env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert found.stdout == "hf 'x' $y|k|gone\n", found.stderr


def test_ray_accepts_the_runtime_env() -> None:
    from ray.runtime_env import RuntimeEnv

    runtime_env = yaml.safe_load((ROOT / "runtime_env.yaml").read_text())
    checked = RuntimeEnv(**runtime_env)
    assert checked["working_dir"] == "."
    assert "pip" not in checked
    assert set(checked["env_vars"]) == {
        "RAY_USAGE_STATS_ENABLED",
        "VLLM_NO_USAGE_STATS",
        "DO_NOT_TRACK",
        "PYANNOTE_METRICS_ENABLED",
        "HF_HUB_DISABLE_TELEMETRY",
    }


def test_a_job_uploads_the_code_and_little_else(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "job.zip"
    excludes = yaml.safe_load((ROOT / "runtime_env.yaml").read_text())["excludes"]
    create_package(str(ROOT), package, include_gitignore=True, excludes=excludes)
    names = zipfile.ZipFile(package).namelist()
    assert {"deescal/__init__.py", "jobs/curate.py", "configs/local.yaml"} <= set(names)
    assert not [n for n in names if n.startswith((".git/", ".venv/", "tests/", "examples/", "runs/", "demo/"))]
    assert package.stat().st_size < 5 * 2**20


def test_packing() -> None:
    groups = {
        "cpu": {"resources": {"CPU": 4, "memory": 8 * 2**30}, "max_workers": 1},
        "gpu": {"resources": {"CPU": 8, "GPU": 2, "memory": 16 * 2**30}, "max_workers": 1},
    }
    assert nodes_needed([(1, 4, 1), (1, 4, 1), (0, 1, 4), (0, 1, 4)], groups) == {"cpu": 1, "gpu": 1}
    assert nodes_needed([(0.5, 1, 1)] * 4, groups) == {"cpu": 0, "gpu": 1}
    assert nodes_needed([(1, 4, 1)] * 3, groups) is None
    assert nodes_needed([(0, 32, 1)], groups) is None


def test_each_stage_runs_on_the_group_meant_for_it(groups: dict[str, dict[str, Any]]) -> None:
    asked = stage_resources()
    assert asked.keys() == MEANT_FOR.keys()
    for stage, resources in asked.items():
        able = [name for name, group in groups.items() if fits(demand(resources), capacity(group))]
        assert able, f"{stage}: a worker asks for {demand(resources)}, more than any node has"
        assert able[0] == MEANT_FOR[stage], f"{stage}: the smallest group it fits is {able[0]}"


def test_all_workers_of_all_stages_fit_at_once(cluster: dict[str, Any], groups: dict[str, dict[str, Any]]) -> None:
    """Curation streams: every stage holds its workers at the same time."""
    asked = [demand(r) for r in stage_resources().values() for _ in range(getattr(r, "workers", 1))]
    # Beside the stages' workers, reading and writing take a CPU each.
    needed = nodes_needed([*asked, (0, 1, 1), (0, 1, 1)], groups)
    assert needed is not None, "some group's max_workers is too small"
    assert sum(needed.values()) <= cluster["max_workers"]
