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

# What running needs is in LOCK; what tests and checks need besides is in DEV_LOCK, which holds all of LOCK too.
LOCK ?= requirements.lock
DEV_LOCK := requirements-dev.lock
COMPILE := $(UV) pip compile --quiet pyproject.toml --generate-hashes --no-emit-index-url --no-annotate

.PHONY: install install-dev demo test test-all test-cluster soak lint format lock lock-here clean

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# A marker is newer than its lock exactly when the environment holds what the lock says. Any index may have a package: the hashes decide.
define sync
	@command -v uv >/dev/null || { test -x $(VENV)/bin/python || python3 -m venv $(VENV); $(VENV)/bin/python -m pip install --quiet 'uv>=0.9.8,<1'; }
	@test -x $(PYTHON) && $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| $(UV) venv --quiet --allow-existing --python '>=3.11,<3.14' $(VENV)
	$(UV) pip sync --quiet --require-hashes --index-strategy unsafe-best-match --python $(PYTHON) $(1)
endef

$(VENV)/.installed: $(LOCK)
	$(call sync,$<)
	@rm -f $@-dev
	@touch $@

$(VENV)/.installed-dev: $(DEV_LOCK)
	$(call sync,$<)
	@touch $(VENV)/.installed $@

demo: install
	$(PYTHON) jobs/ingest.py drawn $(DEMO)/imageset --users 24 --shops 400 --seed 1 --shard-images 53 --overwrite
	$(PYTHON) jobs/full_eval.py --imageset $(DEMO)/imageset --output $(DEMO)/run --profile tiny

# Of random inputs a fifth of what test-all tries.
test: install-dev
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-100} $(TESTS) -m "not slow"

test-all: install-dev
	$(TESTS) -rs

# `ray up`, `ray submit`, `ray down` for real, over sshd and rsync; without root it ends every Ray of this user, as `ray down` does
test-cluster: install-dev
	MAY_END_EVERY_RAY=1 $(PYTHON) -m pytest -q tests/cluster tests/test_cluster_files.py

# A night's work
soak: install-dev
	SOAK_PHOTOS=100000 $(PYTHON) -m pytest -q -s tests/jobs/test_long_run.py
	BOOKKEEPING_PHOTOS=16000000 $(PYTHON) -m pytest -q tests/benchmarks/test_bookkeeping.py
	CHAOS_ROUNDS=30 $(PYTHON) -m pytest -q -s tests/jobs/test_chaos.py
	SOAK_ROUNDS=10 $(PYTHON) -m pytest -q tests/jobs/test_resume.py
	GALLERY_KILLS=30 $(PYTHON) -m pytest -q -s tests/jobs/gallery/test_killed.py
	GALLERY_NIGHTS=14 GALLERY_PHOTOS=1200 GALLERY_MODELS=tiny $(PYTHON) -m pytest -q -s tests/jobs/gallery/test_fortnight.py
	EXAMPLES=random $(PYTHON) -m pytest -q tests/detection tests/postproc tests/retrieval tests/sources tests/store
	FUZZ_EXAMPLES=10000 FUZZ_SEED=random $(PYTHON) -m pytest -q -o timeout=0 tests/fuzz

lint: install-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: install-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Versions stay as they are in the locks, but where pyproject.toml asks for others.
lock:
	$(COMPILE) --universal --extra train -o requirements.lock
	$(COMPILE) --universal --all-extras --group dev --constraint requirements.lock -o $(DEV_LOCK)

# A lock of this machine's own, with packages from an index of yours, such as one with a torch without CUDA (docs/recipes.md)
lock-here:
	$(COMPILE) --extra train --constraint requirements.lock --index-strategy unsafe-best-match -o $(LOCK)

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
