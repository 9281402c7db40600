# Two commands do all the set-up themselves: `make demo` and `make test`.
PYTHON_A := .venv/bin/python
PYTHON_B := .venv-b/bin/python
export OMP_NUM_THREADS ?= 1

# What torch-oldest and torch-matrix try: the oldest torch that was built for the Python of .venv, one between
# and the newest, and of the ways in which Slurm ends a job the commonest.
OF_PYTHON = $(PYTHON_A) -c 'import sys; minor = sys.version_info[1]; print($(1))'
OLDEST = $$($(call OF_PYTHON,"2.1" if minor < 12 else "2.2" if minor < 13 else "2.6"))
MIDDLE = $$($(call OF_PYTHON,"2.4" if minor < 13 else "2.8"))
NEWEST := 2.15.0
ROW := tests/slurm/test_acceptance.py::test_no_run_is_lost[preempted with grace and user signal-1]

# All ways in which Slurm ends a job, on one rank and on 2x2, take most of an hour on two cores
# (`make acceptance`); `make test` plays those that wait least, and two of the 2x2.
ACCEPTANCE := (not 2x2 and not longer) or (2x2 and (dies or crashes))

.PHONY: gpu gpu-on-cpu help setup setup-b slurm slurm-if-possible test-tools demo lint unit data commands local fuzz zoo slurm-tests \
	acceptance slurm-matrix slurm-versions set-b with trackers torch-oldest torch-matrix torch-one test bare container-test \
	bench clean

help:
	@echo "make demo    set up, then generate data, prepare, train and evaluate on this machine"
	@echo "make test    set up, then lint and run all tests (on a real Slurm where it can be installed)"
	@echo "make torch-matrix   set up with the oldest torch, one between and the newest, and try each"
	@echo "make bench   set up, then measure everything in docs/benchmarks.md"

setup:
	@env/setup.sh a

setup-b:
	@env/setup.sh b

slurm:
	@tests/support/cluster/install.sh

test-tools:
	@env/test-tools.sh

# 3: not on this machine, or not as this user; the tests on Slurm then skip and say why.
slurm-if-possible:
	@tests/support/cluster/install.sh || [ $$? -eq 3 ]

demo: setup
	@$(PYTHON_A) launch/demo.py

lint: setup
	$(PYTHON_A) -m ruff format --check .
	$(PYTHON_A) -m ruff check .
	$(PYTHON_A) -m mypy

unit: setup
	$(PYTHON_A) -m pytest tests/unit -q -n 2

# The preparation's, on archives, images and masks in their real formats.
data: setup
	$(PYTHON_A) -m pytest tests/prepare -q -n 2

# The commands as a user types them, each a process of its own, with a stand-in Slurm.
commands: setup
	$(PYTHON_A) -m pytest tests/commands -q -n 2

# A good part of these tests' time is waiting, for a start or for Slurm: two at once on two cores.
local: setup test-tools
	$(PYTHON_A) -m pytest tests/local -q -n 2 --dist worksteal

# What only a GPU can show, on a machine that has one, with a torch of its own; nothing is installed. Without a
# GPU it says so in one line. docs/gpu-options.md has more. ONLY=holds, ONLY=speed: one part of it.
GPU_PYTHON ?= python3
ONLY ?=
gpu:
	@$(GPU_PYTHON) -m tests.gpu $(if $(ONLY),--only $(ONLY))

# The same tests on the CPU, small, and however long a busy machine takes.
gpu-on-cpu: setup
	BATON_GPU_ON=cpu BATON_GPU_SECONDS=1800 $(PYTHON_A) -m tests.gpu

# The tests of bad input with thousands of mutations of each kind of file, instead of hundreds.
fuzz: setup
	BATON_MUTATIONS=4000 $(PYTHON_A) -m pytest tests/local/test_fuzz.py -q -n 2

# One config of each of MMSegmentation's model families, small, one family on each core; writes docs/models.md.
# RANKS=2: each on two ranks.
RANKS ?= 1
zoo: setup
	$(PYTHON_A) -m tests.zoo --ranks $(RANKS)

slurm-tests: setup test-tools slurm-if-possible
	$(PYTHON_A) -m pytest tests/slurm -q -m "not slow" -n 3 --dist worksteal
	$(PYTHON_A) -m pytest tests/slurm -q -m slow -k "$(ACCEPTANCE)" -n 2 --dist loadfile

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
	$(PYTHON_B) -m pytest tests/sets/test_set_b.py -q

# The models that need mmdet or mmpretrain, in an environment that has them (mmpretrain imports torchvision,
# which has to fit torch). SET=b: beside the forks.
SET ?= a
with:
	env/setup.sh $(SET) --torch $(NEWEST) --with mmdet,mmpretrain --into .venv-with-$(SET)
	.venv-with-$(SET)/bin/python -m pytest tests/sets/test_with.py -q

# A torch in an environment of its own, by the Python of .venv: unit tests, exact resume, saving.
# In `make test` only the unit tests that touch it, or its NumPy.
USE_TORCH = $$(grep -lE "torch|numpy|jobs\.(engine|mmseg|evaluate|infer)" tests/unit/test_*.py tests/prepare/test_*.py)
define try-torch
	PYTHON="$$($(call OF_PYTHON,sys._base_executable))" env/setup.sh --torch $(1) --into .venv-torch
	.venv-torch/bin/python -m pytest $(2) -q -n 2
	.venv-torch/bin/python -m pytest tests/local/test_exact_resume.py tests/local/test_saving.py -q -n 2 --dist worksteal
endef

# The services that show curves, ONNX and rasterio, by their own packages, in an environment on top of .venv.
# Four at once: the longest wait for services that do not answer.
trackers: setup
	@env/trackers.sh
	.venv-track/bin/python -m pytest tests/local/test_trackers.py tests/local/test_export.py tests/local/test_infer_large.py \
		-q -n 4 --dist worksteal -k "trackers or onnx or graph or large"

torch-oldest: setup
	$(call try-torch,$(OLDEST),$(USE_TORCH))

torch-matrix: setup slurm-if-possible
	for torch in $(OLDEST) $(MIDDLE) $(NEWEST); do $(MAKE) torch-one TORCH=$$torch || exit; done

torch-one:
	$(call try-torch,$(TORCH),tests/unit tests/prepare tests/commands)
	.venv-torch/bin/python -m pytest "$(ROW)" -q

# The last two at once: one waits for services that do not answer, the other installs and computes.
test: lint unit data commands local gpu-on-cpu slurm-tests set-b
	@$(MAKE) --no-print-directory -j 2 --output-sync trackers torch-oldest

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
	rm -rf .venv .venv-b .venv-with-a .venv-with-b .venv-torch .venv-track .ruff_cache .mypy_cache
