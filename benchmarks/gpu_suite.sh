#!/usr/bin/env bash
# Builds from the tree on a machine with a GPU, tests there, measures there. No network is needed:
# Python >= 3.10 with torch, transformers, numpy, pytest, hypothesis, pybind11 and scikit-build-core,
# and nvcc. Argument: the folder for results (default benchmarks/results). Measured within eight
# minutes: what does not fit any more is left out, and the result says so. The sanitizers have two.
set -euo pipefail
tested_within=180 measured_until=470 sanitized_until=590 # seconds
root=$(cd "$(dirname "$0")/.." && pwd)
results=${1:-$root/benchmarks/results}
mkdir -p "$results"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
echo "=== build for sm_$architecture (${SECONDS}s)"
cmake -S "$root" -B "$work/build" -DGLIMPROUTER_CUDA=ON \
  "-DGLIMPROUTER_CUDA_ARCHITECTURES=$architecture-real" \
  -DPython_EXECUTABLE="$(command -v python3)" \
  -Dpybind11_DIR="$(python3 -m pybind11 --cmakedir)" >/dev/null
cmake --build "$work/build" -j "$(nproc)" >"$work/build.log" 2>&1 || {
  tail -n 40 "$work/build.log"
  exit 1
}
cmake --install "$work/build" --component python --prefix "$work/site" >/dev/null
cp -r "$root/python/glimprouter/." "$work/site/glimprouter/"
export PYTHONPATH=$work/site
cd "$root"

echo "=== tests on the GPU (${SECONDS}s)"
status=0
workers=()
if python3 -c 'import xdist' 2>/dev/null; then workers=(-n 8); fi
GLIMPROUTER_TEST_DEVICE=cuda:0 timeout "$tested_within" python3 -m pytest -q -p no:cacheprovider \
  "${workers[@]}" -m "device or gpu" tests/gpu tests/device tests/router || status=$?

echo "=== measurements (${SECONDS}s)"
name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr ' /' '--' | tr A-Z a-z)
commit=${GLIMPROUTER_COMMIT:-$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)}
python3 benchmarks/gpu/suite.py --json "$results/gpu-$name-$commit.json" \
  --seconds $((measured_until - SECONDS)) || status=$?

if command -v compute-sanitizer >/dev/null; then
  # Files by name: what others import is slow to load here, and is no kernel of ours.
  small_cases=(tests/gpu tests/router/test_drafts.py tests/device/test_graph_tables.py
    tests/device/test_fused_small_cases.py)
  for tool in memcheck racecheck synccheck; do
    left=$((sanitized_until - SECONDS))
    echo "=== compute-sanitizer $tool (${SECONDS}s)"
    if ((left < 20)); then
      echo "left out: $left s are left"
      continue
    fi
    ended=0
    GLIMPROUTER_TEST_DEVICE=cuda:0 timeout "$left" \
      compute-sanitizer --tool "$tool" --error-exitcode 9 python3 -m pytest -q \
      -p no:cacheprovider "${small_cases[@]}" -k small_case >"$work/$tool.log" 2>&1 || ended=$?
    if ((ended == 124)); then
      echo "left out: not done within $left s"
    elif ((ended != 0)); then
      tail -n 30 "$work/$tool.log"
      status=1
    fi
  done
fi

echo "=== done in ${SECONDS}s, status $status"
exit "$status"
