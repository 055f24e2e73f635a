#!/bin/bash
#SBATCH --account=ab1234
#SBATCH --cpus-per-task=8
#SBATCH --export=NONE
#SBATCH --job-name=CLASSIC.v2-regrid-worker
#SBATCH --kill-on-invalid-dep=no
#SBATCH --mem=12288M
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --open-mode=append
#SBATCH --output=/scratch/classic.run/dask/%j.out
#SBATCH --partition=shared
#SBATCH --requeue
#SBATCH --time=00:10:00
# A dask worker for CLASSIC.v2-regrid. Written by callmip-global into /scratch/classic.run/dask.
# It ends with the process that started it.
export OMP_NUM_THREADS=1
export OPENBLAS_NUM_THREADS=1
export MKL_NUM_THREADS=1
export NUMBA_NUM_THREADS=1
export BLOSC_NTHREADS=1
export ZARR_THREADING__MAX_WORKERS=6
export DASK_DISTRIBUTED__WORKER__MEMORY__TARGET=False
export DASK_DISTRIBUTED__WORKER__MEMORY__SPILL=False
export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False
export DASK_DISTRIBUTED__WORKER__HTTP__ROUTES='[]'
exec '/home/me/my env/bin/python' -P -m distributed.cli.dask_worker tls://10.0.0.1:40001 --name=dask-0123456789ab-0 --nthreads=6 --nworkers=1 --nanny --memory-limit=12884901888 --death-timeout=120 --no-dashboard --dashboard-address=127.0.0.1:0 --tls-ca-file=/scratch/classic.run/dask/private/ca.pem --tls-cert=/scratch/classic.run/dask/private/cert.pem --tls-key=/scratch/classic.run/dask/private/key.pem
