#!/usr/bin/env bash
# Everything that needs a GPU: its tests, then `fastdllm bench` at the shapes of the published models.
# Writes a table and a JSON file for each part into a folder (about ten minutes on an H100).
#   scripts/gpu_bench.sh [FOLDER] [PART ...]     parts: tests llada-8b dream-7b int8 float8 long plain profile
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=src PYTHONUNBUFFERED=1
python=${PYTHON:-python3} out=${1:-build/gpu}
shift || true
parts=(${*:-tests llada-8b dream-7b int8 float8 long plain profile})
mkdir -p "$out"

bench() { # name, then the options of fastdllm bench
    local name=$1
    shift
    echo "== $name: fastdllm bench $*"
    "$python" -m fastdllm bench "$@" --device cuda --json "$out/$name.json" 2>"$out/$name.log" | tee "$out/$name.txt"
}

for part in "${parts[@]}"; do
    case $part in
        tests) "$python" -m pytest -q tests/test_gpu.py 2>&1 | tail -15 ;;
        llada-8b | dream-7b) bench "$part" --shape "$part" --runs 3 --compare compile=false compile=true ;;
        int8 | float8) bench "$part" --shape llada-8b --compile --no-memory --runs 2 --compare dtype=bfloat16 "dtype=$part" ;;
        long) bench long --shape llada-8b --compile --prompt-length 900 --gen-length 1024 --tokens-per-pass 3 --runs 2 \
            --compare cache=dual cache=sliding ;;
        plain) bench plain --shape llada-8b --cache none --prompt-length 900 --gen-length 1024 --passes 20 --runs 1 ;;
        profile) bench profile --shape llada-8b --compile --profile --no-memory --runs 1 --rounds 3 ;;
        *) echo "no part is called $part" >&2; exit 2 ;;
    esac
done
