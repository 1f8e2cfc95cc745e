// A plain relay in Node.js, the peer of the bench: it greets, tells a place in a queue, answers pings, and nothing more.
import { WebSocketServer } from 'ws';

const players = new Map();
let joined = 0;
const server = new WebSocketServer({ port: 0, host: '127.0.0.1', maxPayload: 65536 });

server.on('connection', (socket) => {
  const id = String(++joined);
  const player = { socket, alive: true };
  players.set(id, player);
  const say = (message) => socket.send(JSON.stringify(message));
  say({ type: 'config', peerConnectionOptions: { iceServers: [] }, protocolVersion: '1.3.0' });
  socket.on('pong', () => { player.alive = true; });
  socket.on('message', (text) => {
    const message = JSON.parse(text);
    if (message.type === 'listStreamers') {
      say({ type: 'matchmaker', status: 'queued', position: players.size, waiting: players.size });
    } else if (message.type === 'ping') {
      say({ type: 'pong', time: message.time });
    }
  });
  socket.on('close', () => players.delete(id));
});

setInterval(() => {
  for (const player of players.values()) {
    if (!player.alive) player.socket.terminate();
    player.alive = false;
    player.socket.ping();
  }
}, 15000);

server.on('listening', () => console.log(server.address().port));
