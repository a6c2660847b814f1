"""One sandbox for each line on standard input: how long until it is there, and until its first command has ended."""

import sys
import time

from e2b import Sandbox

for line in sys.stdin:
    begin = time.perf_counter()
    sandbox = Sandbox.create(line.strip(), timeout=300)
    created = time.perf_counter()
    assert sandbox.commands.run("true").exit_code == 0
    ended = time.perf_counter()
    assert sandbox.kill()
    print(created - begin, ended - begin, flush=True)
