"""What a job's cards say of it: stragglers, verdict, bridge, peers, causes, receipt."""
