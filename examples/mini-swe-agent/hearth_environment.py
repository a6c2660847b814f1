"""mini-swe-agent in Hearth's VMs: `environment_class: hearth_environment.HearthEnvironment` in its configuration."""

import os
import uuid
from typing import Any

import requests
from minisweagent.environments.local import LocalEnvironment, LocalEnvironmentConfig
from minisweagent.utils.serialize import recursive_merge


class HearthEnvironmentConfig(LocalEnvironmentConfig):
    url: str = os.environ.get("HEARTH_URL", "http://127.0.0.1:7717")
    project: str = os.environ.get("HEARTH_PROJECT", "")
    wait_seconds: int = 60


class HearthEnvironment(LocalEnvironment):
    """One claimed VM. What ends the agent is the base class's; commands run in the VM."""

    def __init__(self, *, config_class: type = HearthEnvironmentConfig, **kwargs):
        super().__init__(config_class=config_class, **kwargs)
        # Not in the configuration: that is saved with every trajectory.
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Bearer {os.environ['HEARTH_TOKEN']}"
        body = {"taskId": f"mini-{uuid.uuid4()}", "waitMs": self.config.wait_seconds * 1000}
        self.claim = self._call("POST", f"/projects/{self.config.project}/warm-pool/claim", json=body).json()
        self.path = f"/instances/{self.claim['id']}"

    def _call(self, method: str, path: str, **options) -> requests.Response:
        options.setdefault("timeout", self.config.timeout + self.config.wait_seconds + 30)
        response = self._session.request(method, f"{self.config.url}/api/v1{path}", **options)
        if not response.ok:
            raise RuntimeError(response.json()["error"]["message"])
        return response

    def execute(self, action: dict, cwd: str = "", *, timeout: int | None = None) -> dict[str, Any]:
        folder = cwd or self.config.cwd or self.claim["repos"][0]["path"]
        limit = timeout or self.config.timeout
        body = {"command": f"exec 2>&1\n{action.get('command', '')}", "cwd": folder, "env": self.config.env}
        try:
            ran = self._call("POST", f"{self.path}/exec", json={**body, "timeoutSeconds": limit}, timeout=limit + 60).json()
            code = -1 if ran["exitCode"] is None else ran["exitCode"]
            output = {"output": ran["stdout"], "returncode": code, "exception_info": ran["error"] or ""}
        except Exception as error:
            output = {"output": "", "returncode": -1, "exception_info": f"The command could not be run: {error}"}
        self._check_finished(output)
        return output

    def get_template_vars(self, **kwargs) -> dict[str, Any]:
        names = ("system", "release", "version", "machine")
        uname = self._call("POST", f"{self.path}/exec", json={"command": "uname -s; uname -r; uname -v; uname -m"}).json()
        return recursive_merge(self.config.model_dump(), dict(zip(names, uname["stdout"].splitlines())), kwargs)

    def read_file(self, path: str) -> bytes:
        return self._call("GET", f"{self.path}/files", params={"path": path}).content

    def cleanup(self) -> None:
        self._call("POST", f"{self.path}/release")
