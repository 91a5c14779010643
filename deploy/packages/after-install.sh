# Installed is not enabled: say where the collector is, then `systemctl enable --now` the daemon.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    for unit in SERVICES; do
        # An agent that runs says goodbye with reason "upgrade" and comes back as the new version.
        if systemctl is-active --quiet "$unit"; then systemctl reload-or-restart "$unit"; fi
    done
fi
