# What developers type; `just` lists it. Each is one command that works without just as well.

[private]
default:
    @just --list

# Everything that has to hold before a change goes in
ci:
    .ci/run

# Quick checks while working
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# All tests, or those whose names contain FILTER
test *FILTER:
    cargo test --workspace {{FILTER}}

# End-to-end tests whose names contain FILTER: model::basic, faults, bad_input…
e2e *FILTER:
    cargo test -p distest-tests --test e2e -- {{FILTER}}

# Cost per test: raw loop, cargo distest, cargo nextest, paired
bench-many *ARGS:
    cargo run --release -p distest-tests --bin bench-many -- {{ARGS}}

# Wall time of real projects under cargo test, cargo distest, cargo nextest, paired
bench-crates *ARGS:
    cargo run --release -p distest-tests --bin bench-crates -- {{ARGS}}

# Compositions of batches from tests that harm their neighbours
batch-trap *ARGS:
    cargo run --release -p distest-tests --bin batch-trap -- {{ARGS}}

# The list of a workspace of 200 packages equals cargo nextest's
generated-workspace *ARGS:
    cargo run --release -p distest-tests --bin generated-workspace -- {{ARGS}}

# Real projects: same verdicts as cargo test, embedded and on two workers
public-crates *ARGS:
    cargo run --release -p distest-tests --bin public-crates -- {{ARGS}}

# 1,000 sleeping tests on 25 workers: wall time against the bound
bench-sleepers *ARGS:
    cargo run --release -p distest-tests --bin bench-sleepers -- {{ARGS}}

# Time to the first test through ssh, by step
bench-ssh *ARGS:
    cargo run --release -p distest-tests --bin bench-ssh -- {{ARGS}}

# 10,000 connections that prove nothing, beside a client that works
half-open *ARGS:
    cargo run --release -p distest-tests --bin half-open -- {{ARGS}}

# Simulated runs: as many seeds as that, or FROM..TO
simulate SEEDS="100000":
    DISTEST_SIM_SEEDS={{SEEDS}} cargo test --release -p cargo-distest --lib sim::tests::seeds -- --nocapture
