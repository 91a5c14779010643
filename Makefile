# From a fresh clone: `make run` starts everything, `make test` tests everything; `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# What the test suite needs of the system: a compiler for the fake driver, a browser for the dashboard,
# systemd-analyze for the units, names of PCI devices for the peak table, patchelf and rpm for packages,
# a real Slurm for the rosters, PostgreSQL and a balancer for several collectors, Prometheus and a pair of
# Alertmanagers for pages.
PACKAGES := chromium gcc haproxy libc6-dev libfaketime mariadb-server-core munge patchelf pci.ids postgresql prometheus prometheus-alertmanager rpm slurm-client slurmctld slurmd slurmdbd slurmrestd systemd
APT := DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends

.DEFAULT_GOAL := help
.PHONY: help setup debian run test check stubs docs bench soak campaign packages clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv with the package and everything for development in it

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || test "$$(id -u)" != 0 \
		|| { apt-get update -qq && $(APT) python3-venv; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,probes]' -c constraints.txt
	@touch $@

debian: ## install what the tests need of the system (as root on Debian; else only says so)
	@if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "make debian: not root on Debian; the tests need: $(PACKAGES)"; \
	elif ! dpkg-query -W -f '$${db:Status-Abbrev}\n' $(PACKAGES) 2>&1 | grep -qv '^ii'; then \
		:; \
	else \
		apt-get update -qq && $(APT) $(PACKAGES) >/dev/null; \
	fi

run: setup ## start collector, agent and, without an accelerator, a simulated cluster
	$(BIN)/flopwatch up

test: setup debian ## run the test suite; a skipped test is a failed one
	$(BIN)/python tools/suite.py

check: setup ## format, lint, types, imports, stubs and generated documents
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/stubs.py --check
	$(BIN)/python tools/documents.py --check

stubs: setup ## generate the stubs of the contract; refuses a change that breaks it
	$(BIN)/python tools/stubs.py

docs: setup ## generate the documents that come from the code: configuration, metrics, tables
	$(BIN)/python tools/documents.py

bench: setup debian ## run the benchmarks and rewrite their results under docs/measured
	$(BIN)/python bench/agent.py
	$(BIN)/python bench/collector.py
	$(BIN)/python bench/collector.py --resolution 1
	$(BIN)/python bench/remote_write.py
	$(BIN)/python bench/remote_write.py --resolution 1
	$(BIN)/python bench/catchup.py
	$(BIN)/python bench/readers.py
	$(BIN)/python bench/queries.py
	$(BIN)/python bench/stragglers.py
	$(BIN)/python bench/step.py
	$(BIN)/python bench/repeat.py

soak: setup debian ## run the agent for two hours and write how it grew
	$(BIN)/python bench/soak.py

campaign: setup debian ## every fault of docs/measured/reliability.md that has a campaign, from SEED (1), as root: a day
	PYTHONPATH=tests $(BIN)/python -m campaign.kills $(or $(KILLS),200) $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.prefixes 10000 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.crashes 1000 1000 200 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.delivery 1000 1000 200 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.network 100 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.cut 200 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.disks 50 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.failing
	PYTHONPATH=tests $(BIN)/python -m campaign.corruption 1 5000 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.rollback 200 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.malformed 200000 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.hostile 10000 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.clocks 40 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.slow 20 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.certificates 36 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.cgroups 50 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.upgrades 20 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.explained 200 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.episodes 2000 40 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.paging_histories 5000 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.paging_year 365 $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python -m campaign.soak $(or $(MINUTES),60) $(or $(SEED),1)

packages: setup debian ## build the packages that fleets install, .deb and .rpm, into dist
	$(BIN)/python tools/packages.py dist

clean: ## remove the virtual environment and every cache
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
