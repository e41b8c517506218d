# The words of the project. `make data teacher distill eval` is one command and one parent run in MLflow, whatever the number
# of goals: the first of them runs all, in order; the others find it done.
PRESET ?= nano
SRC ?=
CLIP ?=
CHECKPOINT ?=
ARGS ?=
RUNS ?= runs
GPUS ?=
PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.stamp
DEV := .venv/.stamp-dev
GOALS := $(filter data teacher distill eval,$(MAKECMDGOALS))
# `make plan data` plans only.
FIRST := $(if $(filter plan,$(MAKECMDGOALS)),,$(firstword $(GOALS)))
# A command line of motionstream. RUN: of those that read SRC and GPUS; CALL: of the others.
MOTIONSTREAM := .venv/bin/motionstream
RUN = $(MOTIONSTREAM) $(1) --preset '$(PRESET)' --runs '$(RUNS)' $(if $(SRC),--src '$(SRC)') $(if $(GPUS),--gpus '$(GPUS)') $(ARGS)
CALL = $(MOTIONSTREAM) $(1) --preset '$(PRESET)' --runs '$(RUNS)' $(ARGS)
# GPUS is refused where no goal reads it.
TAKE_GPUS := data teacher distill eval plan sweep nano-base bench-trackers
LEAVE_GPUS := rehearse inspect export demo demo-check generate bench bench-data plan-check ship pictures
ifneq ($(GPUS),)
ifneq ($(filter $(LEAVE_GPUS),$(MAKECMDGOALS)),)
ifeq ($(filter $(TAKE_GPUS),$(MAKECMDGOALS)),)
$(error GPUS=$(GPUS) has no effect on $(filter $(LEAVE_GPUS),$(MAKECMDGOALS)): it belongs to $(TAKE_GPUS))
endif
endif
endif

.DEFAULT_GOAL := help
.PHONY: help setup data teacher distill eval plan plan-check rehearse gpu-check inspect export demo demo-check generate bench bench-data bench-trackers kill-test slurm-check sweep nano-base notebooks ui check test test-gpu lint docs clean js-check pictures
.NOTPARALLEL:

help:  ## this table
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PRESET=$(PRESET) SRC=$(SRC) ARGS=\"teacher.phase1_steps=200 student.window=2\" RUNS=$(RUNS)"
	@echo "  GPUS=8: use or plan for at most so many GPUs; a training runs one process on each, and on CPUs so many processes"
	@echo "  also: PYTHON (to set up with), RAY_ADDRESS (a cluster), MLFLOW_TRACKING_URI"
	@echo "  \`.venv/bin/motionstream --help\` lists all commands with their own options"

setup: $(STAMP)  ## the environment in .venv (every other target makes it; tests and linters add what they need)

ENVIRONMENT := pyproject.toml infra/env/setup.sh infra/env/constraints.txt infra/env/assets.txt
$(STAMP): $(ENVIRONMENT)
	PYTHON='$(PYTHON)' bash infra/env/setup.sh

$(DEV): $(ENVIRONMENT)
	PYTHON='$(PYTHON)' bash infra/env/setup.sh dev

data: $(STAMP)  ## videos (SRC='folder, glob, list, table or address'; default: packaged clips) to shards
	@$(if $(filter $@,$(FIRST)),$(call RUN,$(GOALS)),true)

teacher: $(STAMP)  ## the backbone learns to follow tracks
	@$(if $(filter $@,$(FIRST)),$(call RUN,$(GOALS)),true)

distill: $(STAMP)  ## the teacher becomes a causal few-step student
	@$(if $(filter $@,$(FIRST)),$(call RUN,$(GOALS)),true)

eval: $(STAMP)  ## figures, and RUNS/PRESET/report/report.html
	@$(if $(filter $@,$(FIRST)),$(call RUN,$(GOALS)),true)

plan: $(STAMP)  ## dry run: cached or not, every config error, memory, work and time (GPUS=8: on so many)
	@$(call RUN,plan $(GOALS))

plan-check: $(STAMP)  ## what `make plan` predicts of memory against real training steps, at nano and 100 M parameters
	$(MOTIONSTREAM) plan-check

rehearse: $(STAMP)  ## PRESET=wan21-1.3b or another full one, whole, at a small size on two CPU processes
	@$(call CALL,rehearse)

inspect: $(STAMP)  ## one clip with its tracks as mp4 and PNG, and its catalogue row (CLIP=id; without: some ids)
	@$(call CALL,inspect $(if $(CLIP),--clip '$(CLIP)'))

export: $(STAMP)  ## newest teacher and student (or CHECKPOINT=folder) for diffusers, with model cards, into RUNS/PRESET/export
	@$(call CALL,export $(if $(CHECKPOINT),--checkpoint '$(CHECKPOINT)'))

demo: $(STAMP)  ## drag points, see the video follow: newest student, or the shipped one, on http://127.0.0.1:7860
	@$(call CALL,demo)

# Ends in figures: RUNS/demo-check.jsonl.
demo-check: $(DEV)  ## the demo in Chromium with the shipped student: three minutes' pace, a drag, a transfer, a replay
	@mkdir -p '$(RUNS)'
	MS_DEMO_SECONDS="$${MS_DEMO_SECONDS:-180}" MS_DEMO_FIGURES='$(abspath $(RUNS))/demo-check.jsonl' $(PY) -m pytest -s tests/browser/pace.py tests/browser/test_real.py

pictures: $(DEV)  ## the README's moving pictures, into docs/img: a clip of RUNS/PRESET by both models, a drag in the demo
	@$(call CALL,pictures)

generate: $(STAMP)  ## the demo without its page, as in ARGS="--image a.png --motion pan --seconds 5 --out a.mp4"
	@$(call CALL,generate)

bench: $(STAMP)  ## paired timings: cache, transformer, decoder, at the preset's size with random weights
	@$(call CALL,bench)

bench-data: $(STAMP)  ## clips per second of the data stages: workers, graph against loop; memory
	@$(call CALL,bench-data)

bench-trackers: $(STAMP)  ## every tracker that runs here on rendered scenes: TAP-Vid figures and time
	@$(call RUN,bench-trackers)

kill-test: $(DEV)  ## `make data` killed at random moments, five rounds of 20: the same bytes
	$(PY) -m tests.smoke.kills

slurm-check: $(DEV)  ## infra/cluster/slurm.sh under a Slurm of two nodes on this machine (apt-get install slurm-wlm)
	MS_SLURM=1 $(PY) -m pytest -rs tests/smoke/test_slurm.py

sweep: $(STAMP)  ## ablations of one trained student and teacher, and RUNS/PRESET/sweep/sweep.html
	@$(call RUN,sweep)

nano-base: $(STAMP)  ## pretrain what PRESET=nano starts from, into msmodel/assets/nano
	@$(call RUN,nano-base)

# Unless PRESET is given, they read a debug run of their own, so that its models are nobody's candidates.
notebooks: RUNS := $(if $(filter file,$(origin PRESET)),$(RUNS)/notebooks,$(RUNS))
notebooks: PRESET := $(if $(filter file,$(origin PRESET)),debug,$(PRESET))
notebooks: $(DEV)  ## run the notebooks, on a debug run (made if missing) or on RUNS/PRESET
	[ -f '$(RUNS)/$(PRESET)/report/report.html' ] || $(MAKE) data teacher distill eval PRESET='$(PRESET)' RUNS='$(RUNS)'
	RUNS='$(abspath $(RUNS))' PRESET='$(PRESET)' $(PY) -m pytest --nbmake notebooks

ui: $(STAMP)  ## MLflow's pages on http://127.0.0.1:5000
	$(PY) -m mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(abspath $(RUNS))/mlflow.db}" --host 127.0.0.1

js-check:  ## the demo page's JavaScript: eslint and the TypeScript checker (needs node; installs them into tests/browser/js)
	@command -v npm >/dev/null || { echo "js-check: node and npm are missing here"; exit 1; }
	cd tests/browser/js && npm ci --no-audit --no-fund && npm run check

lint: $(DEV)  ## ruff, mypy, import contracts, spelling
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/codespell

# A file of tests runs in one process, on one thread: processes with more threads than there are cores wait for each other at
# every barrier. Two processes keep two cores busy (3% idle); a third only slows the others' Ray.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(PY) -m pytest --dist loadfile --no-loadscope-reorder
# These start Ray or a distributed job: `make check` leaves them out, with tests/smoke and tests/browser.
WITH_RAY := $(addprefix tests/unit/infra/test_,cluster.py executor.py distributed.py) tests/unit/stages/train/test_distributed.py
check: lint  ## lint, types, import contracts and the fast tests: no Ray, distributed job or browser, nothing marked slow
	$(PYTEST) tests/unit tests/golden tests/contract -n 2 -m 'not slow and not gpu' $(addprefix --ignore=,$(WITH_RAY))

test: lint  ## lint and all tests; fails if they leave anything in the checkout
	@$(PY) -m tests.worktree save .venv/worktree
	$(PYTEST) tests -n 2 --durations 25
	@$(PY) -m tests.worktree check .venv/worktree

# Unless PRESET is given, the paper's smaller model.
test-gpu: $(DEV)  ## the tests that need a CUDA device, and RUNS/gpu-bench.json; fails where there is none
	$(PY) -c "import torch, sys; sys.exit(None if torch.cuda.is_available() else 'test-gpu: no CUDA device here')"
	RUNS='$(abspath $(RUNS))' MS_GPU_PRESET='$(if $(filter file,$(origin PRESET)),wan21-1.3b,$(PRESET))' $(PY) -m pytest -s tests/gpu

gpu-check: $(DEV)  ## all of that on one GPU, in nine minutes: tests, full-size speeds, rehearsals, nano; RUNS/gpu-check
	$(MOTIONSTREAM) gpu-check --runs '$(RUNS)'

docs: $(DEV)  ## the documentation as a site in site/; fails on a broken link
	$(PY) -m mkdocs build --strict

clean:  ## caches; results in RUNS stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -print | xargs rm -rf
