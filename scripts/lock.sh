#!/usr/bin/env bash
# Resolve locks/cpu.txt anew. Needs uv (`pip install uv`); UV_FIND_LINKS or UV_INDEX may name a mirror.
set -euo pipefail
cd "$(dirname "$0")/.."
uv pip compile --upgrade pyproject.toml --extra cpu --extra dev locks/build.in \
    --override locks/overrides-cpu.txt --python-version 3.11 --no-header --no-emit-index-url \
    --no-annotate -o locks/cpu.txt
# The local version label of a CPU torch is the index's matter, not the lock's.
sed -i 's/^\(torch==[0-9.]*\)+cpu$/\1/; /^-e /d' locks/cpu.txt
