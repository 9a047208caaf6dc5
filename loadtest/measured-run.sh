#!/usr/bin/env bash
# The run of docs/load-testing.md against the server of `make serve`, from the sets to the report.
#   METASTABLE_DATA=... loadtest/measured-run.sh [URL of the server] [FOLDER of the report]
# Sets that are there already are kept; an unfinished one goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
url=${1:-http://127.0.0.1:8080}
out=${2:-runs/loadtest}
sets=${SETS:-runs/sets}
loadtest=(.venv/bin/metastable loadtest)
images=(--n 100 --skip 7000 --seed 0)

test -e "$sets/clean.npz" || "${loadtest[@]}" make "${images[@]}" --out "$sets/clean.npz"
test -e "$sets/pgd.npz" || "${loadtest[@]}" make "${images[@]}" --out "$sets/pgd.npz" \
    --attack transfer --eps 8/255 --step 2/255 --steps 20 --batch 25
test -e "$sets/bpda.npz" || "${loadtest[@]}" make "${images[@]}" --out "$sets/bpda.npz" \
    --attack bpda-eot --setting balanced --eps 8/255 --step 2/255 --steps 20 --samples 4 --check 32 --batch 10

"${loadtest[@]}" run --url "$url" --arm none --arm fast --arm balanced \
    --images clean,pgd,bpda --sets "$sets" --scenario poisson --rate 3 --rounds 3 --warmup 5 \
    --objective 1000 --timeout 30 --seed 0 --out "$out"
