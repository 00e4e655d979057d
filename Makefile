PYTHON ?= python3
BIN := .venv/bin
RUN := runs/quickstart

.PHONY: quickstart test lint clean

quickstart: $(BIN)/metricid
	$(BIN)/metricid train quickstart
	test -f $(RUN)/report.html || $(BIN)/metricid report $(RUN)
	$(BIN)/metricid embed $(RUN) --overwrite
	$(BIN)/metricid search build $(RUN)/embeddings.parquet -o $(RUN)/index --model $(RUN) --overwrite
	$(BIN)/metricid search query $(RUN)/index --row 0 -k 5
	@echo "everything is in $(RUN); open $(RUN)/report.html in a browser"

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
