# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUESTION := Ana has 19 apples. She gives 4 apples to each of 2 friends and then finds 11 more. How many apples does Ana have now?

.PHONY: run test setup tiny measure clean

run: $(VENV)/.installed
	@$(BIN)/fastdllm generate --compare --gen-length 64 --block-length 8 '$(QUESTION)'

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 3 --dist loadfile

setup: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once; a few minutes)"
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e . -c constraints.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "adding what tests, evaluation and plots need (once; a few minutes)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

# Train the embedded model again, write it into the package and measure it (hours).
tiny: setup
	$(BIN)/python scripts/train_tiny.py --out build/tiny
	$(BIN)/python scripts/export_tiny.py build/tiny
	$(MAKE) measure

# Accuracy and cost of every setting in the README's table and of all methods, on 500 held-out problems, and the
# README's pictures.
measure: setup
	$(BIN)/python scripts/measure_tiny.py
	$(BIN)/python scripts/plot_tiny.py
	$(BIN)/python scripts/picture.py

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis
