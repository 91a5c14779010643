"""This project's own CUDA kernels, and what it takes to run them without torch.

    table ──► nvrtc ──► driver
    which     .cu to    context, memory, launches, events
    kernel    cubin

Importing these modules loads no library and no driver; the first call does.
"""
