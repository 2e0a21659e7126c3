#!/bin/bash
# Ends what start.sh started, and only that. Usage: stop.sh FOLDER
home=$(realpath "$1")
export SLURM_CONF=$home/slurm.conf
timeout 5 scancel --user="$(id -un)" 2>/dev/null
for _ in $(seq 60); do [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break; sleep 0.25; done   # slurmd is what kills jobs
for file in "$home/slurmd.pid" "$home/slurmctld.pid" "$home/munged.pid"; do
    [ -e "$file" ] && kill "$(cat "$file")" 2>/dev/null && timeout 10 tail --pid="$(cat "$file")" -f /dev/null
    rm -f "$file"
done
