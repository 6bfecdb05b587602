# Needs Python >= 3.11 (with venv), make and git; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help .venv demo demo-volumes peers doc doc-text test test-pages test-lowest \
	test-newest test-jax test-torch lint clean

help:  ## list the targets
	@sed -n 's/^\([a-z. -]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 24

.venv: .venv/installed-test  ## install the package and its test tools into .venv

# On most machines of Linux TensorFlow has a build without CUDA, which is much smaller.
TENSORFLOW := $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),tensorflow-cpu,tensorflow)
REQUIRED := import tomllib; \
	needed = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]; \
	print(*(n.replace("tensorflow", "$(TENSORFLOW)") for n in needed))

.venv/installed: pyproject.toml
	@echo "Installing into .venv (TensorFlow is large: minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade pip  # --group is new in pip 25.1
	@$(BIN)/python -m pip install --quiet $$($(BIN)/python -c '$(REQUIRED)')
	@$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

.venv/installed-test: .venv/installed
	@$(BIN)/python -m pip install --quiet "jax>=0.6" "torch>=2.6" --group test
	@touch $@

demo: .venv/installed  ## train on MNIST for some minutes and generate 100 digits
	@$(BIN)/dipy_train_ldm mnist --epochs_vqvae 1 --epochs_ldm 1 \
		--validation 0.2 --out_dir demo --force
	@$(BIN)/dipy_generate_ldm demo/ldm.safetensors --n_samples 100 \
		--out_dir demo --force
	@echo "The generated digits are in demo/samples.png"

demo-volumes: .venv/installed  ## train on 200 virtual brains and generate 8
	@$(BIN)/python -m pip install --quiet "nilearn>=0.11"  # its template
	@$(BIN)/python doc/examples/virtual_cohort.py demo-volumes/cohort --n 200
	@$(BIN)/dipy_train_ldm demo-volumes/cohort --voxel_size 4 --patch 32 \
		--epochs_vqvae 40 --epochs_ldm 40 --widths_ldm 32 64 128 \
		--out_dir demo-volumes --force
	@$(BIN)/dipy_generate_ldm demo-volumes/ldm.safetensors --n_samples 8 \
		--out_dir demo-volumes --force
	@echo "Planes of the generated brains are in demo-volumes/samples.png;" \
		"training.png shows some beside real ones and their reconstructions"

.venv-peers/installed: pyproject.toml
	@echo "Installing into .venv-peers (torch is large: minutes the first time)"
	@$(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install --quiet --upgrade pip
	@.venv-peers/bin/python -m pip install --quiet --group peers
	@touch $@

peers: .venv/installed .venv-peers/installed  ## measure time and memory against diffusers and MONAI (ten minutes)
	@$(BIN)/python benchmarks/peers.py $(ONLY)

.venv/installed-doc: .venv/installed-test
	@$(BIN)/python -m pip install --quiet --group doc
	@touch $@

# When anything changes that the pages run, all of it runs anew.
RUN_BY_PAGES := $(shell find dipy_ldm doc/examples doc/figures doc/extensions \
	doc/commands/session.sh doc/conf.py -type f -not -path "*/__pycache__/*")

doc/_build/begun: $(RUN_BY_PAGES)
	@rm -rf doc/_build/html doc/api/generated doc/commands/ran doc/gallery
	@mkdir -p $(@D) && touch $@

doc: .venv/installed-doc doc/_build/begun  ## build the documentation in doc/_build/html (a quarter of an hour)
	@$(BIN)/sphinx-build -W --keep-going -q doc doc/_build/html
	@$(BIN)/python doc/check_links.py doc/_build/html

doc-text: .venv/installed-doc  ## the same in doc/_build/text in a minute, without running the examples
	@$(BIN)/sphinx-build -q -D plot_gallery=0 doc doc/_build/text

test-pages: .venv/installed-test  ## run the code of README and guide as printed, on less data
	@$(BIN)/pytest -n auto --maxprocesses 4 -m "" tests/test_doc.py

TEST := pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: lint  ## check the style, then run the tests
	@$(BIN)/$(TEST)

# The ends of what pyproject.toml allows; uv brings a Python that is not there.
.venv-lowest/installed: .venv/installed-test
	@$(BIN)/uv venv --quiet --clear --python 3.11 $(@D)
	@$(BIN)/uv pip install --quiet --python $(@D) --resolution lowest-direct \
		--compile-bytecode --editable . --group test
	@touch $@

.venv-newest/installed: .venv/installed-test
	@$(BIN)/uv venv --quiet --clear --python 3.13 $(@D)  # TensorFlow's newest
	@touch $@

test-lowest: .venv-lowest/installed  ## run the tests with Python 3.11 and the lowest versions
	@.venv-lowest/bin/$(TEST) -m "not pages"

test-newest: .venv-newest/installed  ## the same with Python 3.13 and the newest
	@$(BIN)/uv pip install --quiet --python .venv-newest --upgrade \
		--compile-bytecode --editable . --group test
	@.venv-newest/bin/$(TEST) -m "not pages"

# Without TensorFlow, which dipy_ldm brings otherwise.
.venv-jax/installed .venv-torch/installed: .venv/installed-test
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --quiet $(@D:.venv-%=%)
	@echo "tensorflow; python_version < '3'" > $(@D)/overrides
	@$(BIN)/uv pip install --quiet --python $(@D) --overrides $(@D)/overrides \
		--compile-bytecode --editable . --group test
	@touch $@

test-jax test-torch: test-%: .venv-%/installed  ## the same with another back-end, without TensorFlow
	@KERAS_BACKEND=$* .venv-$*/bin/$(TEST)

# Figures have names that benchmarks have, too: mypy takes one of each at a time.
lint: .venv/installed-test  ## check style, spelling, types and the direction of imports
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/codespell
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/mypy --no-error-summary doc/*.py doc/examples doc/figures

clean:  ## remove .venv, caches and build outputs
	@rm -rf .venv .venv-peers .venv-lowest .venv-newest .venv-jax .venv-torch build dist demo demo-volumes
	@rm -rf .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@rm -rf doc/_build doc/gallery doc/api/generated doc/commands/ran doc/sg_execution_times.rst
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
