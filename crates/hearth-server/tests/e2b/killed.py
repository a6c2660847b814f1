"""A client in the middle of a command, whose VM somebody kills: it ends with an error, and soon."""

import sys
import time

from e2b import CommandExitException, NotFoundException, Sandbox, SandboxException

sandbox = Sandbox.create(sys.argv[1], timeout=900)
running = sandbox.commands.run("echo begun; sleep 600", background=True, timeout=0)
print(sandbox.sandbox_id, flush=True)
began = time.monotonic()
try:
    running.wait()
    sys.exit("its VM is gone")
except (SandboxException, CommandExitException) as error:
    print(f"{type(error).__name__} after {time.monotonic() - began:.1f} s: {error}", file=sys.stderr)
assert time.monotonic() - began < 90
assert not sandbox.is_running()
try:
    Sandbox.connect(sandbox.sandbox_id)
    sys.exit("there is nothing to connect to")
except NotFoundException as error:
    print(error, file=sys.stderr)
listed = Sandbox.list()
assert all(one.sandbox_id != sandbox.sandbox_id for one in listed.next_items())
# What is left of it is given back.
assert sandbox.kill() and not sandbox.kill()
