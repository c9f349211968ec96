# The front door of the project. Every target brings what it needs: `make test` works in a fresh clone.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The steps build on each other, and the long ones use every core by themselves.
.NOTPARALLEL:

# Tools that scripts/setup.sh fetched for this project alone come first.
export PATH := $(CURDIR)/build/toolchain/bin:$(CURDIR)/node_modules/.bin:$(PATH)

node := node --import tsx
# Stays quiet when nothing is missing. `make setup FOR="build test"` names purposes by hand.
FOR ?= build

.PHONY: help
help: ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

.PHONY: setup
setup: ## Install what this machine lacks to build (FOR="test bench": for more)
	@scripts/setup.sh $(FOR)

.PHONY: setup-demo setup-test setup-lab setup-bench
setup-demo setup-test setup-lab setup-bench: setup-%:
	@scripts/setup.sh $*

.PHONY: build
build: setup ## Build build/sluice, the native executable, and build/sluiced, the daemon
	@$(node) scripts/build.ts

.PHONY: demo
demo: setup-demo build ## Run a container with a (simulated) GPU and show what it got, and why
	@$(node) scripts/demo.ts

.PHONY: test
test: unit engine vm ## Run all tests

.PHONY: unit
unit: setup-test build ## Run the tests of the code by itself, in Node and in the executable's engine
	@$(node) scripts/unit.ts

.PHONY: lab
lab: setup-lab ## Fetch the container engines, and make the images and the kernel, that the tests run (kept in a cache)
	@$(node) test/lab/make.ts

.PHONY: engine
engine: setup-test lab build ## Run the tests that start real containers
	@$(node) --test test/engine/*.test.ts
	@$(node) test/lab/table.ts --check

.PHONY: vm
vm: lab build ## Run the tests in a virtual machine: cgroup v2, VFIO, mediated devices, SR-IOV
	@$(node) --test test/vm/*.test.ts

.PHONY: gpu-kit
gpu-kit: setup-lab build ## Make build/gpu-kit, to try Sluice on a machine with an NVIDIA GPU that has nothing else
	@$(node) test/gpu/kit.ts

.PHONY: engines-table
engines-table: setup ## Write the tables of docs/engines.md from what the tests of the engines saw
	@$(node) test/lab/table.ts

.PHONY: bench
bench: setup-bench lab build ## Measure start-up cost against its floor, and what sluiced adds to a pod's container
	@$(node) test/bench/bench.ts
	@$(node) test/bench/nri.ts

.PHONY: check
check: setup ## Check types, style, the import rule and generated files
	@tsc -p tsconfig.json
	@tsc -p tsconfig.node.json
	@biome check --error-on-warnings .
	@$(node) scripts/check-imports.ts
	@$(node) scripts/compile-schemas.ts --check
	@scripts/quickjs.sh --check

.PHONY: format
format: setup ## Format all files
	@biome check --write .
	@$(node) scripts/compile-schemas.ts

.PHONY: clean
clean: ## Remove all that was built (not node_modules)
	@rm -rf build
