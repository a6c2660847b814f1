"""A template built from steps by E2B's own Python client, and a sandbox of it."""

import os
import pathlib
import sys
import tempfile

from e2b import BuildException, Sandbox, SandboxException, Template, wait_for_port

name = f"built-{sys.argv[1]}"
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "app").mkdir()
(folder / "app" / "data.txt").write_text("copied\n")
steps = (
    Template(file_context_path=str(folder))
    .from_base_image()
    .set_envs({"STEP": "two words", "QUOTED": 'say "hi"', "WITH": "/opt/x:$PATH$UNSET"})
    .set_workdir("/srv/app")
    .copy("app", ".")
    .run_cmd("cat data.txt; echo $STEP >step; pwd >where; echo $QUOTED >quoted")
    .run_cmd("id -un >/tmp/who", user="user")
    .set_start_cmd("python3 -m http.server 8000", wait_for_port(8000))
)
logs = []
info = Template.build(steps, f"{name}:v1", tags=["stable"], cpu_count=1, memory_mb=512, on_build_logs=logs.append)
assert any("copied" in entry.message for entry in logs), [entry.message for entry in logs]
assert sorted(info.tags) == ["stable", "v1"], info.tags
assert Template.exists(name) and Template.exists(f"{name}:v1") and not Template.exists(f"{name}:v2")
assert Template.assign_tags(f"{name}:v1", "best").build_id == info.build_id
Template.remove_tags(name, "stable")
assert {(tag.tag, tag.build_id) for tag in Template.get_tags(name)} == {(tag, info.build_id) for tag in ["v1", "best"]}
assert not Template.exists("never-built")
sandbox = Sandbox.create(f"{name}:{info.build_id}", timeout=600)
assert sandbox.files.read("/srv/app/where") == "/srv/app\n"
assert sandbox.commands.run("cat /srv/app/step /tmp/who; echo $STEP").stdout == "two words\nuser\ntwo words\n"
quoted = sandbox.commands.run("cat /srv/app/quoted; echo $QUOTED").stdout
assert quoted == 'say "hi"\nsay "hi"\n', quoted
found = sandbox.commands.run("printenv WITH").stdout
assert found.startswith("/opt/x:/") and "$" not in found, found
assert "copied" in sandbox.commands.run("curl -s localhost:8000/data.txt || python3 -c \"import urllib.request as u; print(u.urlopen('http://localhost:8000/data.txt').read().decode())\"").stdout
sandbox.kill()
try:
    Template.build(Template().from_image("python:3.12").run_cmd("true"), name)
    sys.exit("an image that is not Hearth's")
except Exception as error:
    assert "python:3.12" in str(error), error
try:
    Template.build(Template().from_base_image().run_cmd("echo it breaks; exit 3"), f"{name}-broken")
    sys.exit("its set-up fails")
except BuildException as error:
    print(f"as it should: {error}")
try:
    Sandbox.create(f"{name}-broken")
    sys.exit("its set-up fails here, too")
except SandboxException as error:
    assert "exit code 3" in str(error), error
# Begun, and refused before anything was built.
assert not Template.exists(name + "-none")
try:
    Template.build(Template().from_image("python:3.12").run_cmd("true"), name + "-none")
except Exception as error:
    print(f"as it should: {error}")
assert not Template.exists(name + "-none")
try:
    Sandbox.create(name + "-none")
    sys.exit("it was never built")
except SandboxException as error:
    assert "none of its builds has succeeded" in str(error), error
Template.build(steps, f"{name}:v2", cpu_count=1, memory_mb=512)
assert Template.exists(f"{name}:v2") and not Template.exists(f"{name}:v1")
try:
    Template.build(Template().from_base_image().run_cmd("echo three >/which; exit 3"), f"{name}:v3")
    sys.exit("its set-up fails, too")
except BuildException:
    pass
# What was built before stays, and makes sandboxes.
assert Template.exists(f"{name}:v2") and not Template.exists(f"{name}:v3")
sandbox = Sandbox.create(name, timeout=600)
assert sandbox.commands.run("cat /srv/app/step; ls /which 2>/dev/null || echo none").stdout == "two words\nnone\n"
sandbox.kill()
print("told")
