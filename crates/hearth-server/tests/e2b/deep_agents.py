"""LangChain's own client of E2B, unmodified: commands, files written, read, edited and found in a sandbox."""

import sys

import e2b
from langchain_e2b import E2BSandbox

sandbox = e2b.Sandbox.create(sys.argv[1], timeout=600)
backend = E2BSandbox(sandbox=sandbox)
assert backend.id == sandbox.sandbox_id
ran = backend.execute("pwd; echo oops >&2; exit 5")
assert ran.exit_code == 5 and "/home/user" in ran.output and "oops" in ran.output, ran
uploaded = backend.upload_files([("/home/user/story/data.txt", b"one\ntwo\nthree\n")])
assert all(one.error is None for one in uploaded), uploaded
assert backend.download_files(["/home/user/story/data.txt"])[0].content == b"one\ntwo\nthree\n"
assert "two" in str(backend.read("/home/user/story/data.txt"))
written = backend.write("/home/user/story/new.txt", "written\n")
assert written.error is None, written
edited = backend.edit("/home/user/story/new.txt", "written", "edited")
assert edited.error is None, edited
assert sandbox.files.read("/home/user/story/new.txt") == "edited\n"
assert "data.txt" in str(backend.ls("/home/user/story")) and "data.txt" in str(backend.grep("three", "/home/user/story"))
assert "data.txt" in str(backend.glob("*.txt", "/home/user/story"))
timed = backend.execute("sleep 60", timeout=2)
assert timed.exit_code == 124, timed
assert sandbox.kill()
print("told")
