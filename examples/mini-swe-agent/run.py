"""Runs the repository's tests as an agent would, with mini-swe-agent's environment on a Hearth VM. See the README for the variables."""

import os
import sys
from pathlib import Path

from minisweagent.exceptions import Submitted

from hearth_environment import HearthEnvironment

environment = HearthEnvironment(cwd=os.environ["FOLDER"], timeout=600)
try:
    ran = environment.execute({"command": os.environ["TESTS"]})
    print(ran["output"], end="")
    result = os.environ["RESULT"]
    Path(Path(result).name).write_bytes(environment.read_file(f"{os.environ['FOLDER']}/{result}"))
    print("system:", environment.get_template_vars()["system"])
    try:
        environment.execute({"command": "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; cat " + result})
    except Submitted as submitted:
        print("submitted:", submitted.messages[0]["extra"]["submission"], end="")
finally:
    environment.cleanup()
sys.exit(ran["returncode"])
