# Two commands matter: `make demo` and `make test`. Both set up what they need; the second time that costs nothing.
#   setup      .venv from the hashed lock file, and the program itself: .venv/bin/strongroom
#   demo       setup, then back up, damage and restore real data on a real server; under a minute
#   machine    a small virtual machine for the README's tour, in ~/strongroom-machine; machine-off ends it
#   test       setup, the tests' packages, then every check but the long ones
#   test-sources  guests booted without KVM, a Ceph: what restore points of real machines and volumes hold; half an hour
#   reliability  the fault suites in full, then docs/RELIABILITY.md from their counts; an hour or two
#   conformance  what every client meets at every operation, on a server of its own: docs/CONFORMANCE.md; three minutes
#   bench-load   a thousand clients, a hundred jobs, a million restore points on one machine: docs/benchmarks/load.md
#   bench-growth  what steps and workers cost as both grow, and a model beyond: docs/benchmarks/growth.md
#   bench      beside restic and borg: fetches them, makes data, measures, writes docs/benchmarks; half an hour, 35 GB
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long chaos reliability lint format clean bench bench-memory bench-memory-full bench-index bench-prune

# The lock file was made for 3.11; a newer one serves where 3.11 is not found under its own name.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
BIN := .venv/bin

# Smaller or larger: make bench BENCH_TREE=200M BENCH_IMAGE=512M BENCH_RANDOM=100M BENCH_OPTIONS='--sets tree --synthetic'
BENCH_REPS ?= 3
BENCH_TREE ?= 2G
BENCH_IMAGE ?= 4G
BENCH_RANDOM ?= 512M
BENCH_DIR ?= .bench
BENCH_OUT ?= docs/benchmarks
BENCH_OPTIONS ?=
BENCH_MEMORY_OPTIONS ?=
BENCH_INDEX_OPTIONS ?=
BENCH_API_OPTIONS ?=
# What the report says it was made by: folders of this machine are nobody's business.
bench-command = BENCH_COMMAND="$(strip make $@ $(filter-out BENCH_DIR=% BENCH_OUT=%,$(MAKEOVERRIDES)))"
PIP_OPTIONS := --disable-pip-version-check --quiet
PIP := $(BIN)/python -m pip $(PIP_OPTIONS)

help:
	@sed -n 's/^#   //p' Makefile

setup: .venv/.setup-done

.venv/.created:
	@test -n "$(PYTHON)" || { echo "Strongroom needs Python 3.11 or newer; name one: make setup PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || .ci/system-packages --install python3-venv
	$(PYTHON) -m venv .venv
	@touch $@

# By path: no finder in each start. Compiled: a start costs 50 ms less, also where Python may not write while it runs.
define install-product
	$(1)/python -m pip $(PIP_OPTIONS) install --require-hashes -r requirements/base.txt
	$(1)/python -m pip $(PIP_OPTIONS) install --no-build-isolation --no-deps --editable . --config-settings editable_mode=compat
	@$(1)/python -m compileall -q strongroom
endef

.venv/.setup-done: .venv/.created requirements/base.txt pyproject.toml
	$(call install-product,$(BIN))
	@touch $@
	@echo "Ready: .venv/bin/strongroom"

.venv/.test-done: .venv/.setup-done requirements/test.txt
	$(PIP) install --require-hashes -r requirements/test.txt
	@touch $@

demo: setup
	@.ci/system-packages mkfs.ext4:e2fsprogs unshare:util-linux
	@$(BIN)/strongroom demo

# It runs beside the server and as the same user: MACHINE is its folder.
.PHONY: machine machine-off
MACHINE ?= $(HOME)/strongroom-machine
machine:
	@.ci/system-packages qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils busybox:busybox-static mkfs.ext4:e2fsprogs
	@.ci/system-packages sshd:openssh-server ssh:openssh-client
	@.ci/guest-kernel .guest
	@.ci/machine on "$(MACHINE)" .guest

machine-off:
	@.ci/machine off "$(MACHINE)"

lint: .venv/.test-done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	@.ci/system-packages mkfs.ext4:e2fsprogs curl:curl setfacl:acl setfattr:attr mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs unshare:util-linux qemu-nbd:qemu-utils qemu-system-x86_64:qemu-system-x86 pgbouncer:pgbouncer
	$(BIN)/pytest -n auto --dist worksteal -m 'not long'

test-long: .venv/.test-done guests
	@.ci/system-packages mkfs.ext4:e2fsprogs curl:curl setfacl:acl setfattr:attr mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs unshare:util-linux qemu-nbd:qemu-utils qemu-system-x86_64:qemu-system-x86 promtool:prometheus pgbouncer:pgbouncer
	@rm -f .reliability.jsonl
	STRONGROOM_RELIABILITY_REPORT=.reliability.jsonl $(BIN)/pytest -m long
	$(MAKE) test-radosgw

# What the tests ask of an S3 server, asked of a Ceph.
.PHONY: test-radosgw
test-radosgw: .venv/.test-done
	@.ci/system-packages ceph-mon:ceph-mon ceph-osd:ceph-osd rbd:ceph-common radosgw:radosgw
	STRONGROOM_TEST_S3=radosgw $(BIN)/pytest -m 'not long' -k 's3 or radosgw' tests/contract/test_store_contract.py \
		tests/fault/test_s3_store.py tests/fault/test_s3_retention.py tests/e2e/test_server_on_s3.py tests/e2e/test_recover_s3.py

# Many processes with something broken each second: make chaos SECONDS=60 SEED=7
SECONDS ?= 60
SEED ?= 1
chaos: .venv/.test-done
	STRONGROOM_CHAOS_S=$(SECONDS) STRONGROOM_TEST_SEED=$(SEED) $(BIN)/pytest -q -s -m long tests/e2e/test_chaos.py

# Packages of the guests that the long tests boot, and the kernel they run.
.PHONY: guests test-sources
guests:
	@.ci/system-packages qemu-nbd:qemu-utils qemu-system-x86_64:qemu-system-x86 qemu-ga:qemu-guest-agent busybox:busybox-static mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs
	@.ci/system-packages ceph-mon:ceph-mon ceph-osd:ceph-osd rbd:ceph-common radosgw:radosgw lvm:lvm2 thin_delta:thin-provisioning-tools zfs-fuse:zfs-fuse rabbitmq-server:rabbitmq-server
	@compgen -G '/usr/lib/*/qemu/block-rbd.so' >/dev/null || .ci/system-packages --install qemu-block-extra
	@.ci/system-packages libvirtd:libvirt-daemon-system libvirtd:libvirt-daemon-driver-qemu virsh:libvirt-clients
	@test -e /usr/lib/python3/dist-packages/libvirt.py || .ci/system-packages --install python3-libvirt
	@.ci/guest-kernel .guest

test-sources: .venv/.test-done guests
	$(BIN)/pytest -m long tests/machines tests/storage tests/e2e/test_cinder.py tests/e2e/test_nova.py tests/e2e/test_machines.py tests/e2e/test_readme.py \
		tests/e2e/test_ssh_hosts.py

# The long form of every fault suite, and docs/RELIABILITY.md from their counts.
reliability: .venv/.test-done
	@.ci/system-packages mkfs.ext4:e2fsprogs curl:curl setfacl:acl setfattr:attr mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs unshare:util-linux
	@rm -f .reliability.jsonl
	STRONGROOM_RELIABILITY_REPORT=.reliability.jsonl $(BIN)/pytest tests/fault tests/fuzz tests/e2e/test_hostile.py tests/e2e/test_tenants.py
	$(BIN)/python -m bench.reliability .reliability.jsonl

.PHONY: conformance
CONFORMANCE_FUZZ ?= 30
conformance: .venv/.test-done
	$(BIN)/strongroom conformance --own-server --fuzz $(CONFORMANCE_FUZZ) --report docs/CONFORMANCE.md

# The product alone, as it is installed: some packages of the tests run code at each start of Python (.pth files).
$(BENCH_DIR)/venv/.setup-done: .venv/.created requirements/base.txt pyproject.toml
	$(PYTHON) -m venv --clear $(BENCH_DIR)/venv
	$(call install-product,$(BENCH_DIR)/venv/bin)
	@touch $@

bench: $(BENCH_DIR)/venv/.setup-done
	@.ci/system-packages mkfs.ext4:e2fsprogs zstd:zstd
	$(bench-command) $(BENCH_DIR)/venv/bin/python -m bench.compare run --reps $(BENCH_REPS) --tree $(BENCH_TREE) --image $(BENCH_IMAGE) \
		--random $(BENCH_RANDOM) --dir $(BENCH_DIR) --out $(BENCH_OUT) $(BENCH_OPTIONS)

bench-memory: .venv/.setup-done
	$(bench-command) $(BIN)/python -m bench.memory --dir $(BENCH_DIR) --out $(BENCH_OUT) $(BENCH_MEMORY_OPTIONS)

.PHONY: bench-machines
bench-machines: .venv/.setup-done
	@.ci/system-packages qemu-nbd:qemu-utils qemu-system-x86_64:qemu-system-x86
	$(BIN)/python -m bench.machine_reads --dir $(BENCH_DIR)

.PHONY: bench-reads
bench-reads: .venv/.setup-done
	$(BIN)/python -m bench.random_reads --dir $(BENCH_DIR)

bench-memory-full:
	$(MAKE) bench-memory BENCH_MEMORY_OPTIONS='--files 2M --sparse 1T --entries 1M --points 100'

bench-index: .venv/.setup-done
	$(bench-command) $(BIN)/python -m bench.index_scale --dir $(BENCH_DIR) --out $(BENCH_OUT) $(BENCH_INDEX_OPTIONS)

bench-prune: .venv/.setup-done
	$(bench-command) $(BIN)/python -m bench.prune_scale --dir $(BENCH_DIR) --out $(BENCH_OUT) $(BENCH_PRUNE_OPTIONS)

.PHONY: bench-scale
bench-scale: .venv/.setup-done
	$(BIN)/python -m bench.claim_scale
	$(BIN)/python -m bench.many_workers

# Bounded, and stop by themselves; smaller: make bench-load LOAD_OPTIONS='--clients 100 --vaults 100 --points 1K'
LOAD_OPTIONS ?=
GROWTH_OPTIONS ?=
.PHONY: bench-load bench-growth
bench-load: .venv/.setup-done
	$(bench-command) nice $(BIN)/python -m bench.scale.load --dir $(BENCH_DIR) --out $(BENCH_OUT) $(LOAD_OPTIONS)
	$(BIN)/python -m bench.scale.growth --parts report --out $(BENCH_OUT)

bench-growth: .venv/.test-done
	$(bench-command) $(BIN)/python -m bench.scale.growth --dir $(BENCH_DIR) --out $(BENCH_OUT) $(GROWTH_OPTIONS)

# FastAPI and SQLAlchemy, which the API is compared with; nothing of the product needs them.
.venv/.bench-done: .venv/.setup-done requirements/bench.txt
	$(PIP) install --require-hashes -r requirements/bench.txt
	@touch $@

.PHONY: bench-api
bench-api: .venv/.bench-done
	$(bench-command) $(BIN)/python -m bench.api --dir $(BENCH_DIR) --out $(BENCH_OUT) $(BENCH_API_OPTIONS)

format: .venv/.test-done
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .bench .guest .keystone .reliability.jsonl build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis strongroom.egg-info
