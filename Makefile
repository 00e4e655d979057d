PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint clean

quickstart: $(BIN)/metricid
	$(BIN)/metricid train quickstart

test: $(BIN)/metricid
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist worksteal

$(BIN)/metricid: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
