# Each target sets up what it needs in .venv; nothing has to be installed by hand but Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 3
DEVICE ?= cuda
VLLM_VENV := $(VENV)-vllm$(addprefix -,$(VLLM))

.PHONY: demo demo-control demo-vllm demo-tests test check lint test-families test-faults test-gpu test-s3 test-slurm test-vllm test-vllm-families reliability attacks bench clean

demo: $(READY)  ## train a tiny VLM on images that only travel as references
	$(BIN)/filmroll train examples/color_codeword.toml

demo-control: $(READY)  ## the same run with blank images: it must stay at chance
	$(BIN)/filmroll train examples/color_codeword.toml --environment.images blank --run.directory runs/color-codeword-control

demo-vllm: $(READY) $(VENV)-vllm/.ready  ## the same run, sampled by vLLM on the CPU
	HF_HUB_OFFLINE=1 TORCHDYNAMO_DISABLE=1 VLLM_NO_USAGE_STATS=1 $(BIN)/filmroll train examples/color_codeword_vllm.toml

demo-tests: $(READY) $(VENV)-vllm/.ready  ## the demo on seeds 0 to 4, with vLLM, in more processes, its control, and killed in every way; about an hour
	$(BIN)/python -m pytest -m demo -s tests/demo

# Of more threads than processors, each burns its share of time in waiting for the others.
check test-families test-faults reliability: export OMP_NUM_THREADS := 1

test: lint check  ## lint and all tests

check: $(READY)  # a file to a worker, so that what a file's tests share is made once
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(READY)  ## style, types, and which floor imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-faults: $(READY)  ## whole runs whose processes are killed, lost or told to end; some ten minutes
	$(BIN)/python -m pytest -n $(WORKERS) -m faults --timeout 900 tests/run tests/train

test-families: $(READY)  ## a whole short run of each model type, played, learnt and exported; some five minutes
	$(BIN)/python -m pytest -n 2 -m families tests/run/test_every_family.py

test-gpu: $(READY)  ## the equality tests and the training benchmark on a GPU, kept in benchmarks/results; DEVICE=cpu rehearses that
	$(BIN)/python -m tests.on_a_gpu $(DEVICE)

test-s3: $(READY)  ## the store against a real S3 server, Ceph's radosgw, which is installed first where that may be done
	$(BIN)/python -m tests.store.servers.ceph
	$(BIN)/python -m pytest -m ceph tests/store

test-slurm: $(READY)  ## runs as jobs of a real SLURM over two hosts, which is installed first where that may be done
	$(BIN)/python -m tests.slurm.cluster
	$(BIN)/python -m pytest -m slurm --timeout 900 tests/slurm

test-vllm: $(READY) $(VLLM_VENV)/.ready  ## the vLLM plugin against real vLLM on the CPU, in an environment of its own; VLLM=0.31.0 takes the oldest that will do
	FILMROLL_TEST_VLLM=$(VLLM_VENV) $(BIN)/python -m pytest -n 2 --dist loadgroup -m vllm --timeout 900 tests/vllm

test-vllm-families: $(READY) $(VENV)-vllm/.ready  ## references in a vLLM server for each model type, a start each; ten minutes
	$(BIN)/python -m pytest -m vllm_families --timeout 900 tests/vllm/test_every_family.py

$(VENV)-vllm/.ready: constraints-vllm.txt tests/vllm/environment.py tests/torchvision_operators.py
	$(BIN)/python -m tests.vllm.environment $(@D)
	touch $@

$(VENV)-vllm-%/.ready: constraints-vllm.txt tests/vllm/environment.py tests/torchvision_operators.py
	$(BIN)/python -m tests.vllm.environment $(@D) $*
	touch $@

attacks: $(READY) $(VENV)-vllm/.ready  ## every attack of attacks/ with full counts, against the embedded engine and real vLLM
	FILMROLL_RELIABILITY=full $(BIN)/python -m pytest -m 'vllm or not vllm' --timeout 3600 tests/attacks tests/vllm/test_attacks.py

reliability: $(READY)  ## the store's promises with full counts; ends with a dated table of what was tried and found
	FILMROLL_RELIABILITY=full $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m reliability --timeout 3600 tests/store tests/families tests/wire tests/rollout tests/run

bench: $(READY) $(VENV)-vllm/.ready  ## every benchmark, each with its table and one JSON line
	for file in $(filter-out benchmarks/harness.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$file || exit 1; done

$(READY): pyproject.toml constraints.txt $(wildcard src/filmroll/pixels/c/*)
	$(PYTHON) -c 'import sys; sys.exit("filmroll needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# Built against torch for CUDA, so beside the rest: only the tests that compare with it import it.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --upgrade --target $(VENV)/oracles torchvision
	touch $(READY)

clean:
	rm -rf $(VENV) build dist src/*.egg-info
