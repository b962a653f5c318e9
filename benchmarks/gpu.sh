#!/usr/bin/env bash
# Everything that wants a GPU, in calls of under ten minutes:
#
#     bash benchmarks/gpu.sh DATA OUT        # exit code 75: call it again; 0: all is done; 1: a step failed, see OUT/log
#
# DATA is where CIFAR-10 is. What is finished is never run again: steps leave a mark in OUT/done, training goes on at its last
# epoch and evaluation at its last part. A step that a call has too little time left for waits for the next one.
#
#     LIMIT=540      seconds a call may take
#     DEVICE=cuda    where to compute
#     PYTHON=python
#     TINY=1         digits, an epoch and a few images: to see that all of it works
set -euo pipefail
[ $# = 2 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 2; }
DATA=$1 OUT=$2 LIMIT=${LIMIT:-540} DEVICE=${DEVICE:-cuda} PYTHON=${PYTHON:-python} TINY=${TINY:-}
HERE=$(cd "$(dirname "$0")" && pwd)
AGAIN=75
mkdir -p "$OUT/done" "$OUT/log" "$OUT/checkpoints"

# step NAME SECONDS COMMAND...: run it once, if the call has that many seconds left
step() {
  local name=$1 least=$2 left=$((LIMIT - SECONDS)) code=0
  shift 2
  [ -e "$OUT/done/$name" ] && return
  if [ "$left" -lt "$least" ]; then echo "next: $name. Call again"; exit $AGAIN; fi
  echo "$name: $*"
  timeout --signal=INT --kill-after=15 "$left" "$@" >>"$OUT/log/$name.txt" 2>&1 || code=$?
  case $code in
    0) touch "$OUT/done/$name" ;;
    124 | 130 | 137) echo "$name goes on. Call again"; exit $AGAIN ;;
    *) tail -n 5 "$OUT/log/$name.txt" >&2; echo "$name failed ($code): $OUT/log/$name.txt" >&2; exit 1 ;;
  esac
}

robench() { # robench NAME SECONDS COMMAND ARGUMENTS...
  local name=$1 least=$2 command=$3
  shift 3
  step "$name" "$least" "$PYTHON" -m robench "$command" "$@" \
    --device "$DEVICE" --data "$DATA" --checkpoints "$OUT/checkpoints"
}

train() { # train NAME RECIPE ARGUMENTS...
  local name=$1 recipe=$2
  shift 2
  robench "train-$name" 60 train "$recipe" --out "$OUT/checkpoints/$name" "$@"
}

attack() { # attack NAME ARGUMENTS...
  local name=$1
  shift
  robench "attack-$name" 60 evaluate "$@" --results "$OUT/results"
}

measure() { # measure NAME SECONDS PART...
  local name=$1 least=$2
  shift 2
  step "ratios-$name" "$least" "$PYTHON" "$HERE/evaluation.py" --data "$DATA" --checkpoints "$OUT/checkpoints" \
    --device "$DEVICE" "${BENCH[@]}" --only "$@" --out "$OUT/ratios-$name.json"
}

training() { # training NAME SECONDS PART...
  local name=$1 least=$2 parts=()
  shift 2
  for part in "$@"; do parts+=(--only "$part"); done
  step "ratios-$name" "$least" "$PYTHON" "$HERE/training.py" --data "$DATA" --device "$DEVICE" "${STEP[@]}" "${parts[@]}" \
    --out "$OUT/ratios-$name.json"
}

if [ -n "$TINY" ]; then
  STEP=(--dataset digits --width 2 --batch 4 --repeats 1) VIEWS=()
  BENCH=(--dataset digits --width 2 --count 16 --steps 2 --queries 3 --repeats 1 --pgd 8)
  SET=(--set stage.0.epochs=1 --set model=cnn@width=2 --set validation=1200)
  COUNT=12 BUDGET=@steps=2,queries=3 PAIR=(pgd-at-digits trades-digits) ROCL=rocl-digits HEADS=(robust-linear-digits finetune-at-digits)
  TRACE=(rocl-digits "${SET[@]}") TABLE=(--attack fgsm) LEAST=1
else
  STEP=(--width 64 --batch 128 --repeats 5) VIEWS=(augment) # digits are grey, and PIL's views are of colours
  BENCH=(--width 64 --epochs 3 --count 1000 --precision float32 float16 bfloat16)
  SET=() COUNT=1000 BUDGET= PAIR=(pgd-at-fast trades-fast) ROCL=rocl-200 HEADS=(robust-linear finetune-at)
  TRACE=(rocl-2020) TABLE=(--suite rocl-table1) LEAST=300
fi

step ceilings $((LEAST / 5)) "$PYTHON" "$HERE/ceilings.py" --device "$DEVICE" --out "$OUT/ceilings.json"
for recipe in "${PAIR[@]}"; do train "$recipe" "$recipe" "${SET[@]}"; done
attack pgd "${PAIR[@]}" --attack pgd-50 --attack pgd-20 --count $COUNT
attack autoattack "${PAIR[@]}" --attack "autoattack$BUDGET" --count $COUNT
attack bracket "${PAIR[@]}" --attack "autoattack-bracket$BUDGET" --count $COUNT
for precision in float16 bfloat16; do
  attack $precision "${PAIR[@]}" --attack pgd-20 --attack "autoattack$BUDGET" --precision $precision --count $COUNT
done
measure pgd "$LEAST" pgd levers
measure autoattack "$LEAST" autoattack
measure bracket "$LEAST" bracket
training steps "$LEAST" steps levers
training input "$LEAST" pipeline wall "${VIEWS[@]}"

# the loss of the first eleven epochs of RoCL's released code, whose rate falls over a thousand, beside the log of that code
TRACED=$OUT/checkpoints/trace/metrics.jsonl
if [ "$(cat "$TRACED" 2>/dev/null | wc -l)" -ge 11 ]; then touch "$OUT/done/train-trace"; else train trace "${TRACE[@]}"; fi
step loss-trace 1 "$PYTHON" "$HERE/loss_trace.py" "$OUT/checkpoints/trace" --report --out "$OUT/loss-trace.json"
tail -n 1 "$OUT/log/loss-trace.txt" 2>/dev/null || true

train rocl "$ROCL" "${SET[@]}"
for head in "${HEADS[@]}"; do train "$head" "$head" --encoder "$OUT/checkpoints/rocl" "${SET[@]}"; done
attack rocl rocl "${HEADS[@]}" "${TABLE[@]}" --count $COUNT
step report 1 "$PYTHON" -m robench report --results "$OUT/results" --format markdown --out "$OUT/tables.md"
echo "all done: $OUT"
