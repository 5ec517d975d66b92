# The commands that README, CI and .ci/run use. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python
JULIA  ?= julia

.PHONY: venv demo test test-julia bench bench-julia docs lint clean

# The stamps keep make from installing again: one for the tests (and the demo), one each for what is rarer.
$(VENV)/.test: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("regnde needs Python 3.11 or newer, $(PYTHON) is %s: make PYTHON=python3.11 ..." % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/.bench: $(VENV)/.test
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

$(VENV)/.docs: $(VENV)/.test
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

venv: $(VENV)/.test

# Makes a classifier of 5,000 MNIST images cheap to solve, prints the table, writes demo.png.
demo: $(VENV)/.test
	$(RUN) -m regnde demo $(ARGS)

# Everything that needs no Julia; Julia tests skip with the reason.
test: $(VENV)/.test
	@echo "about 4,800 tests, 7 to 12 minutes on two cores; the reasons of skips stand at the end"
	$(RUN) -m pytest -rs -n auto $(ARGS)

# On a machine with Julia 1.10+ and the packages of julia/Project.toml: a skip is a failure.
test-julia: $(VENV)/.test
	$(JULIA) --project=julia -e 'using Pkg; Pkg.test()'
	$(RUN) -m pytest --engine=julia $(ARGS)

bench: $(VENV)/.bench
	$(RUN) -m benchmarks $(ARGS)

bench-julia: $(VENV)/.bench
	$(JULIA) --project=julia/benchmark julia/benchmark/benchmarks.jl
	$(RUN) -m benchmarks.engines
	$(RUN) -m benchmarks.first_use

docs: $(VENV)/.docs
	$(RUN) -m mkdocs build --strict $(ARGS)
	$(RUN) -m pytest -q tests/test_site.py

lint: $(VENV)/.test
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis site
