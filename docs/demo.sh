#!/bin/sh
# What `make demo` runs: train, test, predict, recommend. LIGHTREC names the command to run.
set -e
: "${LIGHTREC:=lightrec}"
RUN=runs/demo
rm -rf "$RUN"

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }

say lightrec fit --config configs/models/sasrec-ml-100k.yaml
"$LIGHTREC" fit --config configs/models/sasrec-ml-100k.yaml --run_folder "$RUN"

say lightrec test --ckpt_path "$RUN/checkpoints/best.ckpt"
"$LIGHTREC" test --ckpt_path "$RUN/checkpoints/best.ckpt"

say lightrec predict --ckpt_path "$RUN/checkpoints/best.ckpt" --output "$RUN/predictions.parquet"
"$LIGHTREC" predict --ckpt_path "$RUN/checkpoints/best.ckpt" --output "$RUN/predictions.parquet"

say lightrec recommend "$RUN/checkpoints/best.ckpt" --user 7
"$LIGHTREC" recommend "$RUN/checkpoints/best.ckpt" --user 7
