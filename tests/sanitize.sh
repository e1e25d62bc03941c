#!/bin/sh
# Run the core under checkers of memory: Miri and AddressSanitizer where a nightly toolchain has
# them, and valgrind always. The unsafe code that they are for is in rust/ltde-core/src/simd.
# Exits with 1 if a check failed; one that is left out for want of a tool is no failure, but for
# valgrind.
set -u
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
samplers='--test samplers --test lanes'
# without what takes millions of draws in the lanes: `make test` has it
quick='--skip law_of --skip marginals_of --skip covariances --skip ties_leave'
failed=0

# check NAME COMMAND...: say what runs, run it, and remember whether it failed
check() {
    name=$1
    shift
    echo "== $name"
    if ! "$@"; then
        echo "FAILED: $name"
        failed=1
    fi
}

# Miri interprets what rustc made, hundreds of times slower: one case of each property, and only
# the portable code. Isolation is off for the environment variable and for proptest's files.
miri() {
    if ! cargo +nightly miri --version >/dev/null 2>&1; then
        echo "Miri left out: no cargo +nightly miri (rustup +nightly component add miri rust-src)"
        return
    fi
    check 'Miri, portable' env LTDE_INSTRUCTION_SET=portable PROPTEST_CASES=1 \
        MIRIFLAGS=-Zmiri-disable-isolation \
        cargo +nightly miri test --locked --test samplers --test graph
}

# AddressSanitizer: the portable code, and the widest vectors of this processor.
address_sanitizer() {
    if ! cargo +nightly --version >/dev/null 2>&1; then
        echo "AddressSanitizer left out: no nightly toolchain (rustup toolchain install nightly)"
        return
    fi
    for set in portable ''; do
        check "AddressSanitizer, ${set:-widest} instruction set" \
            env LTDE_INSTRUCTION_SET=$set PROPTEST_CASES=20 RUSTFLAGS=-Zsanitizer=address \
            cargo +nightly test --quiet --no-fail-fast --locked --target "$host" \
            $samplers --test energy --test graph -- $quick
    done
}

# Memcheck, on what users run: release mode. Valgrind has no AVX-512 and hides it from the
# program, so that code is left to AddressSanitizer; AVX2, FMA and BMI it knows.
memcheck() {
    if ! command -v valgrind >/dev/null; then
        echo "FAILED: valgrind is not installed (apt-get install valgrind)"
        failed=1
        return
    fi
    runner=CARGO_TARGET_$(echo "$host" | tr a-z- A-Z_)_RUNNER
    for set in portable avx2; do
        export LTDE_INSTRUCTION_SET=$set PROPTEST_CASES=20
        export "$runner=valgrind -q --error-exitcode=1"
        check "valgrind, samplers, $set" \
            cargo test --quiet --no-fail-fast --release --locked $samplers -- $quick
        for agents_per_state in 1 10 100 10000; do
            check "valgrind, steps with $agents_per_state agents a state, $set" \
                cargo run --quiet --release --locked --example rollouts -- $agents_per_state 3
        done
    done
}

miri
address_sanitizer
memcheck
exit $failed
