# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later

BAD ?= failing-tasks
ENGINE ?= rq
SCENARIO ?= default
SEED ?= 1
PYTEST = build/venv/bin/python -m pytest
# Where `make faults` finds, beside tests/faults, what other runs leave out.
THOROUGH = $(shell grep -rl --include='test_*.py' --exclude-dir=faults 'mark\.thorough' tests)

# Some shells forbid Python its caches, which doubles the time that Ansible takes to start.
export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast faults bench lint sanity unit integration molecule core-matrix engine-table lock clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '%-12s %s\n' "$$name" "$$text"; done

setup: ## Make this machine able to run everything (packages, Python environment, Docker engine, base image)
	@tools/python -m tools.setup test

demo: ## Deploy, fail, roll back, count: BAD=crash|crash-later|failing-tasks|wrong-queue|never-consumes ENGINE=rq
	@tools/python -m tools.setup demo
	@build/venv/bin/python -m tests.demo.run --bad=$(BAD) --engine=$(ENGINE)

test: setup ## Run every check and test
	@$(PYTEST) --numprocesses=2 --dist=loadscope --no-loadscope-reorder

test-fast: setup-fast ## Run what needs no container
	@$(PYTEST) -m "not container and not molecule and not matrix and not sanity"

.PHONY: setup-fast
setup-fast:
	@tools/python -m tools.setup fast

faults: setup ## Kill, cut off and freeze everything, everywhere, and write build/faults/report.md: SEED=1
	@$(PYTEST) --numprocesses=2 --dist=loadscope --no-loadscope-reorder tests/faults $(THOROUGH) --faults-all --faults-seed=$(SEED) --faults-cases=75 --faults-seconds=4500

bench: setup ## Measure, and write build/bench/*.json
	@build/venv/bin/python -m tests.bench.run

lint: setup-fast ## Check style, types, YAML, playbooks, documentation, layers and sizes
	@$(PYTEST) -m lint

sanity: setup-fast ## Run ansible-test sanity
	@$(PYTEST) -m sanity

unit: setup-fast ## Test the pure parts
	@$(PYTEST) tests/unit

integration: setup ## Test against real brokers, workers, supervisors and hosts
	@$(PYTEST) tests/integration

molecule: setup ## Run one Molecule scenario: SCENARIO=default
	@$(PYTEST) 'tests/checks/test_scenarios.py::test_scenario_passes[$(SCENARIO)]' -s --faults-all

core-matrix: setup-fast ## Run the demo's plays with each supported ansible-core that this machine has a Python for
	@$(PYTEST) -m matrix

engine-table: setup-fast ## Write what each engine can do into docs/engines.md
	@build/venv/bin/python -m tools.engine_table

lock: ## Pin the dependencies anew
	@tools/python -m tools.lock

clean: ## Remove build/, and stop what set-up started
	@tools/python -m tools.clean
