"""Claims a VM, runs the repository's tests in it, copies the result out, releases the VM.

HEARTH_URL, HEARTH_TOKEN, HEARTH_PROJECT (the project's id); FOLDER: the checkout; TESTS: what runs; RESULT: a file that it writes.
"""

import os
import sys
import uuid
from pathlib import Path

import httpx

FOLDER, TESTS, RESULT = os.environ["FOLDER"], os.environ["TESTS"], os.environ["RESULT"]


def main() -> int:
    headers = {"Authorization": f"Bearer {os.environ['HEARTH_TOKEN']}"}
    # A command's reply comes when it has ended.
    client = httpx.Client(base_url=f"{os.environ['HEARTH_URL']}/api/v1", headers=headers, timeout=660)

    def call(method: str, path: str, **options) -> httpx.Response:
        response = client.request(method, path, **options)
        if response.is_error:
            raise SystemExit(response.json()["error"]["message"])
        return response

    # A key makes the claim safe to repeat: the same key gets the same VM.
    body = {"taskId": f"httpx-{uuid.uuid4()}", "waitMs": 60_000}
    claim = call("POST", f"/projects/{os.environ['HEARTH_PROJECT']}/warm-pool/claim", json=body).json()
    instance = f"/instances/{claim['id']}"
    try:
        ran = call("POST", f"{instance}/exec", json={"command": TESTS, "cwd": FOLDER, "timeoutSeconds": 600}).json()
        print(ran["stdout"], ran["stderr"], sep="", end="")
        result = call("GET", f"{instance}/files", params={"path": f"{FOLDER}/{RESULT}"})
        Path(Path(RESULT).name).write_bytes(result.content)
    finally:
        call("POST", f"{instance}/release")
    return 1 if ran["exitCode"] is None else ran["exitCode"]


if __name__ == "__main__":
    sys.exit(main())
