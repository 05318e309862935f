#!/usr/bin/env bash
# usage: benchmarks/gpu.sh --carried FILE --out DIR [--device cpu]
#
# The GPU tests, all rows of a GPU and a short pretraining, in at most eight minutes, on a machine without a network that
# has Python 3.12 with torch, torchaudio, transformers and pytest. FILE is what benchmarks/carry.py has packed. DIR gets
# csv files, log.txt with the end of each step's output, and summary.txt with its exit status and seconds. A step that
# fails or takes too long does not stop those after it. --device cpu rehearses all of it with tiny sizes. PYTHON names
# another Python.
set -uo pipefail
device=cuda carried='' out=''
while [ $# -ge 2 ]; do
    case $1 in
        --carried) carried=$(realpath "$2") ;;
        --out) out=$(realpath -m "$2") ;;
        --device) device=$2 ;;
        *) break ;;
    esac
    shift 2
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
failed=0

# step SECONDS NAME COMMAND...
step() {
    local limit=$1 name=$2 start=$SECONDS status
    shift 2
    timeout $((limit * patience)) "$@" > "$site/output" 2>&1
    status=$?
    [ $status = 0 ] || failed=1
    { echo "== $name"; tail -c 20000 "$site/output"; } >> "$out/log.txt"
    echo "$name: exit status $status after $((SECONDS - start)) s" | tee -a "$out/summary.txt"
}

if [ "$device" = cuda ]; then
    patience=1 size=(--size base --rounds 20)
    training=(--config ofa_base_librispeech --crops 8 --seconds 10 --rounds 5)
    step 10 machine nvidia-smi
else
    patience=10 size=(--size tiny --rounds 1)
    training=(--config ofa_tiny --crops 2 --seconds 1 --rounds 1)
fi
common=("${size[@]}" --device "$device" --dtypes bfloat16)
step 50 single "$python" -m benchmarks.extract "${common[@]}" --inputs single \
    --peers transformers torchaudio S3PRL --out "$out/extract.csv"
step 150 batches "$python" -m benchmarks.extract "${common[@]}" --inputs mixed equal --periods-ms 20 90 \
    --peers transformers "transformers, compiled" torchaudio --out "$out/extract.csv"
step 120 tests "$python" -m pytest -q -p no:cacheprovider tests/test_gpu.py
step 110 pretrain "$python" -m benchmarks.pretrain "${training[@]}" --device "$device" --out "$out/pretrain.csv"
step 40 cost_curve "$python" -m benchmarks.cost_curve "${common[@]}" --out "$out/cost_curve.csv"
exit $failed
