if [ -d /run/systemd/system ]; then
    systemctl disable --now UNITS || true
fi
