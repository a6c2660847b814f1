"""What of a sandbox's story E2B's asynchronous Python client does in its own way: streams that are read side by side, watchers that
call back, many sandboxes at once."""

import asyncio
import os
import sys

from e2b import AsyncSandbox, CommandExitException, FilesystemEventType, PtySize, SandboxException, SandboxQuery

TEMPLATE = sys.argv[1]


async def until(what, patience=60):
    async with asyncio.timeout(patience):
        while not what():
            await asyncio.sleep(0.05)


async def main():
    sandbox = await AsyncSandbox.create(TEMPLATE, timeout=900, metadata={"of": "async"}, envs={"GREETING": "hello"})
    outputs = await asyncio.gather(*(sandbox.commands.run(f"sleep 0.2; echo {number}; echo $GREETING") for number in range(8)))
    assert [ran.stdout for ran in outputs] == [f"{number}\nhello\n" for number in range(8)], outputs
    try:
        await sandbox.commands.run("exit 7")
        raise AssertionError("it has failed")
    except CommandExitException as error:
        assert error.exit_code == 7

    events = []
    await sandbox.files.make_dir("/tmp/watched")
    watch = await sandbox.files.watch_dir("/tmp/watched", on_event=events.append, timeout=0)
    await sandbox.files.write("/tmp/watched/file", b"1")
    await sandbox.files.rename("/tmp/watched/file", "/tmp/watched/other")
    await until(lambda: {("file", FilesystemEventType.CREATE), ("file", FilesystemEventType.RENAME)} <= {(e.name, e.type) for e in events})
    await watch.stop()

    lines = []
    handle = await sandbox.commands.run("while read line; do echo got:$line; done", background=True, stdin=True, on_stdout=lines.append)
    await sandbox.commands.send_stdin(handle.pid, "a\n")
    await until(lambda: "".join(lines) == "got:a\n")
    await sandbox.commands.close_stdin(handle.pid)
    assert (await handle.wait()).exit_code == 0

    shown = []
    terminal = await sandbox.pty.create(size=PtySize(rows=20, cols=70), on_data=lambda data: shown.append(bytes(data)), timeout=0)
    await sandbox.pty.send_stdin(terminal.pid, b"stty size; exit\n")
    await terminal.wait()
    assert b"20 70" in b"".join(shown), shown

    assert await sandbox.pause()
    sandbox = await AsyncSandbox.connect(sandbox.sandbox_id)
    assert await sandbox.files.exists("/tmp/watched/other")
    listed = AsyncSandbox.list(query=SandboxQuery(metadata={"of": "async"}))
    assert [one.sandbox_id for one in await listed.next_items()] == [sandbox.sandbox_id]
    silent = await sandbox.commands.run("sleep 600", background=True, timeout=0)
    assert await sandbox.kill()
    try:
        await asyncio.wait_for(silent.wait(), 60)
        raise AssertionError("its VM is gone")
    except (SandboxException, CommandExitException):
        pass
    assert not await sandbox.is_running()
    print("told")


asyncio.run(main())
# The client's HTTP library has threads of its own, which can end the interpreter badly while it goes. The story is told by then.
sys.stdout.flush()
os._exit(0)
