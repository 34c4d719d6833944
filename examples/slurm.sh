#!/bin/bash
# Trains on all GPUs of the nodes that Slurm gives, and goes on after the time limit, on the same command:
#
#     sbatch --nodes=2 examples/slurm.sh --config full --data.root /scratch/chaotic --out /scratch/runs/full
#
# Give --out: a job that starts again finds its run directory there (--resume auto). Two minutes before the time is up,
# Slurm tells this script. It passes that on, training finishes its step and writes last.pt, and the job is queued again.
# It was checked by shellcheck, not on a cluster yet.
#SBATCH --job-name=essl_fast
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail

case " $* " in
*" --out "* | *" --out="*) ;;
*)
    echo "slurm.sh: give --out DIR, so that a job that is started again finds its run directory" >&2
    exit 2
    ;;
esac

# One torchrun a node; they meet at the first node.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# shellcheck disable=SC2016 # each node has its own SLURM_PROCID
srun --kill-on-bad-exit=1 bash -c '
    exec torchrun --nnodes "$SLURM_NNODES" --node-rank "$SLURM_PROCID" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
        --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$0:29400" --max-restarts 3 \
        -m essl_fast.train "$@"' "$first" --resume auto "$@" &
training=$!

stopped=
trap 'stopped=yes; kill -TERM "$training"' TERM
code=0
wait "$training" || code=$?
if [ -n "$stopped" ]; then
    wait "$training" || code=$? # the first wait ended with the signal
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
