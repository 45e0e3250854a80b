# Every target sets up .venv by itself, once; it is redone only when the pins change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := mini multilingual langchain llama-index train study serve int8 docs dev
comma := ,
space := $(subst ,, )

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-lowest lint format docs bench studies train-mini train-multilingual clean

help:
	@echo "make demo   ask this project's docs in German, Arabic and Chinese, through LangChain and LlamaIndex"
	@echo "make test   run the tests (offline, on 2 cores)"
	@echo "make test-all  run them with their long forms: more kills, more generated cases, whole trainings"
	@echo "make test-lowest  run them with the oldest versions that pyproject.toml allows (but not of torch)"
	@echo "make lint   ruff and mypy"
	@echo "make docs   the documentation site, to build/docs/index.html"
	@echo "make train-mini  train the heads of the model mini, to build/mini (a quarter of an hour on 2 cores)"
	@echo "make train-multilingual  train mini-multilingual: heads and a LoRA adapter, to build/multilingual (an hour and a half on 2 cores)"
	@echo "make bench  the benchmarks, side by side with PyLate, sentence-transformers, fastembed, fast-plaid (< 15 minutes)"
	@echo "make studies  measure the models again for the reports of docs/studies (an hour on 2 cores)"

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e ".[$(subst $(space),$(comma),$(EXTRAS))]"
	@touch $(READY)

# Whole files side by side: on two cores that is faster than two threads in each operator of a tiny model.
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-all: $(READY)
	JCV2_TEST_ALL=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE)

LOWEST := build/lowest

$(LOWEST)/.ready: pyproject.toml constraints.txt $(READY)
	@test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(BIN)/uv pip compile pyproject.toml $(foreach extra,$(EXTRAS),--extra $(extra)) --quiet --no-annotate --no-header \
		--resolution lowest-direct --only-binary :all: --constraint constraints.txt \
		| grep -Ev '^(torch|triton|nvidia|cuda)' > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -c $(LOWEST)/constraints.txt \
		-e ".[$(subst $(space),$(comma),$(EXTRAS))]"
	@touch $@

test-lowest: $(LOWEST)/.ready
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest $(SIDE_BY_SIDE)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open build/docs/index.html."

bench: $(READY)
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/encoding_profile.py --share 0.3
	$(BIN)/python benchmarks/int8.py --sets xquad-en --texts 100 --rounds 2 \
		--backends 'torch float32' 'OpenVINO int8, calibrated'
	$(BIN)/python benchmarks/mini_quality.py --sets xquad-en --dims 128 64
	$(BIN)/python benchmarks/first_stages.py --sets mlqa-en --queries 50 --growth 250 1000
	$(BIN)/python benchmarks/compression.py --sets xquad-en --dims 64 --pool-factors 1 1.5 --profiles float32 float16 turbo4 --timed-queries 5
	$(BIN)/python benchmarks/ingestion.py --documents 3000 --overlap-documents 256 --rounds 1

# A report that is there is continued; after a change of the model, FORCE=--force starts anew. DTYPE="--dtype bfloat16"
# is faster on a CPU that multiplies bfloat16 in hardware.
STUDY := OMP_NUM_THREADS=1 $(BIN)/jcv2 study
STUDIES = --out docs/studies $(FORCE)
TRAIN = $${JCV2_DATA:-../shared/data}/train
STUDIED := --model mini --queries 100 --device cpu
MULTILINGUAL = --model mini-multilingual --seeds 1 --device cpu $(DTYPE) --sets \
	$$(cd "$${JCV2_DATA:-../shared/data}" && ls -d */corpus.jsonl | cut -d/ -f1 | paste -sd,)

studies: $(READY)
	$(BIN)/jcv2 study matryoshka $(STUDIES) $(MULTILINGUAL) --queries 200 --documents 400
	$(BIN)/jcv2 study languages $(STUDIES) $(MULTILINGUAL) --queries 100 --documents 240 --dim 128
	$(STUDY) masks $(STUDIES) $(STUDIED) --sets xquad-en,cranfield,cosqa-dev --documents 400 --seeds 2
	$(STUDY) lengths $(STUDIES) --tokens 128,512,2048,8192 --batches 1,4 --device cpu
	$(STUDY) recipe $(STUDIES) --pairs $(TRAIN)/pairs.jsonl.xz --triplets $(TRAIN)/triplets.jsonl.xz --lang en \
		--trained heads --steps 40 --batch-size 16 --negatives 2 --document-length 64 --queries 100 --seeds 2 --dims 128,64
	$(BIN)/python benchmarks/docs_tables.py

train-mini: $(READY)
	$(BIN)/python examples/train_mini.py

train-multilingual: $(READY)
	$(BIN)/python examples/train_multilingual.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
