#!/usr/bin/env bash
# usage: benchmarks/gpu.sh --carried FILE --out DIR [--device cpu] [--short]
#
# Runs the GPU tests, all GPU benchmarks and a short pretraining in at most eight minutes, on a machine without a network
# that has Python 3.12 with torch, torchaudio, transformers and pytest with xdist. FILE is the archive of
# benchmarks/carry.py. DIR gets csv files, log.txt with the end of each step's output, and summary.txt with its exit status
# and seconds. A step that fails or takes too long does not stop the following ones. --short runs the tests and a little of
# everything else at the same time, in at most 150 seconds: it shows what fails, but its times mean nothing. --device cpu
# rehearses everything with tiny sizes. PYTHON names another Python.
set -uo pipefail
device=cuda carried='' out='' short=''
while [ $# -gt 0 ]; do
    case $1 in
        --short) short=1 && shift && continue ;;
        --carried) carried=$(realpath "${2-}") ;;
        --out) out=$(realpath -m "${2-}") ;;
        --device) device=${2-} ;;
        *) break ;;
    esac
    shift 2 || break
done
if [ $# -gt 0 ] || [ ! -f "$carried" ] || [ -z "$out" ]; then
    sed -n '2s/^# //p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.." && mkdir -p "$out" || exit 2
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" -m tarfile -e "$carried" "$site" || exit 2
export PYTHONPATH=$site:$PWD OFA_TEST_DEVICE=$device PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore
rm -f "$out"/{summary,log}.txt

# step SECONDS NAME COMMAND...
step() {
    local limit=$1 name=$2 start=$SECONDS status
    shift 2
    timeout $((limit * patience)) "$@" > "$site/$name.log" 2>&1
    status=$?
    echo "$name: exit status $status after $((SECONDS - start)) s" | tee -a "$out/summary.txt"
    [ -z "$short" ] || [ $status = 0 ] || tail -n 40 "$site/$name.log"
}

if [ "$device" = cuda ]; then
    patience=1 jobs=8 size=(--size base --rounds 20)
    training=(--config ofa_base_librispeech --crops 8 --seconds 10 --rounds 5)
    step 10 machine nvidia-smi
else
    patience=10 jobs=1 size=(--size tiny --rounds 1)
    training=(--config ofa_tiny --crops 2 --seconds 1 --rounds 1)
fi
common=("${size[@]}" --device "$device" --dtypes bfloat16)
tests=(env OMP_NUM_THREADS=2 "$python" -m pytest -q -n "$jobs" --tb short -p no:cacheprovider tests/test_gpu.py)
extract=("$python" -m benchmarks.extract "${common[@]}" --out "$out/extract.csv")
pretrain=("$python" -m benchmarks.pretrain "${training[@]}" --device "$device" --out "$out/pretrain.csv")
if [ "$short" ]; then
    step 140 tests "${tests[@]}" &
    step 140 extract "${extract[@]}" --inputs single mixed --periods-ms 20 90 --peers transformers torchaudio --rounds 3 &
    step 140 pretrain "${pretrain[@]}" --rounds 3 &
    wait
else
    step 50 single "${extract[@]}" --inputs single --peers transformers torchaudio S3PRL
    step 60 batches "${extract[@]}" --inputs mixed equal --periods-ms 20 90 --peers transformers torchaudio
    step 120 tests "${tests[@]}"
    step 60 pretrain "${pretrain[@]}"
    step 30 cost_curve "$python" -m benchmarks.cost_curve "${common[@]}" --out "$out/cost_curve.csv"
    # Compiling takes minutes, so it comes last.
    step 160 compiled "${extract[@]}" --inputs mixed equal --periods-ms 20 90 --peers "transformers, compiled"
fi
for log in "$site"/*.log; do
    echo "== $(basename "$log" .log)" && tail -c 20000 "$log"
done > "$out/log.txt"
! grep -qv 'exit status 0 ' "$out/summary.txt"
