# Every routine task. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/sh
CHAOS_MINUTES ?= 30
TARGET := $(or $(CARGO_TARGET_DIR),target)
COMPOSE := docker compose --file deploy/compose.yaml $(OVERLAYS:%=--file %) \
	$(if $(wildcard .env),--env-file .env)

.PHONY: help run build deb image sbom test check fmt lint docs pages book boundaries deny instructions instructions-accept deploy-check settings clients chaos bench bench-docs mutants services services-stop up down logs

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

run: ## the whole service in one process: SQLite, embedded queue, SMS on the console
	cargo run --release --package bootstrap --bin messager

build: ## release binaries in target/release
	cargo build --release --package bootstrap --bins

deb: sbom ## a Debian package with systemd units, in target/debian
	scripts/dist
	scripts/deb

sbom: ## the bill of materials (CycloneDX) of image and package, in target/sbom
	scripts/sbom

IMAGE := target/image/messager.tar

image: sbom ## the image with its bill of materials and provenance, as an OCI archive in target/image
	mkdir -p $(dir $(IMAGE))
	docker buildx build --file deploy/Dockerfile --tag messager $(if $(RUST),--build-arg RUST=$(RUST)) \
		--build-arg VERSION=$(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml) --build-arg REVISION=$(shell git rev-parse HEAD) \
		--build-arg SOURCE_DATE_EPOCH=$(shell git log -1 --format=%ct) \
		--build-context sbom=target/sbom --provenance mode=max --output type=oci,dest=$(IMAGE),rewrite-timestamp=true .

# No doc comment has an example, and looking for some takes as long as many tests.
test: ## all tests on a real PostgreSQL and a real Kafka; then backups, dashboards, the API's description and three minutes of faults, side by side
	cargo test --workspace --tests --no-run
	scripts/services run sh -c 'scripts/side-by-side "$$1" "$$2" && scripts/side-by-side "$$3" "$$4" "$$5" && \
		scripts/side-by-side "$$6" "$$7" "$$8"' - \
		'cargo test --workspace --lib --bins' \
		'cargo test --workspace --test "*"' \
		'deploy/try-backup $(TARGET)/debug/messager' \
		'deploy/try-dashboards $(TARGET)/debug' \
		'$(TARGET)/debug/chaos gateways --minutes 1 --seed 1' \
		'$(TARGET)/debug/chaos run --minutes 1 --seed 1' \
		'$(TARGET)/debug/chaos embedded --minutes 1 --seed 1' \
		'scripts/schemathesis $(TARGET)/debug/messager'

clients: ## clients made of /openapi.json by seven generators; each starts and checks a verification
	cargo build --bin messager
	scripts/clients/run $(TARGET)/debug/messager

chaos: ## faults under load for CHAOS_MINUTES (30), drawn from CHAOS_SEED; then two gateways, of which one fails
	cargo build --release --bins
	scripts/services run sh -c '"$$0" run "$$@" --minutes $(CHAOS_MINUTES) && "$$0" gateways "$$@"' \
		$(TARGET)/release/chaos $(if $(CHAOS_SEED),--seed $(CHAOS_SEED))

BENCH := bench/results/$(shell date +%Y-%m-%d).json

bench: ## measure the service against baselines of its parts, as a table and as JSON
	cargo build --release --workspace --bins --example drain
	mkdir -p bench/results
	scripts/services run sh -c 'TEST_DEBEZIUM=$$(scripts/services debezium) && export TEST_DEBEZIUM; exec "$$@"' - \
		$(TARGET)/release/bench run --report $(BENCH) $(BENCH_ARGS)

bench-docs: ## renew docs/performance.md and docs/scaling.md from RESULTS=bench/results/….json
	cargo run --quiet --package lab --bin bench -- docs $(RESULTS)

mutants: ## broken variants of the service, each of which chaos must catch
	cargo build --package lab
	scripts/services run $(TARGET)/debug/chaos mutants

# The compiler often waits for one crate: the checks that compile little fill the other core.
check: fmt ## what CI runs
	scripts/side-by-side '$(MAKE) lint docs' '$(MAKE) pages boundaries deny instructions deploy-check'
	$(MAKE) test

fmt: ## the format
	cargo fmt --all --check

lint: ## clippy, warnings as errors
	cargo clippy --workspace --all-targets -- --deny warnings

# With the examples, dependencies have the features that they have for clippy, and are not checked again.
docs: ## the API documentation builds
	RUSTDOCFLAGS="--deny warnings" AUTOMETRICS_DISABLE_DOCS=1 cargo doc --workspace --no-deps --lib --bins --examples

pages: ## links of the documents, and the paths and names in ARCHITECTURE.md and CONTRIBUTING.md
	scripts/pages check

MDBOOK := $(or $(shell command -v mdbook),$(TARGET)/tools/bin/mdbook)

book: $(MDBOOK) ## all documents as a searchable book in target/book
	scripts/pages book $(MDBOOK)

$(TARGET)/tools/bin/mdbook:
	cargo install --quiet --root $(TARGET)/tools --locked --version 0.5.4 --no-default-features --features search mdbook

boundaries: ## the inner rings depend on what this list says, and on nothing else
	scripts/boundaries domain base64 chacha20poly1305 hmac rand_core sha2 thiserror uuid
	scripts/boundaries application autometrics domain rand_core thiserror tokio tracing trait-variant
	scripts/boundaries adapters-wire application chrono domain serde serde_json

deny: ## licences, sources and known faults of all dependencies, by deny.toml
	scripts/deny

INSTRUCTIONS := bench/instructions.json

instructions: ## the hot functions take no more instructions than bench/instructions.json allows
	scripts/services valgrind
	cargo build --quiet --release --package hot
	$(TARGET)/release/hot check $(INSTRUCTIONS)

instructions-accept: ## count the instructions again, and write the file
	scripts/services valgrind
	cargo build --quiet --release --package hot
	$(TARGET)/release/hot accept $(INSTRUCTIONS)

deploy-check: ## compose file, image, Helm chart, alerts and dashboards, as far as this machine can
	deploy/check

settings: ## .env.example and the tables of docs/settings.md, written from the declarations in the code
	scripts/settings

services: ## PostgreSQL and Kafka of the tests, kept running for development
	scripts/services start

services-stop: ## stop them
	scripts/services stop

up: ## the whole stack in Docker Compose; OVERLAYS=deploy/compose.external.yaml: with a PostgreSQL and a Kafka of yours
	deploy/draw-secrets
	$(COMPOSE) up --build --detach --wait

down: ## stop the stack; its data stays
	$(COMPOSE) down

logs: ## follow the stack's logs
	$(COMPOSE) logs --follow --tail 100
