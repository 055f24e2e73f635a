#!/bin/bash
#SBATCH --cpus-per-task=8
#SBATCH --export=NONE
#SBATCH --job-name=CLASSIC.v2-regrid
#SBATCH --kill-on-invalid-dep=no
#SBATCH --mem=32768M
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --open-mode=append
#SBATCH --output=/scratch/ab12/classic.run/jobs/regrid/log/%j.out
#SBATCH --requeue
#SBATCH --time=10:00:00
#SBATCH --constraint=rome
#SBATCH --mail-type=FAIL
# regrid of /scratch/ab12/classic.run
# Written by callmip-global. `submit` refuses a script edited by hand: change the experiment instead.
# Arguments (or environment, where the scheduler passes none): token, row of tasks.tsv, offset.
set -u
token=${CALLMIP_TOKEN:-${1-}}
row=${CALLMIP_INDEX:-${2-}}
offset=${CALLMIP_OFFSET:-${3-0}}
if [ -z "$row" ]; then row=$(( ${SLURM_ARRAY_TASK_ID} + offset )); fi
# The script starts with a clean environment (--export); what srun starts inherits this one.
export SLURM_EXPORT_ENV=ALL
export OMP_NUM_THREADS=8 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=8
source /etc/profile
module purge
# -P: no module in the folder that the job starts in takes the place of one of ours.
exec /home/me/env/bin/python -P -m callmip_global.workflow.task /scratch/ab12/classic.run regrid "$row" "$token"
