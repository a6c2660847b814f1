"""The same with E2B's SDK, unchanged: `hearth env e2b` prints the variables that it reads.

E2B_API_KEY, E2B_API_URL, E2B_SANDBOX_URL; HEARTH_PROJECT (the project's id, which is the template); FOLDER, TESTS, RESULT.
"""

import os
import sys
from pathlib import Path

from e2b import CommandExitException, Sandbox

FOLDER, TESTS, RESULT = os.environ["FOLDER"], os.environ["TESTS"], os.environ["RESULT"]


def main() -> int:
    sandbox = Sandbox.create(template=os.environ["HEARTH_PROJECT"], timeout=900)
    try:
        try:
            ran = sandbox.commands.run(TESTS, cwd=FOLDER, timeout=600)
        except CommandExitException as failed:
            ran = failed
        print(ran.stdout, ran.stderr, sep="", end="")
        result = sandbox.files.read(f"{FOLDER}/{RESULT}", format="bytes")
        Path(Path(RESULT).name).write_bytes(result)
    finally:
        sandbox.kill()
    return ran.exit_code


if __name__ == "__main__":
    sys.exit(main())
