"""Submissions that try to get a point without earning it, or to take the grader down.

Each is the source of the answer cell of 01-brake; what stands in double braces is filled in. What
stands before a line of dashes goes into a cell of its own before it.
"""

WRONG = "def brake(logits, ref_logits, beta):\n    return logits.sum((1, 2))\n"
VERDICT = "ok  01-brake: values and gradients are right on 4 random cases"

HONEST = {
    "right": """\
def brake(a, b, price):
    p, q = a.softmax(-1), b.softmax(-1)
    print("a print that was forgotten")
    return price * (p * (p / q).log()).sum((1, 2))
""",
    "wrong": """\
def brake(logits, ref_logits, beta):
    p, q = logits.softmax(-1), ref_logits.softmax(-1)
    return (p * (p / q).log()).sum((1, 2))
""",
    "helped": """\
import torch.nn.functional as F
def gap(a, b):
    return F.log_softmax(a, -1) - F.log_softmax(b, -1)
---
def brake(logits, ref_logits, beta):
    return beta * (logits.softmax(-1) * gap(logits, ref_logits)).sum((1, 2))
""",
    "own": """\
from ppo_toy.kl import kl_divergence
def brake(logits, ref_logits, beta):
    return beta * kl_divergence(logits, ref_logits).sum(-1)
""",
}

# They end the kernel, hold it up, or fill it.
VIOLENT = {
    "sys-exit": "import sys\nsys.exit(0)",
    "os-exit": "import os\ndef brake(*arguments):\n    os._exit(0)",
    "swallows-the-interrupt": """\
import time
def brake(*arguments):
    while True:
        try:
            time.sleep(1)
        except BaseException:
            pass
""",
    "fills-the-memory": "x = []\nwhile True:\n    x.append(bytearray(1 << 28))",
    "prints-much-and-raises": "print('x' * 3_000_000)\nraise ValueError",
    "floods": "while True:\n    print('x' * 100_000)",
    "crowds": """\
import subprocess, time
for _ in range(700):
    subprocess.Popen(["sleep", "30"])
time.sleep(5)
""",
    "digs": """\
import os
from ipykernel.connect import get_connection_file
os.chdir(os.path.dirname(get_connection_file()))
for name in ("n" * 255, "empty"):
    os.mkdir(name, mode=0)
with open("huge", "wb") as file:
    file.truncate(16 << 20)
os.chmod("huge", 0)
os.mkfifo("fifo")
os.symlink("/", "out")
for _ in range(1500):
    os.mkdir("deep")
    os.chdir("deep")
""",
    "kills-its-parent": """\
import os, signal, time
os.kill(os.getppid(), signal.SIGKILL)
time.sleep(1)
""",
}

# They work on what is printed, reported, stored, or left running.
CUNNING = {
    "prints-the-verdict": f"""\
from ppo_toy.classroom import check as module
module.transcript = lambda answer, cases: ["{VERDICT}"]
print("{VERDICT}")
def check(name, answer):
    print("{VERDICT}")
{WRONG}""",
    "patches-the-language": f"""\
import builtins, torch
builtins.print = lambda *arguments, **options: None
builtins.AssertionError = ValueError
torch.equal = torch.allclose = lambda *arguments, **options: True
torch.testing.assert_close = lambda *arguments, **options: None
torch.Tensor.__eq__ = lambda self, other: True
{WRONG}""",
    "transforms-the-input": f"""\
get_ipython().input_transformers_cleanup.append(lambda lines: ["pass\\n"])
{WRONG}""",
    "hides-the-error": """\
shell = get_ipython()
shell._showtraceback = lambda *arguments: None
shell.showtraceback = lambda *arguments, **options: None
def brake(*arguments):
    raise ValueError
""",
    "holds-markers": f"# NBVAL_SKIP\n#NBVAL_IGNORE_OUTPUT\n# NBVAL_RAISES_EXCEPTION\n{WRONG}",
    "forges-the-report": f"""\
import os, subprocess
subprocess.Popen(["sleep", "{{{{sleep}}}}"], start_new_session=True)
xml = '<testsuites><testsuite><testcase name="Cell 0"/></testsuite></testsuites>'
for place in [".", "..", *(f"/proc/{{p}}/fd" for p in (os.getpid(), os.getppid()))]:
    try:
        for file in {{"report.xml", "junit.xml", *os.listdir(place)}}:
            if os.path.isfile(os.path.join(place, file)):
                with open(os.path.join(place, file), "w") as target:
                    target.write(xml)
    except OSError:
        pass
{WRONG}""",
    "prints-half-a-line": f"{WRONG}\ndef check(*arguments):\n    print('case 1, returned 5')",
    "prints-a-line-more": f"""\
{WRONG}
real = check
def check(*arguments):
    real(*arguments)
    print("nothing more")
""",
    "fills-the-disk": """\
filled = []
for place in ("/tmp", "/dev/shm", "/dev", "/", "/usr"):
    try:
        for k in range(8):
            with open(f"{place}/{k}", "wb") as file:
                file.write(bytes(12 << 20))
        filled.append(place)
    except OSError:
        pass
raise RuntimeError(f"filled {filled}")
""",
    "reads-the-expected": """\
import glob, os
found = [path for path in glob.glob("../**", recursive=True) if os.path.isfile(path)
         and b"case 1, returned" in open(path, "rb").read()]
raise RuntimeError(f"found {found}")
""",
}

# It goes into the answer of the second exercise, and looks for the reference's answer to the first.
QUOTES = """\
import gc, linecache
told = str(linecache.cache) + str(In) + str([x for x in gc.get_objects() if type(x) is str])
raise RuntimeError(f"found {'### BEGIN' + ' SOLUTION' in told}, {'brake' in globals()}")
"""

# What no walls means is said on the instructor's page; with walls, it can see nothing.
SPY = """\
import json, os, socket
def reaches_the_network():
    try:
        socket.create_connection(("127.0.0.1", {{port}}), timeout=2)
        return True
    except OSError:
        return False
def finds_the_expected():
    found = 0
    with open(f"/proc/{os.getppid()}/maps") as maps, open(f"/proc/{os.getppid()}/mem", "rb") as mem:
        for line in maps:
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            if " rw" in line and end - start < 1 << 28:
                mem.seek(start)
                found += b"case 1, returned" in mem.read(end - start)
    return found > 0
try:
    memory = finds_the_expected()
except OSError:
    memory = False
raise RuntimeError(json.dumps({
    "environment": "SECRET" in os.environ,
    "switches": {x: os.environ.get(x) for x in {{switches}}},
    "home": os.listdir("."),
    "network": reaches_the_network(),
    "processes": sum(name.isdigit() for name in os.listdir("/proc")) > 4,
    "memory": memory,
    "files": [os.path.exists(path) for path in {{files}}],
}))
"""
