"""Runs the repository's tests with Harbor's environment on a Hearth VM: files in and out, as a trial does it. See the README for the
variables."""

import asyncio
import os
import sys
import tempfile
import uuid
from pathlib import Path

from harbor.models.task.config import EnvironmentConfig
from harbor.models.trial.paths import TrialPaths

from hearth_environment import HearthEnvironment


async def main() -> int:
    folder, result = os.environ["FOLDER"], os.environ["RESULT"]
    with tempfile.TemporaryDirectory() as below:
        tests = Path(below, "tests")
        tests.mkdir()
        Path(tests, "note").write_text("from the host\n")
        environment = HearthEnvironment(
            environment_dir=Path(below),
            environment_name="example",
            session_id=f"example-{uuid.uuid4()}",
            trial_paths=TrialPaths(Path(below, "trial")),
            task_env_config=EnvironmentConfig(),
        )
        await environment.start(force_build=False)
        try:
            await environment.upload_dir(tests, "/tests")
            ran = await environment.exec(os.environ["TESTS"], cwd=folder, timeout_sec=600)
            print(ran.stdout, ran.stderr, sep="", end="")
            await environment.download_file(f"{folder}/{result}", Path(Path(result).name))
            await environment.download_dir("/tests", Path(below, "back"))
            print("back:", Path(below, "back", "note").read_text(), end="")
        finally:
            await environment.stop(delete=True)
    return ran.return_code


sys.exit(asyncio.run(main()))
