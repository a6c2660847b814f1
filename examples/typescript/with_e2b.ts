// The same with E2B's SDK, unchanged: `hearth env e2b` prints the variables that it reads.
// E2B_API_KEY, E2B_API_URL, E2B_SANDBOX_URL; HEARTH_PROJECT (the project's id, which is the template); FOLDER, TESTS, RESULT.
import { writeFile } from "node:fs/promises";
import { basename } from "node:path";

import { CommandExitError, Sandbox } from "e2b";

function variable(name: string): string {
  const value = process.env[name];
  if (value === undefined) throw new Error(`${name} is not set`);
  return value;
}

const folder = variable("FOLDER");
const sandbox = await Sandbox.create(variable("HEARTH_PROJECT"), { timeoutMs: 900_000 });
try {
  const ran = await sandbox.commands.run(variable("TESTS"), { cwd: folder, timeoutMs: 600_000 }).catch((error: unknown) => {
    if (error instanceof CommandExitError) return error;
    throw error;
  });
  process.stdout.write(ran.stdout + ran.stderr);
  const result = await sandbox.files.read(`${folder}/${variable("RESULT")}`, { format: "bytes" });
  await writeFile(basename(variable("RESULT")), result);
  process.exitCode = ran.exitCode;
} finally {
  await sandbox.kill();
}
