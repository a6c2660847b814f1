"""Hearth's tools, called by the official MCP client SDK as an agent's program calls them.

usage: story.py read|setup|work stdio|http REVISION PROJECT

The surroundings say where: HEARTH_URL, HEARTH_TOKEN, and for stdio HEARTH_PROGRAM.
`read` reads what there is; `setup` repairs a set-up that fails and enables the pool; `work` works in a VM of it.
"""

import asyncio
import os
import re
import sys

import httpx2
from mcp import StdioServerParameters
from mcp.client import Client
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

URL, TOKEN = os.environ["HEARTH_URL"], os.environ["HEARTH_TOKEN"]
SECRET = os.environ.get("HEARTH_KNOWN_SECRET", "")
# A VM without hardware virtualisation takes its time.
PATIENCE = 400


def transport(kind):
    if kind == "stdio":
        parameters = StdioServerParameters(
            command=os.environ["HEARTH_PROGRAM"],
            args=["mcp"],
            env={"HEARTH_URL": URL, "HEARTH_TOKEN": TOKEN},
        )
        return stdio_client(parameters)
    http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=PATIENCE + 60)
    return streamable_http_client(f"{URL}/mcp", http_client=http)


class Agent:
    def __init__(self, client):
        self.client = client

    async def call(self, tool, refused=False, **arguments):
        result = await self.client.call_tool(tool, arguments, read_timeout_seconds=PATIENCE + 60)
        text = "".join(block.text for block in result.content)
        print(f"--> {tool} {arguments}\n{text}\n", flush=True)
        assert bool(result.is_error) == refused, text
        assert not SECRET or SECRET not in text, "a secret was shown"
        assert len(text) < 40_000, len(text)
        return text


def instance_in(text):
    return re.search(r"wpi_[0-9a-f]{32}", text).group()


async def read(agent, project):
    tools = (await agent.client.list_tools()).tools
    assert len(tools) <= 12, [tool.name for tool in tools]
    seen = await agent.call("projects")
    assert project in seen and "other" not in seen, seen


async def setup(agent, project):
    tools = (await agent.client.list_tools()).tools
    assert len(tools) <= 12, [tool.name for tool in tools]
    await agent.call("projects", refused=True, project="no-such-project")
    await agent.call(
        "change_setup",
        project=project,
        commands=[
            {"name": "tools", "command": "echo tools are there; date +%s%N > /home/made"},
            {"name": "build", "command": "for i in $(seq 3000); do echo line $i; done; echo the cause >&2; exit 3"},
        ],
    )
    failed = await agent.call("test_setup", project=project, wait_seconds=PATIENCE)
    assert "failed" in failed and "build" in failed and "code 3" in failed, failed
    assert "the cause" in failed and "bytes left out" in failed, failed
    boot = instance_in(failed)
    whole = await agent.call("test_setup", instance=boot, full=True)
    assert "bytes left out;" not in whole and len(whole) > len(failed), len(whole)
    await agent.call("change_setup", refused=True, project=project, commands=[{"name": "biuld"}])
    await agent.call(
        "change_setup", project=project, commands=[{"name": "build", "command": "cp /home/made /home/built"}]
    )
    passed = await agent.call("test_setup", project=project, wait_seconds=PATIENCE)
    assert "succeeded" in passed and "tools (cached)" in passed, passed
    assert "build (cached)" not in passed, passed
    await agent.call("change_setup", project=project, enabled=True, target_size=1)
    seen = await agent.call("projects", project=project)
    assert "pool enabled" in seen and boot in seen and "cp /home/made" in seen, seen


async def work(agent, project):
    claimed = await agent.call("claim", project=project, task_id="mcp-story", wait_seconds=PATIENCE)
    vm = instance_in(claimed)
    again = await agent.call("claim", project=project, task_id="mcp-story", wait_seconds=PATIENCE)
    assert instance_in(again) == vm, again

    ran = await agent.call("run", instance=vm, command="cmp /home/made /home/built && echo same; exit 7")
    assert "exit code 7" in ran and "same" in ran, ran
    long = await agent.call("run", instance=vm, command="seq 100000")
    assert "exit code 0" in long and "bytes left out" in long and long.rstrip().endswith("100000"), long
    session, start = re.search(r"session (s-\w+), from (\d+)\]", long).groups()
    more = await agent.call("output", instance=vm, session=session, **{"from": int(start)})
    # What the beginning and the next part show is what was printed, byte for byte.
    shown = [text.split("\n", 1)[1].split("\n[")[0] for text in (long, more)]
    printed = "".join(f"{number}\n" for number in range(1, 100_001))
    assert int(start) == len(shown[0]) and printed.startswith("".join(shown)) and len(shown[1]) > 4096, more
    slow = await agent.call("run", instance=vm, command="echo begun; sleep 600", wait_seconds=2)
    assert "it runs" in slow and "begun" in slow, slow
    session = re.search(r"session (s-\w+)", slow).group(1)
    ended = await agent.call("output", instance=vm, session=session, signal="TERM", wait_seconds=30)
    assert "SIGTERM" in ended, ended
    timed = await agent.call("run", instance=vm, command="sleep 600", timeout_seconds=1)
    assert "timeout_seconds" in timed, timed

    await agent.call("write_file", instance=vm, path="/home/www/index.html", content="<p>one</p>\n<p>two</p>\n")
    await agent.call("edit_file", instance=vm, path="/home/www/index.html", old="two", new="three")
    read = await agent.call("read_file", instance=vm, path="/home/www/index.html", offset=2)
    assert read == "<p>three</p>\n", read
    await agent.call("edit_file", refused=True, instance=vm, path="/home/www/index.html", old="<p>", new="<b>")
    listed = await agent.call("read_file", instance=vm, path="/home/www")
    assert "index.html" in listed, listed

    server = "cd /home/www && perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(LocalPort => 8123, Listen => 5, " \
        "ReuseAddr => 1) or die; $| = 1; print qq(serving\\n); while ($c = $s->accept) { while (<$c>) { last if /^\r?$/ } print $c qq(HTTP/1.0 200 OK\\r\\n\\r\\nhello); close $c }'"
    served = await agent.call("run", instance=vm, command=server, background=True, wait_for="serving", wait_seconds=60)
    assert "was printed" in served and "it runs" in served, served
    ports = await agent.call("port", instance=vm, port=8123)
    assert "8123" in ports, ports
    shared = await agent.call("port", instance=vm, port=8123, share=True)
    # Names below localhost lead here, though this machine's resolver may not say it.
    link = httpx2.URL(shared.split()[0])
    here = {"Host": link.netloc.decode()}
    async with httpx2.AsyncClient() as http:
        answer = await http.get(link.copy_with(host="127.0.0.1"), headers=here)
        if answer.is_redirect:
            cookie = answer.headers["set-cookie"].split(";")[0]
            answer = await http.get(f"http://127.0.0.1:{link.port}/", headers={**here, "Cookie": cookie})
        assert answer.text == "hello", (answer.status_code, answer.text)
    await agent.call("port", refused=True, instance=vm, port=9)

    forked = await agent.call("fork", instance=vm, task_id="mcp-copy")
    copy = instance_in(forked)
    assert copy != vm
    inside = await agent.call("run", instance="mcp-copy", command="cat /home/www/index.html")
    assert "three" in inside, inside
    full = await agent.call("fork", refused=True, instance=vm, task_id="mcp-more", count=2)
    assert "maxVms" in full, full
    await agent.call("release", instance=copy)
    await agent.call("release", instance=vm)
    gone = await agent.call("run", refused=True, instance=vm, command="true")
    assert "gone" in gone or "released" in gone, gone


async def main():
    story, kind, revision, project = sys.argv[1:]
    mode = "legacy" if revision < "2026" else revision
    async with Client(transport(kind), mode=mode, read_timeout_seconds=PATIENCE + 60) as client:
        spoken = client.session.protocol_version
        print(f"revision {spoken}", flush=True)
        assert spoken == revision, spoken
        await {"read": read, "setup": setup, "work": work}[story](Agent(client), project)


asyncio.run(main())
