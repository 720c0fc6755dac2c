#!/bin/bash
# A recipe on the GPUs of several machines under Slurm, gone on with where an earlier job of the same name stopped.
#
#   sbatch --nodes 2 docs/launch/slurm.sh paper/qwen25_7b_lco_kld --set optim.lr=2e-5
#
# OUT is a folder that all machines see: every rank writes its part of a sharded checkpoint there.
#SBATCH --job-name=cvxrl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
# Ten minutes before the end, as Ctrl-C: the step is finished, its state is saved, and the job ends with 130.
#SBATCH --signal=INT@600
set -euo pipefail

OUT=${OUT:-$SLURM_SUBMIT_DIR/outputs}
PYTHON=${PYTHON:-python}
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# The policy and the data come from the Hub's cache, which one process has to fill: compute nodes often have no network.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}

srun "$PYTHON" -m cvxrl.launch \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv-backend c10d --rdzv-endpoint "$FIRST:${PORT:-29500}" --rdzv-id "$SLURM_JOB_ID" \
    train "$@" --resume --out "$OUT"
