import os

# Kernels inherit these: one thread beside two workers, and no progress bars.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CI", "true")
