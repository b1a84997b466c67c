#!/bin/sh
# Builds the core for AArch64 and runs its native tests under QEMU, once for each kind of CPU that dispatch tells apart.
#
#   apt-get install g++-aarch64-linux-gnu qemu-user-static     (Debian, Ubuntu)
#   native/tests/arm.sh [BUILD_DIRECTORY]                      (default: build/arm)
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$root/build/arm}

for tool in aarch64-linux-gnu-g++ qemu-aarch64-static cmake ninja; do
  if ! command -v "$tool" > /dev/null; then
    echo "arm.sh: $tool is missing (apt-get install g++-aarch64-linux-gnu qemu-user-static cmake ninja-build)" >&2
    exit 1
  fi
done

cmake -S "$root" -B "$build" -G Ninja -DHERDER_TESTS=ON -DHERDER_WERROR=ON \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
  "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64-static;-L;/usr/aarch64-linux-gnu"
cmake --build "$build"

# Armv8.0 (Raspberry Pi 3), Armv8.2 with dot products (Graviton 2), and everything that QEMU knows (i8mm, bf16).
for cpu in cortex-a53 neoverse-n1 max; do
  echo "== $cpu"
  QEMU_CPU=$cpu ctest --test-dir "$build" --output-on-failure
done
