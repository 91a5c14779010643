"""What schedulers say of their clusters: asked once per cluster by the collector, told as rosters.

One scheduler per group of files: how it is asked (I/O), how its answers are laid out, what they mean (pure).
"""
