#!/bin/sh
# The whole comparison, unattended: about 18 minutes on 2 quiet cores. See ../README.md for what it needs.
#   PEERS   folder with the environments lightrec, rectools, replay, recbole
#   DATA    folder with ml-1m/ml-1m.inter and beauty/beauty.inter, written by canonical.py
#   OUT     a new folder for JSON lines and tables.md
#   SMOKE   if set: 5 steps of everything and one round, only to see that it all runs
set -u
: "${PEERS:?}" "${DATA:?}" "${OUT:?}"
HERE=$(cd "$(dirname "$0")" && pwd)
mkdir "$OUT" || exit 1
PATIENCE=20
if [ -n "${SMOKE:-}" ]; then PATIENCE=0; fi

steps() { if [ -n "${SMOKE:-}" ]; then echo 5; else echo "$1"; fi; }
rounds() { if [ -n "${SMOKE:-}" ]; then echo 1; else echo "$1"; fi; }
compare() { "$PEERS/lightrec/bin/python" "$HERE/compare.py" "$@"; }

FEW=$(steps 11) MANY=$(steps 43) TINY=$(steps 403)
peer() { echo "$1=$PEERS/$2/bin/python:bench_$2.py --max-steps $FEW $3"; }
ours() { echo "$1=$PEERS/lightrec/bin/python:bench_$2.py --max-steps $MANY $3"; }
# what all runs of a data set share: FILE DATA MALLOC ROUNDS LENGTH EVALUATION JOBS...
measure() {
  file=$OUT/$1.jsonl data=$DATA/$2/$2.inter malloc=$3 rounds=$(rounds "$4") length=$5 evaluation=$6
  shift 6
  set -- "$@" -- --max-length "$length" --evaluation "$evaluation"
  echo "# $(date +%T) $file" >&2
  compare run --data "$data" --out "$file" --malloc "$malloc" --rounds "$rounds" --patience "$PATIENCE" "$@" >/dev/null
}

measure ml-1m-default ml-1m default 3 200 own \
  --job "$(peer rectools rectools '')" \
  --job "$(peer replay replay '')" \
  --job "$(peer replay-bucket replay '--variant bucket')" \
  --job "$(peer recbole@1 recbole '')" \
  --job "$(ours reference reference '')" \
  --job "$(ours lightrec lightrec '')" \
  --job "$(ours lightrec-attndrop@2 lightrec '--variant attndrop')"

measure ml-1m-tuned ml-1m tuned 2 200 own \
  --job "$(peer replay-bucket replay '--variant bucket')" \
  --job "$(peer rectools rectools '')" \
  --job "$(peer replay replay '')" \
  --job "$(ours reference reference '')" \
  --job "$(ours reference-bf16head-fastdrop reference '--variant bf16head,fastdrop')" \
  --job "$(ours lightrec lightrec '')" \
  --job "$(ours lightrec-bare lightrec '--variant bare')" \
  --job "$(ours lightrec-torchdrop lightrec '--variant torchdrop')" \
  --job "$(ours lightrec-attndrop lightrec '--variant attndrop')" \
  --job "$(ours lightrec-bf16head lightrec '--variant bf16head')"

# Steps of a few milliseconds, where all that a Trainer adds can be seen.
tiny="--max-steps $TINY --batch-size 4 --evaluation none"
measure tiny-steps ml-1m default 2 8 none \
  --job "$(ours lightrec lightrec "$tiny")" \
  --job "$(ours lightrec-bare lightrec "--variant bare $tiny")" \
  --job "$(ours reference-fastdrop reference "--variant fastdrop $tiny")"

# Beauty: the first round evaluates, the second only trains.
for evaluation in own none; do
  measure beauty-default beauty default 1 50 $evaluation \
    --job "$(peer rectools rectools '')" \
    --job "$(peer replay replay '')" \
    --job "$(peer replay-bucket replay '--variant bucket')" \
    --job "$(ours reference reference '')" \
    --job "$(ours lightrec lightrec '')"
done
measure beauty-tuned beauty tuned 1 50 none \
  --job "$(peer rectools rectools '')" \
  --job "$(peer replay replay '')" \
  --job "$(peer replay-bucket replay '--variant bucket')" \
  --job "$(ours lightrec lightrec '')" \
  --job "$(ours lightrec-bf16head lightrec '--variant bf16head')"

{
  echo "Measured $(date -u +%Y-%m-%d) on $(nproc) cores of $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1)."
  for file in "$OUT"/*.jsonl; do
    printf '\n## %s\n\n' "$(basename "$file" .jsonl)"
    compare table "$file"
  done
} | tee "$OUT/tables.md"
echo "# $(date +%T) done" >&2
