"""What is refused when a run begins or ends, with one clear line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deescal.cluster import check_place, check_size
from deescal.curate import job
from deescal.curate.config import CurateConfig
from deescal.errors import UserError

from .conftest import write_wav


def test_a_machine_that_is_too_small_is_refused(fast_config: CurateConfig) -> None:
    demand = fast_config.demand()
    assert demand["CPU"] == 1.5 + 1, "three pools, and the largest task"
    assert fast_config.demand(["select"]) == {"CPU": 0.5, "GPU": 0.0, "memory": 0.2 * 2**30}
    check_size(demand, {"CPU": 2.5, "memory": 8.0 * 2**30})
    with pytest.raises(UserError, match=r"ask for 2\.5 CPUs at once, Ray has 2\.0 on this machine.*ray\.num_cpus"):
        check_size(demand, {"CPU": 2.0, "memory": 8.0 * 2**30})
    with pytest.raises(UserError, match=r"ask for 1\.3 GiB of memory at once, Ray has 1\.0 on this machine"):
        check_size(demand, {"CPU": 4.0, "memory": 1.0 * 2**30})


def test_an_input_that_ends_in_no_row_is_a_bug_that_shows(
    tmp_path: Path, fast_config: CurateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [write_wav(tmp_path / f"{name}.wav", 2.0, 0) for name in "ab"]
    monkeypatch.setattr(job, "stream", lambda *args: iter(()))
    with pytest.raises(RuntimeError, match=r"2 of 2 inputs are in no row, the first is .*a\.wav"):
        job.curate([str(c) for c in clips], str(tmp_path / "run"), fast_config)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.fixture
def two_nodes() -> Iterator[None]:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
def test_a_head_without_cpus_waits_for_the_first_worker(tmp_path: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    (tmp_path / "job.json").write_text("{}")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        with ThreadPoolExecutor(1) as pool:
            checked = pool.submit(check_place, str(tmp_path / "job.json"))
            time.sleep(2)
            assert not checked.done()
            cluster.add_node(num_cpus=1)  # in the main thread, as Ray sets signal handlers
            checked.result(timeout=60)
        with pytest.raises(UserError, match="2 of the cluster's 2 nodes do not see"):
            check_place(str(tmp_path / "elsewhere" / "job.json"))
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.ray
def test_a_folder_that_other_nodes_do_not_see_is_refused(tmp_path: Path, two_nodes: None) -> None:
    (tmp_path / "job.json").write_text("{}")
    check_place(str(tmp_path / "job.json"))  # both nodes are this machine: as good as a shared folder
    check_place("s3://bucket/run/job.json")
    with pytest.raises(UserError, match="2 of the cluster's 2 nodes do not see"):
        check_place(str(tmp_path / "elsewhere" / "job.json"))
