# The two commands that matter: `make serve` and `make test`.  Everything else is for daily work.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
PY := $(VENV)/bin/python
COMMAND := $(VENV)/bin/metastable
READY := $(VENV)/.installed
BUNDLE := model_store/cifar10
ARTIFACTS := model_store/artifacts/cifar10
ARCHIVE := model_store/metastable.mar
SOURCES := $(shell find metastable handlers export -name '*.py' 2>/dev/null)

# Where a worker dies the run ends: xdist would wait for ever for the tests that it had.
PYTEST := -m pytest -n auto --dist loadgroup --max-worker-restart 0

# Tests work on small tensors: threads that wait for each other cost several times what they do.
ONE_THREAD := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}

# Ray is an environment of its own, on top of the first one: none of its packages changes a version there.
RAY := .venv-ray
RAY_READY := $(RAY)/.installed

.PHONY: serve serve-ray test test-ray quick check audit demo bench soak archive install format clean

serve: $(READY) $(ARCHIVE)
	@$(COMMAND) serve --archive $(ARCHIVE) --sample samples/cat.png $(ARGS)

test: $(READY)
	@$(ONE_THREAD) $(PY) $(PYTEST) $(ARGS)

# Replicas on a cluster of Ray; for other machines: make serve-ray ARGS="--ray HOST:PORT --replicas 1:8".
serve-ray: $(RAY_READY) $(ARCHIVE)
	@$(RAY)/bin/python -m metastable serve --engine ray --archive $(ARCHIVE) --sample samples/cat.png $(ARGS)

# One after another: each starts clusters of its own.  Warnings are Ray's, from its import on.
test-ray: $(RAY_READY)
	@$(ONE_THREAD) $(RAY)/bin/python -m pytest -n 0 -W default $$(git ls-files 'tests/*_ray.py') $(ARGS)

quick: $(READY)
	@$(ONE_THREAD) $(PY) $(PYTEST) -m fast $(ARGS)

check: $(READY)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

# Known vulnerabilities of everything that is pinned.  Needs a network, and fails where one could not be looked up.
AUDIT := .audit
audit:
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && \
	    $(AUDIT)/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1; }
	@$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip -r requirements.lock

demo: $(READY)
	@$(COMMAND) demo $(ARGS)

# Needs the data sets in METASTABLE_DATA and a machine with nothing else to do.
bench: $(READY)
	@$(COMMAND) bench all $(ARGS)

# An hour with each engine: rude clients, parts that are killed and frozen (docs/reliability.md).
soak: $(READY)
	@$(COMMAND) bench soak --engine torchserve --out docs/results/soak.json $(ARGS)
	@$(COMMAND) bench soak --engine local --out docs/results/soak-local.json $(ARGS)

archive: $(ARCHIVE)

$(ARCHIVE): $(READY) $(SOURCES) $(wildcard $(BUNDLE)/* $(ARTIFACTS)/*/*) model-config.yaml
	@$(COMMAND) export mar --bundle $(BUNDLE) --artifacts $(ARTIFACTS) --out $@

install: $(READY)

# PyTorch first and alone, so that no other package chooses another build of it; last this project itself, for
# the command `metastable`.
$(READY): requirements.lock pyproject.toml
	@echo "installing the pinned dependencies into $(VENV) (once)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.lock)
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(PY) -c "from deploy import java; java.find(print)"
	@touch $@

$(RAY_READY): $(READY) requirements-ray.txt
	@echo "installing Ray into $(RAY) (once)"
	@test -x $(RAY)/bin/python || $(PYTHON) -m venv $(RAY)
	@echo "import site; site.addsitedir('$(CURDIR)/$(VENV)/lib/python3.11/site-packages')" \
	    > $(RAY)/lib/python3.11/site-packages/of_metastable.pth
	@$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-ray.txt
	@touch $@

format: $(READY)
	@$(VENV)/bin/ruff check --fix . ; $(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(RAY) $(AUDIT) .run .pytest_cache .mypy_cache .ruff_cache .hypothesis $(ARCHIVE)
