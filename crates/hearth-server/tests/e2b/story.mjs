// The story of a sandbox through E2B's own JavaScript client, unmodified. Takes the template's name.
import assert from 'node:assert/strict'
import { CommandExitError, FileType, Sandbox, SandboxNotFoundError, TimeoutError } from 'e2b'

const template = process.argv[2]
const until = async (what, patience = 60_000) => {
  for (const end = Date.now() + patience; !(await what()); ) {
    assert(Date.now() < end, 'it never came to be')
    await new Promise((resume) => setTimeout(resume, 100))
  }
}

let sandbox = await Sandbox.create(template, { timeoutMs: 900_000, metadata: { of: 'js' }, envs: { GREETING: "it's me" } })
assert.match(sandbox.sandboxId, /^[a-z0-9]+$/)

let ran = await sandbox.commands.run('printf "%s" "$GREETING"; echo oops >&2')
assert.deepEqual([ran.stdout, ran.stderr, ran.exitCode], ["it's me", 'oops\n', 0])
await assert.rejects(sandbox.commands.run('exit 3'), (error) => error instanceof CommandExitError && error.exitCode === 3)
await assert.rejects(sandbox.commands.run('sleep 60', { timeoutMs: 2000 }), TimeoutError)
const lines = []
await sandbox.commands.run('for i in 1 2 3; do echo $i; done', { onStdout: (data) => { lines.push(data) } })
assert.equal(lines.join(''), '1\n2\n3\n')

const reader = await sandbox.commands.run('read line; echo got:$line; cat', { background: true, stdin: true, timeoutMs: 0 })
assert((await sandbox.commands.list()).some((one) => one.pid === reader.pid))
await sandbox.commands.sendStdin(reader.pid, 'one\n')
await sandbox.commands.closeStdin(reader.pid)
assert.equal((await reader.wait()).stdout, 'got:one\n')
const killed = await sandbox.commands.run('sleep 600', { background: true, timeoutMs: 0 })
assert.equal(await killed.kill(), true)
assert.equal(await sandbox.commands.kill(999999), false)

await sandbox.files.write('story/text', 'ä')
assert.equal(await sandbox.files.read('story/text'), 'ä')
const bytes = new Uint8Array([0, 1, 255])
await sandbox.files.write('story/bytes', bytes.buffer)
assert.deepEqual(await sandbox.files.read('story/bytes', { format: 'bytes' }), bytes)
await sandbox.files.write([{ path: 'story/one', data: '1' }, { path: 'story/deep/two', data: '2' }])
const found = await sandbox.files.list('story', { depth: 2 })
assert(found.some((entry) => entry.path === '/home/story/deep/two' && entry.type === FileType.FILE), JSON.stringify(found))
assert.equal(await sandbox.files.makeDir('story/new'), true)
assert.equal(await sandbox.files.makeDir('story/new'), false)
await sandbox.files.rename('story/one', 'story/uno')
assert.equal((await sandbox.files.getInfo('story/uno')).size, 1)
assert.equal(await sandbox.files.exists('story/one'), false)
await sandbox.files.remove('story/uno')

const events = []
const watch = await sandbox.files.watchDir('story', (event) => { events.push(`${event.type} ${event.name}`) }, { recursive: true, timeoutMs: 0 })
await sandbox.files.write('story/deep/three', '3')
await until(() => events.includes('create deep/three'))
await watch.stop()

let screen = ''
const terminal = await sandbox.pty.create({ cols: 100, rows: 30, timeoutMs: 0, onData: (data) => { screen += Buffer.from(data).toString() } })
await sandbox.pty.resize(terminal.pid, { cols: 40, rows: 10 })
await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size; exit\n'))
await terminal.wait()
assert.match(screen, /10 40/)

const link = await sandbox.downloadUrl('story/text', { useSignatureExpiration: 60 })
assert.equal(await (await fetch(link)).text(), 'ä')

const info = await sandbox.getInfo()
assert.deepEqual([info.metadata, info.state], [{ of: 'js' }, 'running'])
await sandbox.setTimeout(1_800_000)
assert((await sandbox.getMetrics())[0].memTotal > 0)
assert.equal(await sandbox.pause(), true)
assert.equal(await sandbox.isRunning(), false)
sandbox = await Sandbox.connect(sandbox.sandboxId)
assert.equal(await sandbox.files.read('story/text'), 'ä')
const listed = Sandbox.list({ query: { metadata: { of: 'js' } } })
assert.deepEqual((await listed.nextItems()).map((one) => one.sandboxId), [sandbox.sandboxId])

assert.equal(await sandbox.kill(), true)
assert.equal(await sandbox.kill(), false)
await assert.rejects(sandbox.commands.run('true'), SandboxNotFoundError)
assert.equal(await sandbox.isRunning(), false)
console.log('told')
