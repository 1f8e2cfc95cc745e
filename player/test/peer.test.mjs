import assert from 'node:assert/strict';
import test from 'node:test';
import { bundled } from './bundled.mjs';

const { followPeer } = await bundled('peer');

function connection(transports) {
  const peer = new EventTarget();
  peer.getReceivers = () => transports.map((transport) => ({ transport }));
  peer.getSenders = () => [];
  return peer;
}

test('a connection that fails is noticed in browsers whose transports lack an iceTransport', () => {
  const seen = [];
  const peer = connection([null, {}, { iceTransport: {} }]);
  followPeer(peer, () => seen.push('path'), () => seen.push('state'));
  peer.dispatchEvent(new Event('connectionstatechange'));
  assert.deepEqual(seen, ['state']);
});

test('another path is noticed', () => {
  const seen = [];
  const iceTransport = new EventTarget();
  followPeer(connection([{ iceTransport }]), () => seen.push('path'), () => seen.push('state'));
  iceTransport.dispatchEvent(new Event('selectedcandidatepairchange'));
  assert.deepEqual(seen, ['path']);
});
