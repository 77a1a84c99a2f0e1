#!/usr/bin/env bash
# All set-up of a fresh machine (`make setup`): virtual environment, locked packages, the package itself, weights.
# Safe to run again: what is there and unchanged is left alone. PYTHON names another interpreter; LOCK another lock,
# locks/gpu.txt for a machine with an NVIDIA GPU, which is remembered.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
chosen=$venv/.deescal-lock-name
lock=${LOCK:-$(cat "$chosen" 2>/dev/null || echo locks/cpu.txt)}
export PIP_DISABLE_PIP_VERSION_CHECK=1
say() { printf '%-10s %s\n' "$1" "$2"; }
fail() {
    say "$1" "$2" >&2
    exit 1
}
[[ -f $lock ]] || fail LOCK "there is no $lock; take locks/cpu.txt or locks/gpu.txt"
sha() { sha256sum "$1" | cut -d' ' -f1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3; do
        # A pyenv shim exists without the version behind it, so ask it.
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail python "no Python 3.11 or 3.12; install one (Debian: apt-get install python3-venv) or name it in PYTHON"
}

# 1. Virtual environment
if [[ ! -x $venv/bin/python ]]; then
    python=$(find_python)
    "$python" -m venv "$venv" || {
        rm -rf "$venv" # without ensurepip, venv leaves half an environment
        fail venv "'$python -m venv' failed (Debian: apt-get install python3-venv)"
    }
    say venv "made $venv with $("$venv/bin/python" --version)"
else
    say venv "$venv is there"
fi
"$venv/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
    say venv "the lock was made and tested with Python 3.11; here it is $("$venv/bin/python" --version)"

# 2. Locked packages
stamp=$venv/.deescal-lock
lock_sha=$(sha "$lock")
if [[ -f $stamp && $(<"$stamp") == "$lock_sha" ]]; then
    say packages "as in $lock"
else
    rm -f "$stamp"
    pip_args=()
    torch_index=https://download.pytorch.org/whl/cpu
    # PyPI's torch for Linux is a CUDA build, which cannot even be imported without its CUDA packages.
    if [[ $lock == *gpu* ]]; then
        say packages "the CUDA build of torch comes from pip's own indexes"
    elif curl -fsI --max-time 3 "$torch_index/" >/dev/null 2>&1; then
        pip_args+=(--extra-index-url "$torch_index")
        say packages "the CPU build of torch comes from $torch_index"
    else
        say packages "$torch_index does not answer; pip's own indexes must have a CPU build of torch"
    fi
    say packages "installing $(grep -c == "$lock") packages of $lock (some minutes, 5 GB and more)"
    # --no-deps: the lock is complete, and leaves out on purpose packages that others name as requirements.
    # -qq: a mirror in pip's configuration that lacks a package is worth a warning to pip, hundreds of them here.
    "$venv/bin/pip" install -qq --no-deps ${pip_args[@]+"${pip_args[@]}"} -r "$lock"

    cuda=$("$venv/bin/python" -c 'import torch; print(torch.version.cuda)' 2>/dev/null) ||
        fail torch "cannot be imported: likely PyPI's CUDA build, as $torch_index did not answer. Make it \
reachable, or name an index with CPU builds in PIP_EXTRA_INDEX_URL; then remove $venv and run this again"
    # pyannote needs torchaudio, and PyPI's torchaudio is a CUDA build too: beside a CPU torch its native library
    # fails to load. Without that library torchaudio runs in its Python mode, which has all that is used here.
    if [[ $cuda == None ]] && ! "$venv/bin/python" -c 'import torchaudio' 2>/dev/null; then
        rm -f "$venv"/lib/python3*/site-packages/torchaudio/lib/*.so
        say torchaudio "removed its CUDA libraries, which cannot load beside a CPU torch"
        "$venv/bin/python" -c 'import torchaudio' || fail torchaudio "still cannot be imported"
    fi
    echo "$lock_sha" >"$stamp"
    echo "$lock" >"$chosen"
    say packages "installed in $SECONDS s; $("$venv/bin/python" -c 'import torch; print("torch", torch.__version__)')"
fi

# 3. The package itself, editable: only its description can make it stale
stamp=$venv/.deescal-package
package_sha="$(sha pyproject.toml) $PWD"
if [[ -f $stamp && $(<"$stamp") == "$package_sha" ]]; then
    say deescal "installed, editable"
else
    "$venv/bin/pip" install -qq --no-deps --no-build-isolation -e .
    echo "$package_sha" >"$stamp"
    say deescal "installed, editable"
fi

# 4. Weights, by SHA-256
"$venv/bin/deescal" models fetch --profile local
PYTHON=$venv/bin/python bash scripts/nltk_data.sh || true # optional, as it says
say ready "set up; try: make demo"
