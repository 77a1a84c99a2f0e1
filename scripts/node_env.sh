# shellcheck shell=bash
# Sourced on every cluster node before Ray starts, so that Ray's workers inherit it; see cluster.yaml.
export PATH="$HOME/venv/bin:$PATH"

# Ray's launcher sets this to 1 for the commands it runs; unset, Ray gives each worker as many threads as CPUs.
unset OMP_NUM_THREADS

# ctranslate2 (faster-whisper) loads CUDA 12's cuBLAS by name; torch brings CUDA 13's, elsewhere.
export LD_LIBRARY_PATH="$HOME/venv/lib/python3.11/site-packages/nvidia/cublas/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

# Ray's servers on this node want the token that cluster.yaml has brought, and its clients show it.
export RAY_AUTH_MODE=token

export RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 PYANNOTE_METRICS_ENABLED=0
export HF_HUB_DISABLE_TELEMETRY=1

# As `deescal serve` sets them on a laptop (RAY_ENV in deescal/serve/deploy.py says why). No key
# is set here: this file is in git and travels with every job.
export RAY_SERVE_THROUGHPUT_OPTIMIZED=1 RAY_SERVE_ENABLE_DIRECT_INGRESS=0

# Secrets (HF_TOKEN for gated models, DEESCAL_API_KEYS, the key of a judge's API) live in AWS's parameter store, as
# /deescal/env/NAME, and are read with the node's instance profile: never in a file, a config or a job's description.
if secrets=$(python - 2>/dev/null <<'PY'
import os, re, shlex
import boto3
from botocore.config import Config
from botocore.utils import InstanceMetadataRegionFetcher

region = os.environ.get("AWS_DEFAULT_REGION") or InstanceMetadataRegionFetcher().retrieve_region()
config = Config(connect_timeout=3, read_timeout=5, retries={"max_attempts": 2})
pages = boto3.client("ssm", region_name=region, config=config).get_paginator("get_parameters_by_path")
for page in pages.paginate(Path="/deescal/env", WithDecryption=True):
    for parameter in page["Parameters"]:
        name = parameter["Name"].rsplit("/", 1)[1]
        if re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            print(f"export {name}={shlex.quote(parameter['Value'])}")
PY
); then
    eval "$secrets"
fi
unset secrets
