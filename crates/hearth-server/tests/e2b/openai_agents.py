"""OpenAI's Agents SDK with its own client of E2B, unmodified: a sandbox is made, a command is run in it, a file is written and read back,
and it is ended."""

import asyncio
import io
import pathlib
import sys

from agents.extensions.sandbox.e2b import E2BSandboxClient, E2BSandboxClientOptions


async def main():
    client = E2BSandboxClient()
    options = E2BSandboxClientOptions(sandbox_type="e2b", template=sys.argv[1], timeout=600, envs={"GREETING": "hello"}, metadata={"of": "agents"})
    session = await client.create(options=options)
    await session.start()
    try:
        ran = await session.exec("echo $GREETING; exit 4")
        assert (ran.exit_code, ran.stdout) == (4, b"hello\n"), ran
        await session.mkdir(pathlib.Path("made"), parents=True)
        await session.write(pathlib.Path("made/file"), io.BytesIO(b"\0bytes"))
        assert (await session.read(pathlib.Path("made/file"))).read() == b"\0bytes"
        listed = await session.exec("cat made/file | wc -c")
        assert listed.stdout.strip() == b"6", listed
        assert await session.running()
    finally:
        await session.shutdown()
        await client.delete(session)
    print("told")


asyncio.run(main())
