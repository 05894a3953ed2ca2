PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENGINE ?= in-process
OUT ?= runs/demo-$(ENGINE)

.PHONY: install demo test test-slow test-gpu check proto clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("FedFREE needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[simulation,dev]'
	touch $@

demo: install
	$(BIN)/fedfree-sim run --config simulations/configs/demo.toml --engine $(ENGINE) --out $(OUT)

test: install
	$(BIN)/pytest

test-slow: install
	$(BIN)/pytest -m slow --timeout 1800

test-gpu: install
	$(BIN)/pytest -m gpu

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/architecture

proto: install
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto proto/fedfree/v1/*.proto
	$(BIN)/python -m grpc_tools.protoc -I proto --grpc_python_out=proto proto/fedfree/v1/service.proto

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache runs *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
