.PHONY: setup demo test check fast lock clips
PYTHON := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)

setup:  ## virtual environment, pinned packages, weights by SHA-256; a no-op when nothing changed
	@bash scripts/setup.sh

demo: setup  ## the sample clips through the whole of curation, ending in a page
	deescal curate examples/clips --out demo --config configs/local.yaml

test: setup  ## everything this machine can run
	@bash scripts/system_packages.sh
	ruff check . && ruff format --check . && mypy
	$(PYTHON) -m pytest -m "not gpu"

check: setup  ## the quick loop: style, types, fast tests
	ruff check . && ruff format --check . && mypy
	$(PYTHON) -m pytest -m "not engine and not ray and not browser and not gpu"

lock:  ## resolve the CPU lock anew (needs uv); see locks/README.md
	bash scripts/lock.sh

clips:  ## make the sample clips anew (needs flite and espeak-ng)
	$(PYTHON) examples/make_clips.py
