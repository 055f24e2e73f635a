#!/bin/bash
#PBS -A ab12
#PBS -N run-historical
#PBS -j oe
#PBS -l select=2:ncpus=48:mpiprocs=48:mem=194560mb
#PBS -l walltime=10:00:00
#PBS -o /scratch/ab12/classic.run/jobs/run-historical/log/
#PBS -q normal
#PBS -r y
# run-historical of /scratch/ab12/classic.run
# Written by callmip-global. `submit` refuses a script edited by hand: change the experiment instead.
# Arguments (or environment, where the scheduler passes none): token, row of tasks.tsv, offset.
set -u
token=${CALLMIP_TOKEN:-${1-}}
row=${CALLMIP_INDEX:-${2-}}
offset=${CALLMIP_OFFSET:-${3-0}}
if [ -z "$row" ]; then row=$(( ${PBS_ARRAY_INDEX} + offset )); fi
# -P: no module in the folder that the job starts in takes the place of one of ours.
exec /home/me/env/bin/python -P -m callmip_global.workflow.task /scratch/ab12/classic.run run-historical "$row" "$token"
