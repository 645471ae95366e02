#!/bin/sh
# Builds the guest: examples/vibration-watch/build.sh OUTDIR writes OUTDIR/vibration_watch.wasm.
# The same sources and the same compiler give the same bytes, wherever the repository lies.
set -eu

if [ $# -ne 1 ]; then
    echo "usage: $0 OUTDIR" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)/vibration_watch.wasm

clang=${CLANG:-clang}
missing=
command -v "$clang" >/dev/null 2>&1 || missing="$missing clang"
command -v wasm-ld >/dev/null 2>&1 || missing="$missing lld"
[ -f /usr/lib/wasm32-wasi/libc.a ] || missing="$missing wasi-libc"
if command -v "$clang" >/dev/null 2>&1; then
    major=$("$clang" -dumpversion | cut -d. -f1)
    builtins=$("$clang" --target=wasm32-wasi -print-libgcc-file-name)
    [ -f "$builtins" ] || missing="$missing libclang-rt-$major-dev-wasm32"
else
    missing="$missing libclang-rt-14-dev-wasm32"
fi
if [ -n "$missing" ]; then
    echo "error: to build the guest, install:" >&2
    echo "  apt-get install --no-install-recommends$missing" >&2
    exit 1
fi

# The stack lies below the data, so that an overflow traps instead of overwriting them. Names stay in, for backtraces.
cd "$here/src"
"$clang" --target=wasm32-wasi --sysroot=/usr -std=gnu11 -O2 -Wall -Wextra -Werror \
    -Wl,--stack-first -Wl,-z,stack-size=65536 -Wl,--strip-debug -Wl,--gc-sections \
    -o "$out.part" vibration_watch.c -lm
mv "$out.part" "$out"
echo "$out"
