#!/usr/bin/env bash
# What a GPU does, in eight minutes, on a bare machine with torch and transformers:
#
#   bash benchmarks/gpu_day.sh OUT            writes OUT/gpu.json and OUT/gpu.md, the table of docs/performance.md
#   bash benchmarks/gpu_day.sh OUT --tiny     the same steps with tiny models on a CPU, to try the script
#
# Weights are random and the data generated, so nothing is downloaded, except packages that are missing (pip, by pip's
# own variables: PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels). A step that fails does not stop the others. OUT keeps the logs.
set -uo pipefail
[ $# -ge 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd); python=${PYTHON:-python3}
mkdir -p "$1" && out=$(cd "$1" && pwd) && tiny=${2:-}
work=$out/work; study=$work/config/study.yaml; again=$work/again/config/study.yaml
export PYTHONPATH=$work/site:$root/src:$root TOKENIZERS_PARALLELISM=false CUBLAS_WORKSPACE_CONFIG=:4096:8
rm -rf "$work" "$out/steps.tsv"; mkdir -p "$work/site"
day=$root/benchmarks/gpu_day.py; device=cuda; [ -n "$tiny" ] && device=cpu
sizes="135M 360M"; ways=(--ways "obvious, bfloat16" "fvlm, bfloat16"); [ -n "$tiny" ] && sizes=smoke ways=(--ways "obvious, float32" "fvlm, float32")

step() {  # step NAME SECONDS COMMAND ...: run a command with a time limit; its log, status and seconds are kept
    local name=$1 limit=$2 begun=$SECONDS status; shift 2
    timeout --signal=INT --kill-after=20 "$limit" "$@" > "$out/$name.log" 2>&1; status=$?
    printf '%s\t%s\t%s\n' "$name" "$status" $((SECONDS - begun)) >> "$out/steps.tsv"
    echo "$name: status $status"; return $status
}

stopped() {  # train, stop after a few steps as a scheduler does, and resume
    "$python" -m fvlm train baseline --study "$again" & local training=$!
    local metrics=$work/again/config/results/runs/baseline/state/metrics.jsonl
    for _ in $(seq 600); do
        [ "$(wc -l 2>/dev/null < "$metrics" || echo 0)" -ge 2 ] && break
        kill -0 $training 2>/dev/null || break
        sleep 0.1
    done
    kill -TERM $training; wait $training; local status=$?
    echo "stopped with status $status"; [ $status = 75 ] && "$python" -m fvlm train baseline --study "$again"
}
export -f stopped; export python again work

step packages 120 "$python" "$day" packages "$work/site" "$root/requirements.lock"
step speed 200 "$python" "$root/benchmarks/train_step.py" --throughput --device $device --sizes $sizes "${ways[@]}" \
    --json "$out/speed.json"
step data 90 "$python" "$day" data "$work" $tiny || exit 1
step memory 60 "$python" -m fvlm calibrate --seconds 5 --study "$study"
step preflight 120 "$python" -m fvlm preflight --study "$study"
step train 90 "$python" -m fvlm train baseline --study "$study"
step resume 120 bash -c stopped
step evaluate 60 "$python" -m fvlm evaluate baseline --study "$study" --out "$out/evaluation.csv"
"$python" "$day" table "$work" "$out" && cat "$out/gpu.md"
