# Cloudnova Edge. `make help` says what there is.
SHELL := /bin/bash
export CARGO_BUILD_JOBS ?= $(shell nproc)
DEMO_DIR ?= $(CURDIR)/demo-state
SEEDS ?= 1000
FROM ?= 0

# The container runtime is one static file: it starts faster, and needs nothing of the node but its kernel.
TARGET := $(shell uname -m)-unknown-linux-gnu
STATIC := RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" LIBSECCOMP_LINK_TYPE=static \
	LIBSECCOMP_LIB_PATH=/usr/lib/$(shell uname -m)-linux-gnu CARGO_TARGET_DIR=target/static
WASMTIME ?= $(shell command -v wasmtime)

.PHONY: help demo demo-stop test test-cgroup2 yocto-crates yocto-check yocto-test bridge-test check cross-arm64 bench bench-runtimes bench-trust release-container image hil hil-prepare test-board test-power-cuts test-os-update sim setup-test setup-demo fmt

help: ## What can be made
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: setup-demo ## The whole line on this machine, in about a minute (KEEP=1 leaves it up)
	@echo "== building (the first time takes several minutes)"
	cargo build --workspace --bins
	@./target/debug/cnova-hil demo --dir $(DEMO_DIR) --bin target/debug --examples examples $(if $(KEEP),--keep)

demo-stop: ## End a fleet that `make demo KEEP=1` left up
	@scripts/demo-stop $(DEMO_DIR)

test: setup-test yocto-test bridge-test ## Everything: build, lints, tests, 1,000 seeds of the simulator
	@echo "== building (the first time takes several minutes)"
	cargo build --workspace --all-targets
	@echo "== testing"
	cargo nextest run --workspace --no-fail-fast

# `make test` runs the container tests there too, where QEMU and the kernel are installed.
test-cgroup2: setup-test ## Containers, their conformance and accounting with control groups v2, in a virtual machine
	@scripts/guest-kernel
	cargo build -p cnova-ral-conformance --bins
	cargo nextest run -p cnova-runtime-container --run-ignored all -E 'test(with_control_groups_v2)'
	CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$(CURDIR)/target/debug/cnova-in-guest cargo test -p cnova-ral --lib cgroup::

yocto-test: ## The Yocto layer, as far as it can be looked at without bitbake; part of `make test`
	@echo "== the Yocto layer, without bitbake"
	@scripts/yocto-test

bridge-test: ## What speaks for real boards, as far as it can be tried without one; part of `make test`
	@echo "== the bridge to real boards, without labgrid"
	@PYTHONPYCACHEPREFIX=target/pycache python3 -m py_compile hil-tests/labgrid/bridge.py
	@cd hil-tests/labgrid && python3 -B test_steps.py

yocto-crates: ## Write the layer's list of crates again, after Cargo.lock changed
	@scripts/yocto-crates

yocto-check: ## The Yocto layer with a real bitbake: make yocto-check YOCTO_CHECK='OE_CORE BITBAKE META_OE ...'
	@scripts/yocto-check

PROFILE ?= cross
cross-arm64: ## What an arm64 device runs, and cnova: make cross-arm64 PROFILE=fast (cross)
	@scripts/setup arm64
	scripts/cross arm64 $(PROFILE)

BOARD ?= qemu-x86_64
# A board of another processor: what is installed for it, and where its programs are.
BOARD_ARM64 := $(filter qemu-arm64,$(BOARD))
IMAGE_SETUP := $(if $(BOARD_ARM64),arm64,image)
IMAGE_BIN ?= $(if $(BOARD_ARM64),target/cross/aarch64-unknown-linux-gnu/fast,target/fast)
image: ## A bootable disk: make image BOARD=qemu-x86_64 TRUST_BUNDLE=FILE CONFIG=FILE (firmware-images/README.md)
	@scripts/setup $(IMAGE_SETUP)
	@test -n "$(TRUST_BUNDLE)" -a -n "$(CONFIG)" || { echo "error: name TRUST_BUNDLE=FILE (cnova trust init makes one) and CONFIG=FILE (the agent's): firmware-images/README.md"; exit 1; }
	$(if $(BOARD_ARM64),scripts/cross arm64 fast,cargo build --profile fast --bins -p cnova-agent -p cnova-runtime-wasm -p cnova-runtime-container -p cnova-runtime-ebpf)
	PATH=$$PATH:/usr/sbin:/sbin firmware-images/build $(BOARD) --bin $(IMAGE_BIN) --trust-bundle $(TRUST_BUNDLE) --config $(CONFIG)

# What `scripts/cross arm64` makes.
ARM64_BIN := target/cross/aarch64-unknown-linux-gnu/cross
# sim, qemu-x86_64, qemu-arm64, or labgrid:ENVIRONMENT-FILE for a real board (docs/HARDWARE.md).
ON ?= sim
HIL = PATH=$$PATH:/usr/sbin:/sbin ./target/debug/cnova-hil scenarios --bin target/debug --report report
LABGRID := target/labgrid/.installed
hil: setup-test $(if $(filter labgrid:%,$(ON)),$(LABGRID)) ## Scenarios of a board: make hil ON=sim|qemu-x86_64|qemu-arm64|labgrid:FILE [SCENARIO=NAME] [CUTS=N] [SOAK=MINUTES]; the report is in report/
	$(if $(filter sim%,$(ON)),,@scripts/setup $(if $(filter qemu-arm64,$(ON)),arm64,image))
	cargo build --workspace --bins
	$(if $(filter qemu-arm64,$(ON)),$(if $(BOARD_BIN),,scripts/cross arm64))
	$(HIL) --on $(ON) $(if $(CUTS),--cuts $(CUTS)) $(if $(SOAK),--soak $(SOAK)) $(if $(BOARD_BIN),--board-bin $(BOARD_BIN),$(if $(filter qemu-arm64,$(ON)),--board-bin $(ARM64_BIN))) $(SCENARIO)

hil-prepare: $(LABGRID) ## Before the image of a real board is built elsewhere: make hil-prepare ON=labgrid:FILE (docs/HARDWARE.md)
	cargo build --workspace --bins
	$(HIL) --on $(ON) --prepare

$(LABGRID): hil-tests/labgrid/requirements.txt
	@scripts/setup lab
	python3 -m venv target/labgrid
	target/labgrid/bin/pip install --quiet --requirement $<
	touch $@

test-board: setup-test ## An image on a virtual board, from flashing to working alone (minutes): make test-board BOARD=qemu-arm64
	$(MAKE) hil ON=$(BOARD) SCENARIO="line changed-byte"

test-power-cuts: setup-test ## The same board, its power cut CUTS times at any moment (an hour)
	$(MAKE) hil ON=$(BOARD) CUTS=$(or $(CUTS),50) SCENARIO=power-cuts

test-os-update: setup-test ## A system of a virtual board changed by its twin: kept, left again, and the power cut on the way (CUTS=N, at most 8)
	$(MAKE) hil ON=$(BOARD) SCENARIO="os-update update-power-cut"

check: ## Format, lints, dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny check; else echo "cargo-deny is not installed: deny.toml was not checked (cargo install cargo-deny)"; fi

sim: ## The simulator over other seeds: make sim SEEDS=100000 FROM=5000
	cargo build -p cnova-hil-tests --bins
	./target/debug/cnova-hil sim --from $(FROM) --seeds $(SEEDS)

bench: setup-demo ## The figures of docs/BENCHMARKS.md
	cargo build --profile fast --workspace --bins
	./target/fast/cnova-hil measure --dir $(DEMO_DIR) --bin target/fast --examples examples

bench-trust: setup-test ## What attestation, provenance and measured launch cost, with swtpm
	cargo build --profile fast --workspace --bins
	./target/fast/cnova-hil measure-trust --dir $(DEMO_DIR) --bin target/fast --examples examples

# crun 1.8 refuses a hybrid of control groups v1 and v2: where there is one, it does not see the v2 part.
bench-runtimes: setup-demo ## The figures of the three runtimes; as root (Debian: runc crun bpftool)
	cargo build --profile fast --workspace --bins
	$(STATIC) cargo build --profile fast --target $(TARGET) -p cnova-runtime-container
	unshare --mount sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec ./target/fast/cnova-hil measure-runtimes \
		--dir $(DEMO_DIR) --bin target/fast --examples examples \
		--container-static target/static/$(TARGET)/fast/cnova-runtime-container $(if $(WASMTIME),--wasmtime $(WASMTIME))'
	cargo test --profile fast -p cnova-runtime-ebpf --test measure -- --ignored --nocapture

release-container: ## The container runtime as it is flashed: one static file
	$(STATIC) cargo build --release --target $(TARGET) -p cnova-runtime-container
	@echo target/static/$(TARGET)/release/cnova-runtime-container

setup-test:
	@scripts/setup test

setup-demo:
	@scripts/setup demo

fmt: ## Format everything
	cargo fmt --all
