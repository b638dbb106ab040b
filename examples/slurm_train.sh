#!/bin/bash
# Train on several machines of a SLURM cluster. Everything after the script goes to `astrozoo train`:
#
#   sbatch --nodes=4 examples/slurm_train.sh cube_unet_large --data climate.nc --config config.yaml --out runs/large
#
# Give --out a folder that all machines see. The same command goes on from the last checkpoint in it, and so does SLURM
# when it starts the job again.

#SBATCH --job-name=astrozoo
#SBATCH --output=%x-%j.log
# After a restart, go on in the same log.
#SBATCH --open-mode=append
#SBATCH --nodes=2
# One launcher on each machine, which starts a process for each of its GPUs.
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
# Ask for a checkpoint two minutes before the time is up: SIGTERM lets training finish its step, save and stop.
#SBATCH --signal=TERM@120
# Start again after a machine has failed.
#SBATCH --requeue

set -euo pipefail

if [[ $# -eq 0 ]]; then
    echo "usage: sbatch $0 NAME --data FILE... --out FOLDER [...]; see: astrozoo train --help" >&2
    exit 2
fi

# Put here what makes `torchrun` and `astrozoo` known on the machines, such as:
#   module load cuda
#   source "$HOME/astrozoo/.venv/bin/activate"

# The launchers meet at the first machine. The port depends on the job, so that jobs that share a machine do not meet.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
port=$((20000 + SLURM_JOB_ID % 20000))

# Threads of a process for what runs on the CPU; the launchers would set 1.
processes=${SLURM_GPUS_ON_NODE:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((SLURM_CPUS_PER_TASK + processes - 1) / processes))}

# --kill-on-bad-exit: a launcher that fails ends the others. --max-restarts=0: training goes on by a new start of the
# job, from the last checkpoint, never by a launcher behind its back.
srun --kill-on-bad-exit=1 torchrun \
    --nnodes="$SLURM_NNODES" \
    --nproc-per-node="$processes" \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$first:$port" \
    --rdzv-id="$SLURM_JOB_ID" \
    --max-restarts=0 \
    -m astrozoo train "$@"
