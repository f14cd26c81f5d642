# `make demo` and `make test` do all their set-up by themselves; they need Python 3.11 or newer and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
OUT := results/quickstart

.PHONY: help demo test chaos models schema lifecycle debian clean

help: ## show this
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# A stamp each, so that a second call installs nothing.
.venv/base: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "batchnlp needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[demo]'
	touch $@

.venv/test: .venv/base
	$(PIP) -e '.[test]'
	touch $@

demo: .venv/base ## classify Python's documentation by topic, without a model hub
	@$(BIN)/python -m batchnlp run jobs/quickstart.yaml
	@$(BIN)/python -m batchnlp collect $(OUT) -o $(OUT).csv
	@echo; echo "The first rows of $(OUT).csv:"; head -n 6 $(OUT).csv | cut -c 1-150
	@echo; echo "Worth typing next:"
	@printf '  %-50s  # %s\n' \
	  '$(BIN)/batchnlp verify $(OUT)' 'prove that nothing is missing or damaged' \
	  '$(BIN)/batchnlp run jobs/quickstart.yaml' 'again: it knows that all is done' \
	  '$(BIN)/batchnlp plan jobs/search.yaml --probe' 'what another job will cost, before it costs anything'

test: .venv/test ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/test_signals.py
	$(BIN)/python -m pytest tests/test_signals.py

chaos: .venv/test ## the whole fault matrix, injected for real: kills, hangs, full disks, damaged files (45 minutes)
	PYTHONPATH=.:tests $(BIN)/python -m chaos

models: .venv/base ## small stand-ins for the models that jobs/*.yaml name, in models/
	$(BIN)/python jobs/models.py

schema: .venv/base ## write jobs/schema.json and jobs/train-schema.json anew
	$(BIN)/python -m batchnlp.job.schema jobs

.venv/lifecycle: .venv/base
	$(PIP) -e '.[train,duckdb,evaluate]'
	touch $@

# $(1): the folder of the files, $(2): that of what they make.
define chain
	set -e; for file in $(1)/[1-9]-*.yaml; do $(BIN)/python -m batchnlp train run $$file; done
	set -e; for file in $(1)/run-*.yaml; do $(BIN)/python -m batchnlp run $$file; done
	set -e; for pair in labels:label titles:title names:entities; do name=$${pair%%:*}; \
	  $(BIN)/python -m batchnlp evaluate $(2)/run-$$name --labels $(2)/$$name-test.parquet:$${pair##*:}; done
endef

lifecycle: .venv/lifecycle ## tokenizer, models, jobs, warehouse: the whole way, offline, some minutes on a CPU
	$(BIN)/python jobs/lifecycle/corpus.py results/lifecycle/corpus.parquet
	$(call chain,jobs/lifecycle,results/lifecycle)

# Files, so that a second call goes on instead of beginning with another corpus.
results/debian/packages.parquet: | .venv/lifecycle
	$(BIN)/python benchmarks/corpus.py $@

results/debian/corpus.parquet: results/debian/packages.parquet
	$(BIN)/python jobs/lifecycle/corpus.py $@ --debian $<

debian: results/debian/corpus.parquet ## the same way over 63,666 package descriptions: two hours on two cores, on Debian or Ubuntu
	$(call chain,jobs/lifecycle/debian,results/debian)

clean: ## remove the environment and all results
	rm -rf .venv results
