"""deescal: from videos of police-civilian encounters to small models that rehearse them."""

from __future__ import annotations

import os

__version__ = "0.1.0"

# Telemetry of every dependency is off unless the user turned it on. This runs before any of them is imported.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "PYANNOTE_METRICS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}.items():
    os.environ.setdefault(_name, _value)
