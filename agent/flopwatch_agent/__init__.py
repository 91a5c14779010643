"""The agent of a node. What gRPC reads from the environment is said here, before anything imports it.

We never fork. And gRPC's newer event engine keeps up to 16 threads, each awake eight times a second after
anything happened: 24 wake-ups a second on 2 cores, 7 without it (gRPC 1.85, one batch in 10 s).
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client")
