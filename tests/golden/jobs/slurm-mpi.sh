#!/bin/bash
#SBATCH --account=ab12
#SBATCH --cpus-per-task=1
#SBATCH --export=NONE
#SBATCH --job-name=CLASSIC.v2-run-historical
#SBATCH --kill-on-invalid-dep=no
#SBATCH --mem=194560M
#SBATCH --nodes=2
#SBATCH --ntasks=96
#SBATCH --open-mode=append
#SBATCH --output=/scratch/ab12/classic.run/jobs/run-historical/log/%j.out
#SBATCH --partition=normal
#SBATCH --requeue
#SBATCH --time=10:00:00
# run-historical of /scratch/ab12/classic.run
# Written by callmip-global. `submit` refuses a script edited by hand: change the experiment instead.
# Arguments (or environment, where the scheduler passes none): token, row of tasks.tsv, offset.
set -u
token=${CALLMIP_TOKEN:-${1-}}
row=${CALLMIP_INDEX:-${2-}}
offset=${CALLMIP_OFFSET:-${3-0}}
if [ -z "$row" ]; then row=$(( ${SLURM_ARRAY_TASK_ID} + offset )); fi
# The script starts with a clean environment (--export); what srun starts inherits this one.
export SLURM_EXPORT_ENV=ALL
# -P: no module in the folder that the job starts in takes the place of one of ours.
exec /home/me/env/bin/python -P -m callmip_global.workflow.task /scratch/ab12/classic.run run-historical "$row" "$token"
