#!/bin/sh
# This interpreter and its children hear nothing of the host's Python, nor of the working directory.
unset PYTHONHOME PYTHONPATH PYTHONPLATLIBDIR PYTHONSTARTUP PYTHONUSERBASE
export PYTHONNOUSERSITE=1 PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
exec /opt/flopwatch/bin/python3 -I -m MODULE "$@"
