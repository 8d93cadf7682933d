import os

# Threads of two workers on two cores would wait for each other; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

SWITCHES = ("MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")


def pytest_report_header():
    """Says as which machine this one computes."""
    limits = "".join(f", {name}={os.environ[name]}" for name in SWITCHES if name in os.environ)
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return f"torch {torch.__version__}: {capability}, threads: {threads}{limits}"


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
