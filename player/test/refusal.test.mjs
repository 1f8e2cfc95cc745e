import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import test from 'node:test';
import { bundled } from './bundled.mjs';

const { refusal } = await bundled('refusal');

/** What the page makes of a server that answers so. */
async function answered(status, headers = {}) {
  let asked;
  const server = createServer((request, response) => {
    asked = request.url;
    response.writeHead(status, headers).end();
  });
  await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
  const why = await refusal(`ws://127.0.0.1:${server.address().port}/play/signalling?join=x`);
  server.closeAllConnections();
  await new Promise((closed) => server.close(closed));
  assert.equal(asked, '/play/signalling?join=x');
  return why;
}

test('a refusal is told from a socket that failed', async () => {
  assert.deepEqual(await answered(401), { why: 'signedOut' });
  assert.deepEqual(await answered(403), { why: 'forbidden' });
  assert.equal(await answered(426), undefined, 'it would have been let in');
  assert.equal(await answered(503), undefined);
});

test('too much is told with the time to wait', async () => {
  assert.deepEqual(await answered(429, { 'retry-after': '7' }), { why: 'tooMany', seconds: 7 });
  assert.deepEqual(await answered(429, { 'retry-after': '0' }), { why: 'tooMany', seconds: 1 });
  assert.deepEqual(await answered(429), { why: 'tooMany', seconds: 10 });
});

test('where nobody answers there is no refusal', async () => {
  assert.equal(await refusal('ws://127.0.0.1:1/signalling'), undefined);
});
