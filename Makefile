# Two commands set everything up: `make demo` and `make test`. Neither needs root, a compiler or a running service.

SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
UV := $(shell command -v uv 2>/dev/null || echo $(VENV)/bin/uv)
DEMO := runs/demo
# Two processes, a test file in one of them: what waits for a Ray leaves its core to the other. A third one saves a tenth of the time
# and takes some 4 GB. In the order of the names: by default files of few tests come last, and the longest tests are in those.
# Where one of the two dies the run ends and names its test: pytest-xdist replaces it, but loses the tests it held and waits for them forever.
TESTS := $(PYTHON) -m pytest -q -n 2 --max-worker-restart=0 --dist loadfile --no-loadscope-reorder
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED := 0
# A container image that sets it makes each of the hundreds of processes compile torch, ray and mmdetection anew: four seconds of a core.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test test-all test-cluster soak lint format lock clean

install: $(VENV)/.installed

# The marker is newer than the lock exactly when the environment holds what the lock says.
$(VENV)/.installed: requirements.lock
	@command -v uv >/dev/null || { test -x $(VENV)/bin/python || python3 -m venv $(VENV); $(VENV)/bin/python -m pip install --quiet 'uv>=0.9,<1'; }
	@test -x $(PYTHON) && $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
		|| $(UV) venv --quiet --allow-existing --python '>=3.11,<3.13' $(VENV)
	$(UV) pip sync --quiet --require-hashes --python $(PYTHON) requirements.lock
	@touch $@

demo: install
	$(PYTHON) jobs/ingest.py drawn $(DEMO)/imageset --users 24 --shops 400 --seed 1 --shard-images 53 --overwrite
	$(PYTHON) jobs/full_eval.py --imageset $(DEMO)/imageset --output $(DEMO)/run --profile tiny

# Of random inputs a fifth of what test-all tries.
test: install
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-100} $(TESTS) -m "not slow"

test-all: install
	$(TESTS) -rs

# `ray up`, `ray submit`, `ray down` for real, over sshd and rsync; without root it ends every Ray of this user, as `ray down` does
test-cluster: install
	MAY_END_EVERY_RAY=1 $(PYTHON) -m pytest -q tests/cluster tests/test_cluster_files.py

# A night's work
soak: install
	SOAK_PHOTOS=100000 $(PYTHON) -m pytest -q -s tests/jobs/test_long_run.py
	BOOKKEEPING_PHOTOS=16000000 $(PYTHON) -m pytest -q tests/benchmarks/test_bookkeeping.py
	CHAOS_ROUNDS=30 $(PYTHON) -m pytest -q -s tests/jobs/test_chaos.py
	SOAK_ROUNDS=10 $(PYTHON) -m pytest -q tests/jobs/test_resume.py
	GALLERY_KILLS=30 $(PYTHON) -m pytest -q -s tests/jobs/gallery/test_killed.py
	GALLERY_NIGHTS=14 GALLERY_PHOTOS=1000 GALLERY_MODELS=tiny $(PYTHON) -m pytest -q -s tests/jobs/gallery/test_fortnight.py
	EXAMPLES=random $(PYTHON) -m pytest -q tests/detection tests/postproc tests/retrieval tests/sources tests/store
	FUZZ_EXAMPLES=10000 FUZZ_SEED=random $(PYTHON) -m pytest -q -o timeout=0 tests/fuzz

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: install
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

lock:
	$(UV) pip compile pyproject.toml --extra dev --universal --generate-hashes --no-emit-index-url --no-annotate -o requirements.lock

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
