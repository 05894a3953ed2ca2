PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENGINE ?= in-process
START ?= public
OUT ?= runs/demo-$(START)-$(ENGINE)
KIND ?= manifest
SECONDS ?= 60
DIST ?= dist
CONTAINER ?= docker
SITE ?= build/docs

.PHONY: install demo test test-slow test-gpu test-python fuzz audit bom docs coverage check lint types rules check-wheel wheel container proto clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("FedFREE needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# make demo START=random: as FREE has it, from random weights.
demo: install
	$(BIN)/fedfree-sim run --config simulations/configs/demo$(if $(filter random,$(START)),-random).toml --engine $(ENGINE) --out $(OUT)

# A process a CPU, each with one thread: more would wait for each other.
test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test-slow: install
	$(BIN)/pytest -m slow --timeout 1800

test-gpu: install
	$(BIN)/pytest -m gpu

# make test-python PYTHON=python3.13: the default tests, in an environment of that Python.
test-python:
	$(MAKE) test VENV=.venv-$(notdir $(PYTHON))

# make fuzz KIND=weights SECONDS=600: with a fuzzer that follows which lines an input reaches.
fuzz: install
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,fuzz]'
	$(BIN)/python -W ignore tests/properties/guided.py $(KIND) -max_total_time=$(SECONDS)

# What is installed here, held against a database of known vulnerabilities; needs a network, and what the
# database cannot be asked about is an error.
audit: install
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,audit]'
	$(BIN)/pip freeze --exclude-editable | $(BIN)/pip-audit --strict --no-deps --disable-pip --requirement /dev/stdin

# What is installed here as a bill of materials, CycloneDX, in bom.json; needs no network.
bom: install
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,audit]'
	$(BIN)/cyclonedx-py environment --output-reproducible --output-file bom.json $(BIN)/python

# The documentation as a site of files, with a search; whatever is doubtful in it is an error.
docs: install
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	$(BIN)/python -m sphinx -W --keep-going --quiet -c docs -d build/doctrees . $(SITE)
	@echo "open $(SITE)/index.html"

coverage: install
	$(BIN)/pytest --cov

check: lint types rules

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

rules: install
	$(BIN)/pytest -q tests/architecture tests/packaging

# With FULL=1 the wheel's dependencies are installed anew: minutes, and gigabytes.
check-wheel: install
	$(BIN)/pytest -q -m slow --timeout 1800 tests/packaging/test_wheel.py

# In dist/: what git knows of, nothing that an earlier build left.
wheel:
	rm -rf build/wheel
	mkdir -p build/wheel
	git ls-files -z --cached --others --exclude-standard | tar -c --null -T - | tar -x -C build/wheel
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(DIST) build/wheel
	ls $(DIST)/*.whl

# make container CONTAINER=podman
container:
	$(CONTAINER) build --file deploy/Containerfile --tag fedfree --tag fedfree:$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) .

proto: install
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto proto/fedfree/v1/*.proto
	$(BIN)/python -m grpc_tools.protoc -I proto --grpc_python_out=proto proto/fedfree/v1/service.proto

clean:
	rm -rf build dist .venv .venv-* .cache .coverage* .mypy_cache .pytest_cache .ruff_cache runs *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
