// Claims a VM, runs the repository's tests in it, copies the result out, releases the VM.
// HEARTH_URL, HEARTH_TOKEN, HEARTH_PROJECT (the project's id); FOLDER: the checkout; TESTS: what runs; RESULT: a file that it writes.
import { randomUUID } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { basename } from "node:path";

function variable(name: string): string {
  const value = process.env[name];
  if (value === undefined) throw new Error(`${name} is not set`);
  return value;
}

async function call(method: string, path: string, body?: unknown): Promise<Response> {
  const response = await fetch(`${variable("HEARTH_URL")}/api/v1${path}`, {
    method,
    headers: { authorization: `Bearer ${variable("HEARTH_TOKEN")}`, "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!response.ok) {
    const { error } = (await response.json()) as { error: { message: string } };
    throw new Error(error.message);
  }
  return response;
}

interface Ran {
  exitCode: number | null;
  stdout: string;
  stderr: string;
}

const folder = variable("FOLDER");
// A key makes the claim safe to repeat: the same key gets the same VM.
const order = { taskId: `fetch-${randomUUID()}`, waitMs: 60_000 };
const claim = (await (await call("POST", `/projects/${variable("HEARTH_PROJECT")}/warm-pool/claim`, order)).json()) as { id: string };
try {
  const command = { command: variable("TESTS"), cwd: folder, timeoutSeconds: 600 };
  const ran = (await (await call("POST", `/instances/${claim.id}/exec`, command)).json()) as Ran;
  process.stdout.write(ran.stdout + ran.stderr);
  const path = encodeURIComponent(`${folder}/${variable("RESULT")}`);
  const result = await call("GET", `/instances/${claim.id}/files?path=${path}`);
  await writeFile(basename(variable("RESULT")), Buffer.from(await result.arrayBuffer()));
  process.exitCode = ran.exitCode ?? 1;
} finally {
  await call("POST", `/instances/${claim.id}/release`);
}
