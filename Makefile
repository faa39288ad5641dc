# The commands of this repository. `make demo` and `make test` set up all they need.

.PHONY: demo test soak fuzz bench bench-growth lint fmt prepare prepare-bench

# The main job, end to end, on the embedded default.
demo:
	cargo build --bin chalet
	cargo run --quiet --bin chalet -- demo --once

# The test guests, which are a workspace of their own.
GUESTS = --manifest-path tests/guests/Cargo.toml --workspace

# All tests: the SDK's suites on its own host, documentation, units, the plugins' own, and the integration tests.
test: prepare
	cargo test $(GUESTS)
	cargo test --workspace --doc
	cargo test --workspace --tests

# The same with ten times as much of what is random and hostile, and all that there is of other people's: about an hour and
# a half on two cores. What uses up the processors comes first, and what measures time comes last, each test alone: beside
# the first, a scheduler that shares by session (sched_autogroup) lets one of the database's processes wait for over a second.
SOAK = CHALET_SOAK=1 cargo test --package chalet --test it -- --nocapture
soak: prepare
	$(SOAK) generated:: real:: fuzz::
	$(SOAK) markers hostile cancelled edge isolation a_node_never crash:: usage_is_the_sum
	$(SOAK) --test-threads 1 readers timing fairness::

# Search for inputs that break a promise: each target for FUZZ_SECONDS. cargo-fuzz wants a nightly compiler or to be told
# that a stable one will do; without the address sanitizer, since there is no unsafe code to watch.
FUZZ_SECONDS = 60
FUZZ_TARGETS = manifest routes webhook cursor structured_header flags
fuzz:
	@command -v cargo-fuzz >/dev/null || { echo "cargo-fuzz is not installed: cargo install cargo-fuzz" >&2; exit 1; }
	for target in $(FUZZ_TARGETS); do \
		RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz --sanitizer none $$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=8192 -timeout=10 || exit 1; \
	done

# The scoreboard: what a request costs beside bare axum and other people's servers. Takes ten minutes after the builds.
bench: prepare-bench
	cargo bench --workspace --bench bench

# What a request costs as tenants and keys become many. Takes longer.
bench-growth: prepare-bench
	CHALET_BENCH=growth cargo bench --workspace --bench bench

# Other people's servers are measured where they are, and named where they are not.
prepare-bench:
	@tests/prepare.sh wrk
	@tests/prepare.sh nginx redis-server || true

# Formatting, lints and documentation, each warning an error; licences and sources where cargo-deny is installed.
lint:
	cargo fmt --all --check
	cd tests/guests && cargo fmt --all --check
	cd tests/benches/peers && cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy $(GUESTS) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --quiet
	@if command -v cargo-deny >/dev/null; then cargo deny check licenses bans sources; \
	else echo "cargo-deny is not installed: licences and sources were not checked (cargo install cargo-deny)"; fi

fmt:
	cargo fmt --all
	cd tests/guests && cargo fmt --all
	cd tests/benches/peers && cargo fmt --all

prepare:
	@tests/prepare.sh nginx haproxy
