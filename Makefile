PYTHON ?= python3
VENV ?= .venv
# processes that share the tests, a file at a time
JOBS ?= 2
BIN = $(VENV)/bin

.PHONY: demo test docs nightly bench bench-check install clean

# where CIFAR-10 is; without it the benchmarks say so and do nothing
BENCH_DATA ?= data
BENCH_TRAINING = benchmarks/training.py --data $(BENCH_DATA) --width 16 --batch 64 --only steps --only pipeline
BENCH_WIDE = benchmarks/training.py --data $(BENCH_DATA) --width 64 --batch 16 --repeats 3 --precision float32 --only steps
BENCH_VIEWS = benchmarks/training.py --data $(BENCH_DATA) --repeats 15 --only augment
BENCH_EVALUATION = benchmarks/evaluation.py --data $(BENCH_DATA) --repeats 1
BENCH_PGD = $(BENCH_EVALUATION) --count 256 --only levers pgd
BENCH_AUTOATTACK = $(BENCH_EVALUATION) --count 96 --steps 20 --queries 300 --precision float32 --only autoattack
BENCH_BRACKET = $(BENCH_EVALUATION) --count 480 --steps 10 --queries 500 --only bracket

demo: install
	$(BIN)/robench demo

test: install docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# the site, into build/site; in an environment of its own, since mkdocs-material and torchattacks want different requests
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml

$(VENV)/.docs: docs/site/requirements.txt
	$(PYTHON) -m venv $(VENV)/docs
	$(VENV)/docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement docs/site/requirements.txt
	touch $@

nightly: test
	$(BIN)/python -m pytest -m nightly --timeout 3600

bench: install
	$(BIN)/python $(BENCH_TRAINING) --only wall --repeats 5 --out benchmarks/training-width16.json
	$(BIN)/python $(BENCH_WIDE) --out benchmarks/training-width64.json
	$(BIN)/python $(BENCH_VIEWS) --out benchmarks/training-views.json
	$(BIN)/python $(BENCH_PGD) --out benchmarks/evaluation-pgd.json
	$(BIN)/python $(BENCH_AUTOATTACK) --out benchmarks/evaluation-autoattack.json
	$(BIN)/python $(BENCH_BRACKET) --out benchmarks/evaluation-bracket.json
	$(BIN)/python benchmarks/plot.py docs/benchmark-ratios.svg

bench-check: install
	$(BIN)/python $(BENCH_TRAINING) --repeats 3 --check benchmarks/training-width16.json
	$(BIN)/python $(BENCH_WIDE) --check benchmarks/training-width64.json
	$(BIN)/python $(BENCH_VIEWS) --check benchmarks/training-views.json
	$(BIN)/python $(BENCH_PGD) --check benchmarks/evaluation-pgd.json
	$(BIN)/python $(BENCH_AUTOATTACK) --check benchmarks/evaluation-autoattack.json
	$(BIN)/python $(BENCH_BRACKET) --check benchmarks/evaluation-bracket.json

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("robench needs Python 3.11 or newer, not " + sys.version.split()[0] + ": make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,plot,torchattacks]"
	touch $@

clean:
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
