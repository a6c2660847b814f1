// A real OpenID Connect provider with three people: `node provider.mjs CALLBACK CLIENT SECRET`, in the folder with its packages.
// It prints its issuer and runs until it is killed. Whoever gives the name of one of them, and any password, is that person.
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const require = createRequire(`${process.cwd()}/`);
const { default: Provider } = await import(pathToFileURL(require.resolve('oidc-provider')));

const people = {
  ada: { email: 'ada@example.com', email_verified: true, groups: ['platform', 'ops'] },
  bob: { email: 'bob@elsewhere.example', email_verified: true, groups: [] },
  eve: { email: 'eve@example.com', email_verified: false, groups: [] },
};

const [callback, client, secret] = process.argv.slice(2);
const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [{ client_id: client, client_secret: secret, redirect_uris: [callback] }],
    // What is asked for by these scopes is in the user info alone.
    claims: { email: ['email', 'email_verified'], profile: ['groups'] },
    pkce: { required: () => true },
    cookies: { keys: ['a key of this test'] },
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, ...people[id] }) }),
  });
  server.on('request', provider.callback());
  console.log(issuer);
});
