#!/bin/sh
# Slurm Epilog (or Prolog): probes the cards that a job has just left (or is about to get), as far as nobody is on
# them and their budget lets it. From the site's own epilog, after flopwatch's epilog.sh:
#     /usr/share/flopwatch/slurm/probe.sh epilog
# Off until /etc/flopwatch/probing.enabled is there. Bounded in seconds, and always ends with 0: a probe drains
# no node.
policy=${1:-epilog}
seconds=${FLOPWATCH_PROBE_SECONDS:-20}
flopwatch=${FLOPWATCH_COMMAND:-/usr/bin/flopwatch}
[ -e "${FLOPWATCH_PROBING_ENABLED:-/etc/flopwatch/probing.enabled}" ] || exit 0
case $seconds in '' | *[!0-9]*) seconds=20 ;; esac
PATH=/usr/sbin:/usr/bin:/sbin:/bin
devices=
case ${CUDA_VISIBLE_DEVICES:-} in GPU-*) devices=$CUDA_VISIBLE_DEVICES ;; esac
[ -n "$devices" ] || devices=${SLURM_JOB_GPUS:-}
case $devices in '' | *[!A-Za-z0-9,-]*) exit 0 ;; esac
export FLOPWATCH_SOCKET="${FLOPWATCH_SOCKET:-/run/flopwatch/jobs.sock}"
# The first end lets the probe go tidily; the second is for a driver that hangs.
timeout -k 5 "$seconds" "$flopwatch" probe --policy "$policy" --kind "${FLOPWATCH_PROBE_KINDS:-sdc}" \
	--device "$devices" --wall "$seconds" --save "${FLOPWATCH_DATA:-/var/lib/flopwatch}" \
	</dev/null >/dev/null 2>&1
exit 0
