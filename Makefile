# The commands of this repository. `make demo` and `make test` set up all they need.

.PHONY: demo test soak bench lint fmt prepare

# The main job, end to end, on the embedded default.
demo:
	cargo run --quiet --bin chalet -- demo --once

# The test guests, which are a workspace of their own.
GUESTS = --manifest-path tests/guests/Cargo.toml --workspace

# All tests: the SDK's suites on its own host, documentation, units, the plugins' own, and the integration tests.
test: prepare
	cargo test $(GUESTS)
	cargo test --workspace --doc
	cargo test --workspace --tests

# What takes an hour: a million generated modules, all real modules compiled.
soak: prepare
	CHALET_SOAK=1 cargo test --package chalet --test it -- --nocapture generated:: real::

# The scoreboard, as Markdown: what a request costs beside bare axum. Takes five minutes after the release build.
bench:
	@tests/prepare.sh wrk
	cargo bench --workspace --bench bench

# Formatting, lints and documentation, each warning an error; licences and sources where cargo-deny is installed.
lint:
	cargo fmt --all --check
	cd tests/guests && cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy $(GUESTS) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --quiet
	@if command -v cargo-deny >/dev/null; then cargo deny check licenses bans sources; \
	else echo "cargo-deny is not installed: licences and sources were not checked (cargo install cargo-deny)"; fi

fmt:
	cargo fmt --all
	cd tests/guests && cargo fmt --all

prepare:
	@tests/prepare.sh
