# make serve | test | check are all one needs. Variables: PORT=9000 (serve), ARGS='-k budget' (any
# command), PYTHON=python3.12 and PIP_EXTRA='--extra-index-url URL' (setup; see tools/setup.sh).
BIN := .venv/bin
INSTALLED := .venv/installed
export PYTHON PIP_EXTRA

.PHONY: setup check fix test test-long gpu-test bench evaluate serve clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt tools/setup.sh tools/apt.sh
	@tools/setup.sh

check: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest tests/test_layers.py

fix: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: $(INSTALLED)
	@tools/test_system.sh
	$(BIN)/pytest $(ARGS)

test-long: $(INSTALLED)
	@tools/test_system.sh
	$(BIN)/pytest --long --timeout=600 $(ARGS)

gpu-test: $(INSTALLED)
	$(BIN)/pytest -m gpu $(ARGS)

bench: $(INSTALLED)
	$(BIN)/allrounder bench engine $(ARGS)

evaluate: $(INSTALLED)
	$(BIN)/allrounder evaluate --short $(ARGS)

serve: $(INSTALLED)
	$(BIN)/allrounder serve $(if $(PORT),--port $(PORT)) $(ARGS)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage htmlcov dist build
	find app tests -name __pycache__ -type d -prune -exec rm -rf {} +
