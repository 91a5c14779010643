#!/bin/sh
# Slurm Epilog: takes back what prolog.sh said. Epilog=/usr/share/flopwatch/slurm/epilog.sh
case ${SLURM_JOB_ID:-} in '' | *[!0-9]*) exit 0 ;; esac
directory=${FLOPWATCH_PROLOG_DIRECTORY:-/run/flopwatch-slurm}
/bin/rm -f "$directory/$SLURM_JOB_ID${SLURMD_NODENAME:+.$SLURMD_NODENAME}.json"
exit 0
