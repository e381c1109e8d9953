# Two commands do everything on a fresh machine: make quickstart, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Training and tests use few threads each; more would only fight over the cores.
export OMP_NUM_THREADS ?= 2

.PHONY: quickstart test docs fuzz reliability lint dist wheel-check mini policy surrogate clean

quickstart: $(VENV)/ready
	$(BIN)/crystal-gym quickstart

# Two processes of one thread each; with two threads each the same takes four times as long.
test: $(VENV)/ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The site, warnings as errors: build/docs/index.html. Its pictures: scripts/draw_pictures.py.
docs: $(VENV)/ready-dev
	$(BIN)/python -m sphinx -b html -W --keep-going -q -d build/doctrees docs build/docs

# Ten minutes a target; one line each with the number of inputs and the verdict.
FUZZ_SECONDS ?= 600
fuzz: $(VENV)/ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS) $(FUZZ_OPTIONS)

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pydoclint --quiet crystal_gym agents
	# Type checkers do not follow agents/ -> crystal_gym.agents in a checkout: check an install.
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --target build/typed .
	$(BIN)/mypy build/typed/crystal_gym
	# What is not in the wheel is missed only by those who install it.
	test -f build/typed/crystal_gym/data/mini/table.npz -a -f build/typed/crystal_gym/agents/cql.py
	test -f build/typed/crystal_gym/data/tabular/table.npz
	test ! -e build/typed/agents

# sdist and wheel in dist/, the same bytes from the same sources.
dist: $(VENV)/ready-dev
	$(BIN)/python scripts/build_dist.py

# The wheel in a fresh environment, with the core's dependencies alone.
wheel-check: $(VENV)/ready-dev
	$(BIN)/python scripts/check_wheel.py

# The bundled set: pw.x results (scripts/make_mini.py) to skeletons and a property table.
mini: $(VENV)/ready
	$(BIN)/python -m crystal_gym.datasets.build crystal_gym/data/mini_labels.json crystal_gym/data/mini

# The bundled policy from scratch: an hour and a quarter, after `crystal-gym data build mp20`; goes
# on where it was interrupted.
TRAIN := $(BIN)/crystal-gym train --precision bfloat16 --compile on --threads 1
policy: $(VENV)/ready
	$(TRAIN) bc --evaluate-every 1000 -o runs/bc-0
	$(TRAIN) c-cql --start-from runs/bc-0 --crystals valid --steps 1000 --learning-rate 2e-3 \
		--evaluate-every 1000 -o runs/c-cql-0
	$(TRAIN) c-cql --start-from runs/c-cql-0 --crystals valid --target-gap hindsight --steps 400 \
		--warmup 50 --learning-rate 2e-3 --evaluate-every 200 -o runs/c-cql-hindsight-0
	$(BIN)/python scripts/bundle_policy.py runs/c-cql-hindsight-0

# The bundled surrogate, half an hour, after `crystal-gym data build` of mp20 and mp20-metals.
surrogate: $(VENV)/ready
	$(TRAIN) surrogate --tables mp20-metals tabular --steps 2000 --evaluate-every 500 -o runs/surrogate
	$(BIN)/python scripts/bundle_surrogate.py runs/surrogate

# Kills and soaks of docs/reliability.md, three hours in all.
RELIABILITY := OMP_NUM_THREADS=1 $(BIN)/python benchmarks/reliability
HOURS ?= 2
reliability: $(VENV)/ready-dev
	$(RELIABILITY)/kill_commands.py build
	$(RELIABILITY)/kill_commands.py train
	$(RELIABILITY)/kill_commands.py evaluate
	$(RELIABILITY)/kill_label.py
	$(RELIABILITY)/soak_env.py
	$(RELIABILITY)/soak_label.py --hours $(HOURS)

# torch first and by version: a range would pull gigabytes of CUDA packages.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[agents,report]'
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all,docs,examples,fuzz,dev]'
	# TorchRL refuses gymnasium 1.0, which d3rlpy pins: its example alone sees a later one.
	$(BIN)/python -m pip install --quiet -c constraints.txt torchrl
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/later-gymnasium gymnasium==1.2.3
	touch $@

clean:
	rm -rf $(VENV) build dist quickstart-results
