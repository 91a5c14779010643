#!/bin/sh
# Slurm EpilogSlurmctld: writes one line of flopwatch into the job's AdminComment when it has ended.
# EpilogSlurmctld=/usr/share/flopwatch/slurm/receipt.sh, on the controller, as SlurmUser. FLOPWATCH_API names
# the collector. Never fails or holds an epilog: the work goes on behind it, for 3 minutes at the most.
case ${SLURM_JOB_ID:-} in '' | *[!0-9]*) exit 0 ;; esac
export PATH="${FLOPWATCH_PATH:-/usr/local/bin:/usr/bin:/bin:/opt/flopwatch/bin}"

write() {
	# The last rows of a job arrive some ten seconds after its end.
	sleep "${FLOPWATCH_RECEIPT_DELAY:-30}"
	line=$(timeout 60 flopwatch job "$SLURM_JOB_ID" --receipt 2>/dev/null) || return 0
	test -n "$line" || return 0
	# A job that has ended is changed in the accounting; without one, in the controller while it remembers it.
	timeout 30 sacctmgr -i modify job where "jobid=$SLURM_JOB_ID" set "AdminComment=$line" ||
		timeout 30 scontrol update "JobId=$SLURM_JOB_ID" "AdminComment=$line"
}

(write) >/dev/null 2>&1 </dev/null &
exit 0
