# Two commands do all the set-up themselves: `make demo` and `make test`.
PYTHON_A := .venv/bin/python
PYTHON_B := .venv-b/bin/python
export OMP_NUM_THREADS ?= 1

# All ways in which Slurm ends a job, on one rank and on 2x2, take most of an hour on two cores
# (`make acceptance`); `make test` plays those that wait least, and two of the 2x2.
ACCEPTANCE := (not 2x2 and not longer) or (2x2 and (dies or crashes))

.PHONY: help setup setup-b slurm slurm-if-possible test-tools demo lint unit local slurm-tests acceptance \
	slurm-matrix slurm-versions set-b test bare container-test bench clean

help:
	@echo "make demo    set up, then generate data, prepare, train and evaluate on this machine"
	@echo "make test    set up, then lint and run all tests (on a real Slurm where it can be installed)"
	@echo "make bench   set up, then measure everything in docs/benchmarks.md"

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

slurm-tests: setup slurm-if-possible
	$(PYTHON_A) -m pytest tests/slurm -q -m "not slow"
	$(PYTHON_A) -m pytest tests/slurm -q -m slow -k "$(ACCEPTANCE)"

acceptance: setup slurm
	$(PYTHON_A) -m pytest tests/slurm/test_acceptance.py -v

# The whole suite on every version of Slurm that a Debian has, each in a bare root (some hours).
slurm-matrix: setup
	@$(PYTHON_A) env/slurm_matrix.py

# On the other versions than this machine's what differs between them, and a preempted run with its
# evaluation. 3: no root can be made here, or as this user.
slurm-versions: setup
	@$(PYTHON_A) env/slurm_matrix.py trixie testing --differing || [ $$? -eq 3 ]

# The forks have the same import names as set A, so they live, and are tested, in an environment of their own.
set-b: setup-b
	$(PYTHON_B) -m pytest tests/sets -q

test: lint unit local slurm-tests set-b

# Both of README's commands, as one who has just cloned types them, on machines that have nothing else.
# BARE=--user: without root; BARE="--user --pip-conf-only": and where only pip knows the site's mirror.
RELEASES ?= bookworm trixie
BARE ?=
define IN_A_BARE_ROOT
set -e; for command in demo test; do TIMEFORMAT="$$0: make $$command took %0lR"; time make $$command; done
endef
export IN_A_BARE_ROOT
bare:
	@for release in $(RELEASES); do \
		python3 env/bare_root.py $$release $(BARE) --set-env BATON_REQUIRE_SLURM=1 \
			-- bash -c "$$IN_A_BARE_ROOT" $$release || exit; \
	done

container-test: setup
	@$(PYTHON_A) env/container_test.py

bench: setup slurm
	$(PYTHON_A) benchmarks/run.py

clean:
	rm -rf .venv .venv-b .ruff_cache .mypy_cache
