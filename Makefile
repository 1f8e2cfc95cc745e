# The targets are listed by plain `make`.
.PHONY: help demo images test test-cluster test-gpu build player check bench-streamer bench-packing bench-turn bench-extender bench-plugin bench-matchmaker fuzz clean setup

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 18

demo: player ## a game in each of two slices, to play in a browser (SLICES=3 APP='xterm' PORT=8080 UNITS=6)
	@scripts/demo

test: player tests/node_modules/.package-lock.json ## all tests, those with a browser too
	@scripts/test

test-gpu: ## what takes an NVIDIA GPU: NVML, MPS and CUDA for real
	@scripts/test-gpu

build: player ## the programs, in target/debug
	cargo build --workspace --locked

images: ## the container images, by docker or ENGINE=podman (REGISTRY=registry.example/games/)
	@scripts/images

player: setup player/dist/index.html ## the web page, in player/dist

test-cluster: ## what tests expect of Kubernetes, and the matchmaker with it, on the real one of KUBECONFIG, in namespaces of its own
	@scripts/test-cluster

check: player ## format, lints, types
	cargo fmt --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	npm --prefix player run --silent check

bench-streamer: ## what a streamer costs beside the bare encoder
	@scripts/bench-streamer

bench-extender: ## how fast the scheduler extender answers in a large, full cluster
	@scripts/bench-extender

bench-matchmaker: player ## what waiting players cost, and how soon one plays, beside Node.js (PLAYERS=10000)
	@scripts/bench-matchmaker

bench-turn: ## what a relayed packet costs beside coturn (COTURN=/path takes another)
	@scripts/bench-turn

bench-plugin: ## how fast the device plugin answers, and how much memory it takes
	@scripts/bench-plugin

bench-packing: ## what the scheduler extender packs (TRACE_DIR=folder of the public trace)
	@scripts/bench-packing

fuzz: ## every fuzz target, a minute each (SECONDS_EACH=600)
	@scripts/fuzz

setup: ## the packages that all of these need (root, where any is missing)
	@scripts/setup

clean: ## removes what was built
	rm -rf target player/dist player/node_modules tests/node_modules

player/dist/index.html: player/node_modules/.package-lock.json player/build.mjs player/tsconfig.json $(wildcard player/src/*)
	@npm --prefix player run --silent build

# By no lock file: of a program that comes as one package for each platform, npm writes down only those that it finds.
tests/node_modules/.package-lock.json: tests/package.json | setup
	@echo 'Fetching what renders the manifests'
	@npm --prefix tests install --package-lock=false --loglevel=error --no-audit --no-fund
	@touch $@

player/node_modules/.package-lock.json: player/package.json player/package-lock.json | setup
	@echo 'Fetching what the page is built from'
	@npm --prefix player ci --loglevel=error --no-audit --no-fund
	@touch $@
