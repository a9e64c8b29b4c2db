# make serve | test | check are all one needs. Variables: PORT=9000 (serve), ARGS='-k budget' (any
# command), PYTHON=python3.12 and PIP_EXTRA='--extra-index-url URL' (setup; see tools/setup.sh).
BIN := .venv/bin
INSTALLED := .venv/installed
CLIENTS := .clients/installed
# Two workers, a file of tests to one of them; XDIST= runs them one by one.
XDIST := -n 2 --dist loadfile
export PYTHON PIP_EXTRA

.PHONY: setup check fix test-fast test test-system test-long gpu-test bench evaluate serve clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt tools/setup.sh tools/apt.sh
	@tools/setup.sh

# Clients of the HTTP API that tests run and .venv cannot hold.
$(CLIENTS): tools/clients.txt tools/clients.sh | $(INSTALLED)
	@tools/clients.sh

check: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest tests/test_layers.py

fix: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Programs from outside Python that tests start: the real ones, never stand-ins.
test-system:
	@tools/test_system.sh

# Pure parts: no model, no server, no browser.
test-fast: $(INSTALLED)
	$(BIN)/pytest $(XDIST) -m "not slow and not system and not browser" $(ARGS)

test: $(INSTALLED) $(CLIENTS) test-system
	$(BIN)/pytest $(XDIST) $(ARGS)

test-long: $(INSTALLED) $(CLIENTS) test-system
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
	rm -rf .venv .clients .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage htmlcov dist build
	find app tests -name __pycache__ -type d -prune -exec rm -rf {} +
