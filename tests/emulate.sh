#!/bin/sh
# Test the AVX-512 code of the core on a processor without AVX-512, in an emulator that has it:
# EMULATOR is the command that runs a program, such as "sde64 -skx --" (Intel SDE), or a script that
# boots Bochs 3 (configured with --enable-avx --enable-evex, model corei7_skylake_x) with it. The
# programs are static, so the emulator needs no libraries. QEMU and valgrind have no AVX-512.
set -eu
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
variable=CARGO_TARGET_$(echo "$host" | tr a-z- A-Z_)
export "${variable}_RUSTFLAGS=-C target-feature=+crt-static"
export "${variable}_RUNNER=${EMULATOR:?name the command that runs a program in the emulator}"
tests='cargo test --quiet --release --locked --target'

$tests "$host" --test lanes -- --nocapture instruction_sets | tee /dev/stderr |
    grep -q 'instruction sets: .*AVX-512' || {
    echo "FAILED: the emulator has no AVX-512"
    exit 1
}
# all that compares bits; the laws follow from it, and millions of draws take long here
$tests "$host" --test lanes --test teams --test values -- --test-threads=1 \
    --skip law_of --skip marginals_of --skip covariances --skip ties_leave --skip every_instruction
