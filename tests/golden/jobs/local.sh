#!/bin/bash
# run-historical of /scratch/ab12/classic.run
# Written by callmip-global. `submit` refuses a script edited by hand: change the experiment instead.
# Arguments (or environment, where the scheduler passes none): token, row of tasks.tsv, offset.
set -u
token=${CALLMIP_TOKEN:-${1-}}
row=${CALLMIP_INDEX:-${2-}}
offset=${CALLMIP_OFFSET:-${3-0}}
if [ -z "$row" ]; then row=$(( ${CALLMIP_ARRAY_INDEX} + offset )); fi
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1
# -P: no module in the folder that the job starts in takes the place of one of ours.
exec /home/me/env/bin/python -P -m callmip_global.workflow.task /scratch/ab12/classic.run run-historical "$row" "$token"
