#!/bin/sh
# Slurm Prolog: tells the agent of this node which GPUs a job has. Prolog=/usr/share/flopwatch/slurm/prolog.sh,
# with PrologFlags=Alloc so that it runs when the job is allocated and not only at its first step.
# Never fails a job: whatever goes wrong, it exits 0.
directory=${FLOPWATCH_PROLOG_DIRECTORY:-/run/flopwatch-slurm}
case ${SLURM_JOB_ID:-} in '' | *[!0-9]*) exit 0 ;; esac

# A name is a name: what is none is left out instead of quoted.
clean() {
	case $1 in *[!A-Za-z0-9_.,@:+=-]*) ;; *) printf %s "$1" ;; esac
}

PATH=/usr/sbin:/usr/bin:/sbin:/bin
umask 022
mkdir -p "$directory" 2>/dev/null
uuids=
case ${CUDA_VISIBLE_DEVICES:-} in MIG-* | GPU-*) uuids=$(clean "$CUDA_VISIBLE_DEVICES") ;; esac
file=$directory/$SLURM_JOB_ID${SLURMD_NODENAME:+.$(clean "$SLURMD_NODENAME")}
{
	printf '{"job": "%s", "sluid": "%s", "node": "%s", ' \
		"$SLURM_JOB_ID" "$(clean "${SLURM_JOB_SLUID:-}")" "$(clean "${SLURMD_NODENAME:-}")"
	printf '"user": "%s", "account": "%s", "partition": "%s", "qos": "%s", "restarts": "%s", ' \
		"$(clean "${SLURM_JOB_USER:-}")" "$(clean "${SLURM_JOB_ACCOUNT:-}")" \
		"$(clean "${SLURM_JOB_PARTITION:-}")" "$(clean "${SLURM_JOB_QOS:-}")" \
		"$(clean "${SLURM_JOB_RESTART_COUNT:-0}")"
	printf '"gpus": "%s", "uuids": "%s"}\n' "$(clean "${SLURM_JOB_GPUS:-}")" "$uuids"
} >"$file.new" 2>/dev/null && mv -f "$file.new" "$file.json" 2>/dev/null
exit 0
