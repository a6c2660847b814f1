"""Harbor in Hearth's VMs: `import_path: hearth_environment:HearthEnvironment` in a job's environment. The VM is prepared by the
Hearth project, so a task's Dockerfile is not built."""

import io
import os
import tarfile
from pathlib import Path

import httpx
from harbor.environments.base import BaseEnvironment, ExecResult, transfer_tar_filter


class HearthEnvironment(BaseEnvironment):
    @staticmethod
    def type() -> str:
        return "hearth"

    def _validate_definition(self):
        if not os.environ.get("HEARTH_PROJECT"):
            raise ValueError("HEARTH_PROJECT names no project")

    async def _call(self, method: str, path: str, **options) -> httpx.Response:
        response = await self._client.request(method, path, **options)
        if response.is_error:
            raise RuntimeError(response.json()["error"]["message"])
        return response

    async def start(self, force_build: bool) -> None:
        headers = {"Authorization": f"Bearer {os.environ['HEARTH_TOKEN']}"}
        self._client = httpx.AsyncClient(base_url=f"{os.environ['HEARTH_URL']}/api/v1", headers=headers, timeout=None)
        # The session's id makes the claim safe to repeat.
        body = {"taskId": self.session_id, "waitMs": 60_000}
        self.claim = (await self._call("POST", f"/projects/{os.environ['HEARTH_PROJECT']}/warm-pool/claim", json=body)).json()
        self._path = f"/instances/{self.claim['id']}"

    async def stop(self, delete: bool):
        await self._call("POST", f"{self._path}/release")
        await self._client.aclose()

    async def exec(self, command, cwd=None, env=None, timeout_sec=None, user=None) -> ExecResult:
        user = user if user is not None else self.default_user
        body = {"command": command, "cwd": cwd, "env": {**self._persistent_env, **(env or {})}}
        body |= {"timeoutSeconds": timeout_sec, "user": None if user is None else str(user)}
        body = {name: value for name, value in body.items() if value is not None}
        ran = (await self._call("POST", f"{self._path}/exec", json=body)).json()
        code = 1 if ran["exitCode"] is None else ran["exitCode"]
        return ExecResult(stdout=ran["stdout"], stderr=ran["stderr"] or ran["error"], return_code=code)

    async def upload_file(self, source_path, target_path: str):
        await self._call("PUT", f"{self._path}/files", params={"path": target_path}, content=Path(source_path).read_bytes())

    async def upload_dir(self, source_dir, target_dir: str):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(source_dir, arcname=".")
        await self._call("PUT", f"{self._path}/files/tar", params={"path": target_dir}, content=packed.getvalue())

    async def download_file(self, source_path: str, target_path):
        file = await self._call("GET", f"{self._path}/files", params={"path": source_path})
        Path(target_path).write_bytes(file.content)

    async def download_dir(self, source_dir: str, target_dir):
        packed = await self._call("GET", f"{self._path}/files/tar", params={"path": source_dir})
        with tarfile.open(fileobj=io.BytesIO(packed.content)) as tar:
            tar.extractall(target_dir, filter=transfer_tar_filter)
