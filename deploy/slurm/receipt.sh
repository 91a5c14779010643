#!/bin/sh
# Slurm EpilogSlurmctld: writes one line of flopwatch into the job's AdminComment when it has ended.
# EpilogSlurmctld=/usr/share/flopwatch/slurm/receipt.sh, on the controller, as SlurmUser. slurmctld hands its
# scripts no environment of its own: what is needed stands in /etc/flopwatch/receipt.env, one NAME=value a line,
# FLOPWATCH_API (the collector's URL) first of all. Never fails or holds an epilog: the work goes on behind it,
# for 3 minutes at the most.
case ${SLURM_JOB_ID:-} in '' | *[!0-9]*) exit 0 ;; esac
settings=${FLOPWATCH_RECEIPT_ENV:-/etc/flopwatch/receipt.env}
if [ -r "$settings" ]; then
	set -a
	. "$settings"
	set +a
fi
export PATH="${FLOPWATCH_PATH:-/usr/local/bin:/usr/bin:/bin:/opt/flopwatch/bin}"
if [ "${1:-}" != behind ]; then
	# When a script ends slurmctld kills its process group: the work goes on in a session of its own. The answer
	# comes when that one lets go of its output, so it has its session by then.
	_=$(setsid --fork "$0" behind 2>/dev/null </dev/null)
	exit 0
fi
exec >/dev/null 2>&1
# The last rows of a job arrive some ten seconds after its end.
sleep "${FLOPWATCH_RECEIPT_DELAY:-30}"
line=$(timeout 60 flopwatch job "$SLURM_JOB_ID" --receipt) && [ -n "$line" ] || exit 0
# Of a job that has ended the accounting (slurmdbd) alone takes a comment: scontrol refuses.
timeout 30 sacctmgr -i modify job where "jobid=$SLURM_JOB_ID" set "AdminComment=$line" ||
	timeout 30 logger -t flopwatch "job $SLURM_JOB_ID: $line"
exit 0
