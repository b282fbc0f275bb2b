#!/usr/bin/env bash
# Builds with CUDA, tests and measures on this machine's card; one command, from anywhere, without a network:
#
#     benchmarks/gpu.sh
#
# Every step has a limit of its own, so that one which hangs cannot eat the rest; a step that fails does not stop the
# others. Results are written as they come. Ends with a short table, and with 1 if any step failed, naming it.
#
#   PYTHON                interpreter with torch, triton, pytest, cmake, ninja and pybind11 (python3)
#   OUT                   folder of the results, at most 8 files (benchmarks/results/<card>)
#   PROJKERN_GPU_SECONDS  for all steps together (480)
#   CUDAARCHS             architectures to build for (this card's)
set -uo pipefail
set -m # background jobs are process groups of their own, to be ended with all of their workers
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
PYTHON=${PYTHON:-python3}
budget=${PROJKERN_GPU_SECONDS:-480}
SECONDS=0

card=$("$PYTHON" - <<'PY'
import re
import sys

try:
    import torch
except ImportError:
    sys.exit(f"{sys.executable} has no torch; PYTHON=... names one that does")
if not torch.cuda.is_available():
    sys.exit("torch sees no CUDA card here: nothing to build for, nothing to measure")
name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
major, minor = torch.cuda.get_device_capability()
print(name, f"{major}{minor}-real")
PY
) || exit 2
read -r card architecture <<<"$card"
out=${OUT:-benchmarks/results/$card}
mkdir -p "$out" || exit 2
export CUDAARCHS=${CUDAARCHS:-$architecture}
export PROJKERN_CUDA=1 PROJKERN_REQUIRE_NATIVE=1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
failed=()

say() { printf '[%3d s] %s\n' "$SECONDS" "$*" | tee -a "$out/summary.txt"; }

# step NAME SECONDS LOG COMMAND...: at most so long, and never beyond the budget.
step() {
    local name=$1 limit=$2 log=$3 left=$((budget - SECONDS)) status
    shift 3
    if ((left < 10)); then
        say "$name: no time left"
        failed+=("$name (no time left)")
        return 1
    fi
    ((limit > left)) && limit=$left
    echo "== $name: $*" >>"$log"
    timeout --kill-after=10 "$limit" "$@" >>"$log" 2>&1
    status=$?
    if ((status == 0)); then
        say "$name: done"
    elif ((status == 124 || status == 137)); then
        say "$name: stopped after $limit s, see $log"
        failed+=("$name (stopped after $limit s)")
    else
        say "$name: FAILED with $status, see $log"
        failed+=("$name")
    fi
    return "$status"
}

# What an earlier build did must not pass for what this one does.
rm -f "$out"/{summary.txt,run.log,tests.log,sanitizer.log,one_shot.json,projection.json,projection.png,step.json}
say "$card, CUDAARCHS=$CUDAARCHS, $("$PYTHON" --version), results in $out"

# Compiling torch's baselines takes minutes of processor time, so it begins now, beside the build and the tests.
"$PYTHON" -m benchmarks.warm --device cuda >"$out/warm.log" 2>&1 &
warm=$!
end_warm() {
    kill -- -"$warm" 2>/dev/null
    wait "$warm" 2>/dev/null
    [[ -f $out/warm.log ]] && tail -n 3 "$out/warm.log" >>"$out/run.log"
    rm -f "$out/warm.log"
}
trap end_warm EXIT

# In place: needs no installer, no network, and leaves the interpreter's environment as it is.
rm -f projkern/_cuda*.so
step build 200 "$out/run.log" "$PYTHON" setup.py build_ext --inplace || exit 1
step environment 40 "$out/run.log" "$PYTHON" -m projkern.env
step tests 120 "$out/tests.log" "$PYTHON" -m pytest -q -p no:cacheprovider tests -m "gpu and not slow"
# Tests that were all skipped have shown nothing.
if [[ ! ${failed[*]} =~ tests ]] && ! grep -qE '[0-9]+ passed' "$out/tests.log"; then
    say "tests: none of them ran"
    failed+=("tests (none ran)")
fi
step all-kernels 90 "$out/tests.log" "$PYTHON" -m pytest -q -p no:cacheprovider -k "cuda or triton or projected" \
    tests/kernels/test_projection.py tests/kernels/test_linear.py tests/kernels/test_triton.py

# Without torch's cache of memory every tensor is an allocation of its own, and what passes its end is seen.
sanitize=(-q -p no:cacheprovider tests/kernels/test_gpu.py -m gpu
    -k "(agrees_with_the_reference or 2-15 or 4-33 or 8-16) and cuda-")
for tool in memcheck racecheck; do
    if command -v compute-sanitizer >/dev/null; then
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" 45 "$out/sanitizer.log" \
            compute-sanitizer --tool "$tool" --error-exitcode 9 "$PYTHON" -m pytest "${sanitize[@]}"
    else
        say "$tool: left out, compute-sanitizer is not here"
    fi
done

end_warm # nothing else may run on the card from here on
trap - EXIT
step one-shot 30 "$out/run.log" "$PYTHON" -m benchmarks.one_shot "$out/one_shot.json" --device cuda
reserved=60 # for the training step and the picture
left=$((budget - SECONDS - reserved))
step table $((left > 60 ? left : 60)) "$out/run.log" "$PYTHON" -m benchmarks.compare "$out/projection.json" \
    --device cuda --cell-seconds 20 --seconds $((left > 70 ? left - 10 : 60))
step training-step 50 "$out/run.log" "$PYTHON" -m benchmarks.step "$out/step.json" --device cuda --rounds 10
step picture 20 "$out/run.log" "$PYTHON" -m benchmarks.plot "$out/projection.json" "$out/projection.png"

{
    tail -n 3 "$out/tests.log"
    grep -h "SUMMARY" "$out/sanitizer.log" 2>/dev/null
    "$PYTHON" -m benchmarks.compare "$out/projection.json" --table
    grep -hE "µs on the device|ms a step|P_.*\(M_1" "$out/run.log"
} 2>/dev/null | tee -a "$out/summary.txt"
if ((${#failed[@]})); then
    say "FAILED: $(printf '%s; ' "${failed[@]}")"
    exit 1
fi
say "all steps done"
