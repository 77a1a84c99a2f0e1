# shellcheck shell=bash
# Sourced on every cluster node before Ray starts, so that Ray's workers inherit it; see cluster.yaml.
export PATH="$HOME/venv/bin:$PATH"

# Ray's launcher sets this to 1 for the commands it runs; unset, Ray gives each worker as many threads as CPUs.
unset OMP_NUM_THREADS

# Ray's servers on this node want the token that cluster.yaml has brought, and its clients show it.
export RAY_AUTH_MODE=token

export RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 PYANNOTE_METRICS_ENABLED=0
export HF_HUB_DISABLE_TELEMETRY=1

# As `deescal serve` sets them on a laptop (RAY_ENV in deescal/serve/deploy.py says why). API keys, too, are a node's
# matter: DEESCAL_API_KEYS or a file, never a config or a job's description.
export RAY_SERVE_THROUGHPUT_OPTIMIZED=1 RAY_SERVE_ENABLE_DIRECT_INGRESS=0

# Gated models need a Hugging Face token. It lives in AWS's parameter store and is read with the node's instance
# profile: never in a file, a config or a job's description. Without that parameter only open models can be fetched.
if HF_TOKEN=$(python - 2>/dev/null <<'PY'
import boto3
from botocore.config import Config
from botocore.utils import InstanceMetadataRegionFetcher

config = Config(connect_timeout=3, read_timeout=5, retries={"max_attempts": 2})
ssm = boto3.client("ssm", region_name=InstanceMetadataRegionFetcher().retrieve_region(), config=config)
print(ssm.get_parameter(Name="/deescal/hf-token", WithDecryption=True)["Parameter"]["Value"])
PY
); then
    export HF_TOKEN
else
    unset HF_TOKEN
fi
