# Every target sets up .venv by itself. PYTHON chooses the interpreter that makes it.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export NO_ALBUMENTATIONS_UPDATE := 1
MLFLOW_PORT ?= 5000
PREFECT_PORT ?= 4200

.PHONY: demo test test-long test-team check docs ui bench pins release clean

# Without a network, training starts from random weights.
demo: .venv/installed
	PNEUMOFLOW_WEIGHTS_OPTIONAL=1 python -m flows.training

test: .venv/installed
	python -m pytest -m "not long and not team"

# Kills, servers that go and come back, several processes: what takes long.
test-long: .venv/installed .venv-label-studio/installed
	python -m pytest -m long

# A team's servers, and hosts in namespaces: needs root. On Debian it installs PostgreSQL and nginx; elsewhere, the tests
# that need them are skipped with a line.
test-team: .venv/installed
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! { ls -d /usr/lib/postgresql/*/bin && command -v nginx; } \
	  >/dev/null 2>&1; then apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends \
	  postgresql nginx-light; fi
	python -m pytest tests/deploy

check: .venv/installed
	ruff format --check .
	ruff check .
	mypy
	lint-imports

# The documents as a site, in site/.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet
	@echo 'site/index.html'

ui: .venv/installed
	python -m flows.ui --mlflow-port $(MLFLOW_PORT) --prefect-port $(PREFECT_PORT)

bench: .venv/installed
	python -m benchmarks

# Packages with digests, of the versions in constraints.txt: uv.txt and lock.txt for .venv, and those of the images in
# deploy/.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
  --constraint constraints.txt
pins: .venv/installed
	echo uv | $(COMPILE) - --output-file uv.txt
	printf 'mlflow[auth]\nprefect\npsycopg[binary]\nboto3\n' | $(COMPILE) - --output-file deploy/servers.txt
	$(COMPILE) pyproject.toml --extra dev --output-file lock.txt
	$(COMPILE) pyproject.toml --extra team --extra sr --extra export --extra dask --extra kaggle \
	  --output-file deploy/worker.txt

# A wheel, a source archive, a list of all packages that .venv has (CycloneDX), and their licences: dist/.
release: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check build cyclonedx-bom pip-licenses
	rm -rf dist
	python -m build --outdir dist .
	cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file dist/sbom.cdx.json $(BIN)/python
	pip-licenses --from=mixed --format=csv --with-urls --output-file=dist/licences.csv

LEFT_BY_RUNS := data/prepared data/.prepared.parts data/splits.csv models reports checkpoints dvc.lock dvc_plots \
  mlruns mlartifacts mlflow.db* .pneumoflow .pneumoflow.lock ablation crossval queue scored sweep .dvc/cache/runs .dvc/tmp

# Afterwards every stage runs again. A cache that other projects share is left alone. Without DVC nothing is at work.
clean:
	@if command -v dvc >/dev/null; then python -m pipeline.folder_lock; fi
	@echo 'removed: $(LEFT_BY_RUNS),'
	@echo '  and the copies in .dvc/cache of files that neither data/rsna.dvc nor a commit names'
	@echo 'kept: the raw data, .venv, inbox, and what you wrote elsewhere'
	@rm -rf $(LEFT_BY_RUNS)
	@find . \( -name '.venv*' -o -name .git \) -prune -o -name __pycache__ -prune -exec rm -rf {} +
	@if command -v dvc >/dev/null && [ "$$(dvc cache dir)" = "$(CURDIR)/.dvc/cache" ]; then \
	  dvc gc --quiet --workspace --all-commits --force || dvc gc --quiet --workspace --force; fi

# uv takes a quarter of pip's time (53 s and 197 s with empty caches). Pip's settings name the mirror of a closed network,
# this machine's certificates its proxy; where uv's cache cannot be, it does without.
PIP_INDEX = $(BIN)/pip config list | sed -n "s/^.*\.index-url='\(.*\)'\$$/\1/p" | head -n 1
UV_INSTALL = index=$${UV_DEFAULT_INDEX:-$$($(PIP_INDEX))}; $(BIN)/uv pip install --python $(BIN)/python --system-certs \
  --default-index "$${index:-https://pypi.org/simple}" \
  $$(mkdir -p "$${UV_CACHE_DIR:-$$HOME/.cache/uv}" 2>/dev/null || echo --no-cache)
.venv/installed: pyproject.toml lock.txt uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, $(PYTHON) is %d.%d; make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet --require-hashes --requirement uv.txt
	@$(UV_INSTALL) --compile-bytecode --require-hashes --requirement lock.txt
	@$(UV_INSTALL) --quiet --no-deps --editable .
	@touch $@

# Its packages do not fit ours.
.venv-label-studio/installed:
	$(PYTHON) -m venv .venv-label-studio
	.venv-label-studio/bin/pip install --quiet --disable-pip-version-check 'label-studio>=1.20'
	@touch $@
