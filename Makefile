# hyperion_vault: the commands of this project. "make help" lists them; what they do is in packaging/*.sh.
# Each prepares what it needs by itself, as root or as a normal user.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Majors to test on, and majors that must at least build.
PG_MAJORS ?= 15 18
PG_CHECK_MAJORS ?= 15 16 17 18
export PG_MAJORS PG_CHECK_MAJORS
# For "make install": the PostgreSQL to install into. Not exported, so that other targets see only what the caller set.
PG_CONFIG ?= pg_config

.PHONY: help quickstart stop setup test release check-majors loom fmt clippy deny bench soak install clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | \
	    while IFS=$$'\t' read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done

quickstart: ## build, start a throw-away PostgreSQL with a vault in it, and show what it does (PG_MAJOR=18, PG_CONFIG=...)
	@packaging/quickstart.sh

stop: ## end the quickstart's PostgreSQL and remove it
	@packaging/stop.sh

setup: ## install tools, the PostgreSQL trees of PG_MAJORS and PG_CHECK_MAJORS, and moto; nothing else
	@packaging/setup.sh $(sort $(PG_MAJORS) $(PG_CHECK_MAJORS)) moto

test: ## everything: format, lints, all tests on PG_MAJORS (TEST_ARGS=name, ONLY="stage ...")
	@packaging/test.sh

release: ## keep the SQL of this version in sql/released, for good (docs/development.md)
	@HYPERION_VAULT_RELEASE=1 ONLY="install-pg$(lastword $(PG_MAJORS)) tests-pg$(lastword $(PG_MAJORS))" \
	    TEST_ARGS=upgrade:: packaging/test.sh

check-majors: ## build check and lints on PG_CHECK_MAJORS
	@ONLY=clippy packaging/test.sh

loom: ## the memory orderings of the request slots, every interleaving that loom finds (not part of "make test")
	RUSTFLAGS="--cfg loom" cargo test -p hyperion_vault_core --release --target-dir target/loom loom

fmt: ## format all Rust code
	cargo fmt --all

clippy: ## lints on the default major
	cargo clippy --workspace --all-targets --features testing -- -D warnings

deny: ## licences, sources and known vulnerabilities of all dependencies (builds cargo-deny once)
	@packaging/deny.sh

bench: ## cached read_secret beside a plain primary-key select (PG_MAJOR=18)
	@packaging/bench.sh

soak: ## everything at once for half an hour, beside VACUUM FULL and kill -9, then amcheck (SOAK_MINUTES=30, PG_MAJORS)
	@packaging/soak.sh

install: ## build and install into one PostgreSQL: make install PG_CONFIG=/usr/lib/postgresql/15/bin/pg_config
	@packaging/install.sh '$(PG_CONFIG)'

clean: ## remove build results and logs; the quickstart is stopped first
	@packaging/stop.sh
	cargo clean
	rm -rf .work
