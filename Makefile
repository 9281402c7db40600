# Two commands do all the set-up themselves: `make demo` and `make test`.
PYTHON_A := .venv/bin/python
PYTHON_B := .venv-b/bin/python
export OMP_NUM_THREADS ?= 1

# All ways in which Slurm ends a job, on one rank and on 2x2, take most of an hour on two cores
# (`make acceptance`); `make test` plays those that wait least, and two of the 2x2.
ACCEPTANCE := (not 2x2 and not longer) or (2x2 and (dies or crashes))

.PHONY: help setup setup-b slurm slurm-if-possible test-tools demo lint unit local zoo slurm-tests acceptance \
	set-b test bench clean

help:
	@echo "make demo    set up, then generate data, prepare, train and evaluate on this machine"
	@echo "make test    set up, then lint and run all tests (on a real Slurm where it can be installed)"
	@echo "make bench   set up, then measure everything the README's table states"

setup:
	@env/setup.sh a

setup-b:
	@env/setup.sh b

slurm:
	@env/cluster/install.sh

test-tools:
	@env/test-tools.sh

# 3: not on this machine, or not as this user; the tests on Slurm then skip and say why.
slurm-if-possible:
	@env/cluster/install.sh || [ $$? -eq 3 ]

demo: setup
	@$(PYTHON_A) launch/demo.py

lint: setup
	$(PYTHON_A) -m ruff format --check .
	$(PYTHON_A) -m ruff check .
	$(PYTHON_A) -m mypy

unit: setup
	$(PYTHON_A) -m pytest tests/unit -q -n 2

local: setup test-tools
	$(PYTHON_A) -m pytest tests/local -q

# One config of each of MMSegmentation's model families, small; writes docs/models.md.
zoo: setup
	$(PYTHON_A) -m tests.zoo

slurm-tests: setup slurm-if-possible
	$(PYTHON_A) -m pytest tests/slurm -q -m "not slow"
	$(PYTHON_A) -m pytest tests/slurm -q -m slow -k "$(ACCEPTANCE)"

acceptance: setup slurm
	$(PYTHON_A) -m pytest tests/slurm/test_acceptance.py -v

# The forks have the same import names as set A, so they live, and are tested, in an environment of their own.
set-b: setup-b
	$(PYTHON_B) -m pytest tests/sets -q

test: lint unit local slurm-tests set-b

bench: setup slurm
	$(PYTHON_A) benchmarks/run.py

clean:
	rm -rf .venv .venv-b .ruff_cache .mypy_cache
