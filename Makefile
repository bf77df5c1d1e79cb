# Every target first makes its own Python environment, once; it is made anew when the pinned versions change.
VENV ?= .venv
# Python 3.10 to 3.13; the first of these that is one is taken.
PYTHON ?= python3 python3.13 python3.12 python3.11 python3.10
# Where torch comes from on Linux. For an NVIDIA GPU, for example: make demo TORCH_INDEX=https://pypi.org/simple
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# More arguments for pytest, for example: make test PYTEST_ARGS="-m 'not slow'"
PYTEST_ARGS ?=

READY := $(VENV)/.ready

.PHONY: help demo test lint bench screenshots extension-lists clean

help:
	@echo "make demo    generate one synthetic CT with its segmentation into the folder demo/"
	@echo "make test    run all tests"
	@echo "make lint    check style and types"
	@echo "make bench   measure time and memory on this machine"
	@echo "make screenshots      make the pictures of the Slicer panel in docs/images anew"
	@echo "make extension-lists  write the lists of files of the Slicer extension anew"
	@echo "make clean   remove what the targets above have made, except $(VENV)"

$(READY): requirements.lock pyproject.toml .ci/environment
	@sh .ci/environment "$(VENV)" "$(TORCH_INDEX)" $(PYTHON)
	@touch $@

demo: $(READY)
	@$(VENV)/bin/maisi demo --out demo

test: $(READY)
	@$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

lint: $(READY)
	@$(VENV)/bin/ruff check --output-format concise .
	@$(VENV)/bin/ruff format --check .
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

bench: $(READY)
	@$(VENV)/bin/python -m Testing.benchmarks

screenshots: $(READY)
	@$(VENV)/bin/python Testing/slicer_standin/screenshots.py

extension-lists: $(READY)
	@$(VENV)/bin/python Testing/extension_files.py

clean:
	rm -rf demo build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find MAISI MAISILib Testing -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
