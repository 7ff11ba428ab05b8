# What a newcomer needs: make demo, make test. Everything lives in .venv; nothing needs root.

PYTHON ?= python3
BIN := .venv/bin
# Debian keeps mkfs.ext4, e2fsck and debugfs where the PATH of ordinary users does not look.
export PATH := $(PATH):/usr/sbin:/sbin
# Tests and demo start hundreds of processes, and each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo strangers test collect coverage sweep mischief docs lint format lock bench-memory bench-disks bench-lab bench-relay bench-delta bench-wan bench-fanout bench-marks trace changelog clean

setup: .venv/ready

# xorepd goes first: an older one that is replaced takes its command xorepd-lab along. What builds
# them is in requirements.lock: pip would fetch it anew for each of them.
.venv/ready: pyproject.toml requirements.lock $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	  --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
	  $(patsubst %/pyproject.toml,--editable %,$(wildcard plugins/*/pyproject.toml))
	touch $@

# KEEP=1 leaves pools and daemon running and prints how to look around.
demo: setup
	$(BIN)/xorepd-lab demo $(if $(KEEP),--keep)

# Software that is not ours and that the lab is tried with: Ansible, XenGarden and npm's xen-api.
# What Debian has (see .ci/run) is the machine's business.
strangers: .strangers/ready tests/strangers/node/node_modules/.package-lock.json

.strangers/ready: tests/strangers/ansible/requirements.lock
	$(PYTHON) -m venv .strangers
	.strangers/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
	  --require-hashes -r $<
	touch $@

tests/strangers/node/node_modules/.package-lock.json: tests/strangers/node/package-lock.json
	cd $(<D) && npm ci --ignore-scripts --silent --no-audit --no-fund

# Tests wait for pools and clocks a good part of their time: two for each core. They are handed out one
# by one, in the order in which conftest.py puts them.
PYTEST = $(BIN)/python -m pytest -n $$((2 * $$(nproc))) --dist load --maxschedchunk 1

test: setup
	$(PYTEST) $(ARGS)

# What they import, compiled once: else each of their processes does so at the start.
collect: setup
	$(BIN)/python -m pytest --collect-only --quiet >/dev/null

# Which lines and branches of ours the tests run, those in processes that they start among them:
# ARGS=tests/unit for one part. The lab is judged by tests of its own and left out.
coverage: setup
	$(PYTEST) --cov --cov-report=term $(ARGS)

# Strikes at every request of a run, in four ways, first and later runs: two hours on two
# cores. EVERY=25 takes every 25th and some minutes. The last line is one JSON object.
sweep: setup
	$(BIN)/python -m tests.sweep $(if $(EVERY),--every $(EVERY))

# People do what they want to both pools while a job runs: N sequences of that from SEED on. A
# violation is told with the fewest deeds that lead to it; SEQUENCE=K plays one again. The last line
# is one JSON object.
mischief: setup
	$(BIN)/python -m tests.mischief $(if $(N),--n $(N)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(SEQUENCE),--sequence $(SEQUENCE))

# The tables in docs/lab.md, from the lab's own code.
docs: setup
	$(BIN)/python -m xorepd_lab.coverage docs/lab.md

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# CHANGELOG.md from the entries in docs/changelog.d, which it deletes, for the version in
# pyproject.toml. DRAFT=1 only prints it.
changelog: setup
	$(BIN)/towncrier build $(if $(DRAFT),--draft,--yes)

# Needs uv on the PATH; run it after a change of dependencies in pyproject.toml.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-annotate --no-emit-index-url --group dev --output-file requirements.lock \
	  pyproject.toml plugins/xorepd-lab/pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-annotate --no-emit-index-url --no-emit-find-links \
	  --output-file tests/strangers/ansible/requirements.lock tests/strangers/ansible/requirements.in

# Peak memory of the daemon while it moves an 8 GiB disk that is full of data.
bench-memory: setup
	$(BIN)/python -m tests.bench.memory

# Peak memory of the daemon with 64 disks at once, under small and large budgets. VMS=4 for 16 disks.
bench-disks: setup
	$(BIN)/python -m tests.bench.disks $(if $(VMS),--vms $(VMS))

# What the lab itself costs, against its goals: streams, NBD, a thousand VMs.
bench-lab: setup
	$(BIN)/python -m tests.bench.lab

# Bytes of a delta in blocks of 64 KiB beside 2 MiB: read, sent, written, against what changed.
bench-delta: setup
	$(BIN)/python -m tests.bench.delta

# CPU of finding our marks in a pool of a thousand VMs, and walks of all records in one run.
bench-marks: setup
	$(BIN)/python -m tests.bench.marks $(if $(VMS),--vms $(VMS))

# CPU and memory of carrying a full disk, beside `curl | curl`; GIB=2 for a shorter one.
bench-relay: setup
	$(BIN)/python -m tests.bench.relay $(if $(GIB),--gib $(GIB))

# A full and a delta over 100 Mbit/s and 80 ms, compressed beside direct; as root. MIB=500 for a smaller
# disk, TREE=DIRECTORY for the files of another system than this one.
bench-wan: setup
	$(BIN)/python -m tests.bench.wan $(if $(MIB),--mib $(MIB)) $(if $(TREE),--tree $(TREE))

# Whether a target at a tenth of the speed holds up the other one.
bench-fanout: setup
	$(BIN)/python -m tests.bench.fanout

# How many of our files and functions one plain delta runs through; the last line is one JSON object.
trace: setup
	$(BIN)/python -m tests.bench.trace

clean:
	rm -rf .venv .strangers tests/strangers/node/node_modules build dist
