# The link first: what it leads to lies below a directory that only root may enter.
rm -rf /var/lib/flopwatch /var/lib/private/flopwatch /etc/flopwatch
