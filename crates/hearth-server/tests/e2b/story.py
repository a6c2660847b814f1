"""The whole story of a sandbox through E2B's own Python client, unmodified. Ends with an error at the first thing that is not as its
documentation says. Takes the template's name; where the server is, is in E2B's own variables."""

import os
import sys
import time

import httpx
from e2b import (
    AuthenticationException,
    CommandExitException,
    FileType,
    NotFoundException,
    PtySize,
    Sandbox,
    SandboxException,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)

TEMPLATE = sys.argv[1]
BIG = 100 * 1024 * 1024
began = time.monotonic()


def chapter(name):
    print(f"{time.monotonic() - began:7.2f} s  {name}", flush=True)


def fails(kind, what):
    try:
        what()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def until(what, patience=60):
    deadline = time.monotonic() + patience
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.1)


chapter("create")
run = str(time.time_ns())
fresh = dict(timeout=900, metadata={"run": run, "kind": "a b&c"}, envs={"GREETING": "it's me"}, idempotency_key=f"story-{run}")
sandbox = Sandbox.create(TEMPLATE, **fresh)
again = Sandbox.create(TEMPLATE, **fresh)
assert again.sandbox_id == sandbox.sandbox_id, "the same key is the same sandbox"
error = fails(SandboxException, lambda: Sandbox.create(TEMPLATE, **{**fresh, "metadata": {}}))
assert "Idempotency-Key" in str(error), error
error = fails(SandboxException, lambda: Sandbox.create("no-such-template", timeout=60))
assert TEMPLATE in str(error), f"it lists what there is: {error}"
fails(AuthenticationException, lambda: Sandbox.create(TEMPLATE, api_key="hearth_wrong"))
ours = "hearth_" + os.environ["E2B_API_KEY"].removeprefix("e2b_")
assert Sandbox.connect(sandbox.sandbox_id, api_key=ours).sandbox_id == sandbox.sandbox_id

chapter("commands")
ran = sandbox.commands.run('printf "%s" "$GREETING"; echo oops >&2')
assert (ran.stdout, ran.stderr, ran.exit_code) == ("it's me", "oops\n", 0), ran
seen = []
ran = sandbox.commands.run("for i in 1 2 3; do echo $i; done; exit 0", on_stdout=seen.append)
assert "".join(seen) == ran.stdout == "1\n2\n3\n", ran
error = fails(CommandExitException, lambda: sandbox.commands.run("echo gone; exit 3"))
assert (error.exit_code, error.stdout) == (3, "gone\n"), error
ran = sandbox.commands.run("echo $A-$B; pwd", envs={"A": "1", "B": "ä"}, cwd="/tmp")
assert ran.stdout == "1-ä\n/tmp\n", ran
error = fails(SandboxException, lambda: sandbox.commands.run("true", cwd="/no/such/folder"))
assert "/no/such/folder" in str(error), error
assert sandbox.commands.run("id -un; pwd", user="user").stdout == "user\n/home/user\n"
fails(AuthenticationException, lambda: sandbox.commands.run("true", user="nobody-here"))
fails(TimeoutException, lambda: sandbox.commands.run("sleep 60", timeout=2))
until(lambda: not [p for p in sandbox.commands.list() if "sleep 60" in p.args])
ran = sandbox.commands.run("head -c 3000000 /dev/zero | tr '\\0' x", timeout=120)
assert len(ran.stdout) == 3000000, len(ran.stdout)

chapter("background")
handle = sandbox.commands.run("echo begun; read line; echo got:$line; cat >/tmp/rest; echo over", background=True, stdin=True, timeout=0)
listed = until(lambda: [p for p in sandbox.commands.list() if p.pid == handle.pid])
assert listed[0].cmd == "/bin/bash" and "-c" in listed[0].args, listed
handle.disconnect()
assert [p for p in sandbox.commands.list() if p.pid == handle.pid], "a caller that hangs up ends nothing"
handle = sandbox.commands.connect(handle.pid, timeout=0)
sandbox.commands.send_stdin(handle.pid, "one\n")
sandbox.commands.stream_input(handle.pid, iter(["a", b"b", "c" * 100_000]))
sandbox.commands.close_stdin(handle.pid)
done = handle.wait()
assert done.stdout.endswith("got:one\nover\n"), done
assert len(sandbox.files.read("/tmp/rest")) == 100_002
killed = sandbox.commands.run("sleep 600", background=True)
assert killed.kill() and not killed.kill() and not sandbox.commands.kill(999_999)
error = fails(CommandExitException, killed.wait)
assert error.exit_code == -1 and "killed" in error.error, error
fails(NotFoundException, lambda: sandbox.commands.connect(999_999))

chapter("files")
for data in ("text ä\n", b"\0\1\xff"):
    kind = "text" if isinstance(data, str) else "bytes"
    written = sandbox.files.write("story/data", data)
    assert (written.path, written.name) == ("/home/story/data", "data"), written
    assert sandbox.files.read("story/data", format=kind) == data
both = sandbox.files.write_files([{"path": "story/one", "data": "1"}, {"path": "/home/story/deep/two", "data": b"22"}])
assert [info.path for info in both] == ["/home/story/one", "/home/story/deep/two"], both
names = [(entry.path, entry.type) for entry in sandbox.files.list("story", depth=2)]
assert ("/home/story/deep/two", FileType.FILE) in names and ("/home/story/deep", FileType.DIR) in names, names
assert [entry.name for entry in sandbox.files.list("story")] == ["data", "deep", "one"]
assert sandbox.files.make_dir("story/new/below") is True and sandbox.files.make_dir("story/new/below") is False
info = sandbox.files.rename("story/one", "story/uno")
assert info.path == "/home/story/uno" and info.size == 1 and info.permissions == "-rw-r--r--", info
assert sandbox.files.exists("story/uno") and not sandbox.files.exists("story/one")
sandbox.files.remove("story/new")
assert not sandbox.files.exists("story/new")
sandbox.files.write("of-user", "mine", user="user")
assert sandbox.files.get_info("of-user", user="user").owner == "user"
fails(NotFoundException, lambda: sandbox.files.read("story/none"))
fails(SandboxException, lambda: sandbox.files.list("story/uno"))
assert "".join(part.decode() for part in sandbox.files.read("story/uno", format="stream")) == "1"
sandbox.files.write("zipped", "z" * 100_000, gzip=True)
assert sandbox.files.read("zipped", gzip=True) == "z" * 100_000
big = os.urandom(1024 * 1024) * (BIG // (1024 * 1024))
sandbox.files.write("/tmp/big", big, request_timeout=300)
assert sandbox.files.read("/tmp/big", format="bytes", request_timeout=300) == big
sandbox.files.remove("/tmp/big")
del big

chapter("links")
link = sandbox.download_url("story/data")
root = os.environ["E2B_SANDBOX_URL"].removesuffix("/e2b")
assert link.startswith(f"{root}/files?"), link
assert httpx.get(link).content == b"\0\1\xff"
assert httpx.get(link, headers={"Range": "bytes=1-1"}).content == b"\1"
assert httpx.get(link.replace("story%2Fdata", "story%2Funo")).status_code == 401, "a link is for one file"
up = sandbox.upload_url("story/with space", use_signature_expiration=60)
assert httpx.post(up, files={"file": b"by form"}).status_code == 200
assert sandbox.files.read("story/with space") == "by form"
late = sandbox.download_url("story/uno", use_signature_expiration=1)
until(lambda: httpx.get(late).status_code == 401)

chapter("watching")
sandbox.files.make_dir("/tmp/watched")
watch = sandbox.files.watch_dir("/tmp/watched", recursive=True)
sandbox.files.write("/tmp/watched/below/file", "1")
events = []
until(lambda: events.extend(watch.get_new_events()) or any(event.name == "below/file" for event in events))
watch.stop()
fails(SandboxException, watch.get_new_events)

chapter("terminal")
shown = []
terminal = sandbox.pty.create(size=PtySize(rows=30, cols=100))
sandbox.pty.send_stdin(terminal.pid, b"stty size; exit\n")
terminal.wait(on_pty=lambda data: shown.append(bytes(data)))
assert b"30 100" in b"".join(shown), shown
terminal = sandbox.pty.create(size=PtySize(rows=30, cols=100))
sandbox.pty.resize(terminal.pid, PtySize(rows=10, cols=40))
sandbox.pty.send_stdin(terminal.pid, b"stty size; exit\n")
shown.clear()
terminal.wait(on_pty=lambda data: shown.append(bytes(data)))
assert b"10 40" in b"".join(shown), shown
terminal = sandbox.pty.create(size=PtySize(rows=30, cols=100))
assert sandbox.pty.kill(terminal.pid)

chapter("life")
info = sandbox.get_info()
assert info.metadata == {"run": run, "kind": "a b&c"} and info.state == SandboxState.RUNNING, info
assert info.cpu_count >= 1 and info.memory_mb >= 512, info
sandbox.set_timeout(1800)
left = (sandbox.get_info().end_at - info.started_at).total_seconds()
assert left > 1790, left
metric = sandbox.get_metrics()[0]
assert metric.mem_total > metric.mem_used > 0 and metric.disk_total > metric.disk_used > 0, metric
assert sandbox.is_running()

chapter("pause")
sandbox.files.write("/tmp/kept", "before")
counter = sandbox.commands.run("for i in $(seq 600); do echo $i >/tmp/count; sleep 0.2; done", background=True, timeout=0)
assert sandbox.pause() and not sandbox.pause(), "the second time it is paused already"
assert not sandbox.is_running()
assert Sandbox.get_info(sandbox.sandbox_id).state == SandboxState.PAUSED
paused = Sandbox.list(query=SandboxQuery(metadata={"run": run}, state=[SandboxState.PAUSED])).next_items()
assert [one.sandbox_id for one in paused] == [sandbox.sandbox_id], paused
fails(SandboxException, lambda: sandbox.commands.run("true"))
sandbox = Sandbox.connect(sandbox.sandbox_id, timeout=1800)
assert sandbox.is_running() and sandbox.files.read("/tmp/kept") == "before"
assert [p for p in sandbox.commands.list() if p.pid == counter.pid], "its processes run on"
sandbox.commands.kill(counter.pid)

chapter("copies")
sandbox.files.write("/tmp/who", "parent")
forks = [one if isinstance(one, Sandbox) else one.sandbox for one in sandbox.fork(count=2, timeout=600)]
for number, fork in enumerate(forks):
    assert fork.files.read("/tmp/who") == "parent"
    fork.files.write("/tmp/who", str(number))
assert sandbox.files.read("/tmp/who") == "parent"
assert forks[0].get_info().metadata["run"] == run
for fork in forks:
    fork.kill()
snapshot = sandbox.create_snapshot(name=f"story-{run}")
assert snapshot.names, snapshot
listed = sandbox.list_snapshots().next_items()
assert [one.snapshot_id for one in listed] == [snapshot.snapshot_id], listed
copy = Sandbox.create(snapshot.snapshot_id, timeout=300, envs={"ONLY_HERE": "yes"})
assert copy.files.read("/tmp/who") == "parent"
assert copy.commands.run("echo $ONLY_HERE-$GREETING").stdout == "yes-it's me\n"
copy.kill()
assert Sandbox.delete_snapshot(snapshot.snapshot_id) and not Sandbox.delete_snapshot(snapshot.snapshot_id)

chapter("network")
sandbox.update_network({"allow_out": ["example.org"], "deny_out": ["0.0.0.0/0"]})
assert sandbox.get_info().network, "it is shown"
error = fails(SandboxException, lambda: Sandbox.create(TEMPLATE, network={"deny_out": ["203.0.113.9"]}))
assert "denyOut" in str(error), error

chapter("ports")
page = sandbox.commands.run("cd /tmp && python3 -m http.server 3000", background=True, timeout=0)
host = sandbox.get_host(3000)
assert host.startswith(f"3000-{sandbox.sandbox_id}."), host
base = os.environ["E2B_SANDBOX_URL"]
headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "3000"}
traffic = sandbox.traffic_access_token
opened = {**headers, "E2B-Traffic-Access-Token": traffic}
until(lambda: httpx.get(f"{base}/who", headers=opened).text == "parent")
assert httpx.get(f"{base}/who", headers=headers).status_code == 401, "a port is not open to everybody"
by_name = {"Host": host, "E2B-Traffic-Access-Token": traffic}
assert httpx.get(f"{root}/who", headers=by_name).text == "parent"
closed = httpx.get(f"{base}/", headers={**opened, "E2b-Sandbox-Port": "3999"})
assert closed.status_code == 502 and "port is not open" in closed.text, closed.text

chapter("the end")
page.disconnect()
listed = Sandbox.list(query=SandboxQuery(metadata={"run": run, "kind": "a b&c"}))
assert [one.sandbox_id for one in listed.next_items()] == [sandbox.sandbox_id] and not listed.has_next
running = sandbox.commands.run("sleep 600", background=True, timeout=0)
assert sandbox.kill() and not sandbox.kill()
fails((SandboxException, CommandExitException), running.wait)
assert not sandbox.is_running()
for call in (
    lambda: sandbox.commands.run("true"),
    lambda: sandbox.files.read("story/data"),
    lambda: sandbox.get_info(),
    lambda: sandbox.set_timeout(60),
    lambda: Sandbox.connect(sandbox.sandbox_id),
):
    error = fails(SandboxException, call)
    assert "not found" in str(error).lower(), error
chapter("told")
