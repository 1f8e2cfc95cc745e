// The player's page. Epic's library does the streaming; this file connects it at once, says what is going on, and
// connects it again whenever the stream or the signalling ends.
//
//   connecting ──► waiting (place in the queue) ──► starting ──► playing ──► moving (its streamer is gone)
//       ▲  │           ▲ └───────────────────────────┘   ▲            │         │
//       │  └───────────┴──────────────────────────────────┴───────────┼─────────┘
//       └──────────────── ended, failed (back-off, or a click), left ◄┘
//
// While it plays, the signalling socket may break: socket.ts then opens it again, and the picture goes on.
import { signalling } from './socket';
import { Config, Logger, LogLevel, PixelStreaming, type WebSocketTransport } from '@epicgames-ps/lib-pixelstreamingfrontend-ue5.7';
import { inWords, Overlay, type State } from './overlay';
import { pathOf, typeInto } from './extras';
import { letGo } from './held';
import { followPeer } from './peer';
import { refusal } from './refusal';
import { settings, signallingUrl, watched, watchLink } from './settings';

/** What the matchmaker says about the waiting; stock servers never send it. */
type Notice =
  | { status: 'queued'; position: number; waiting: number; expectedWaitSeconds?: number; nothingFits?: boolean }
  | { status: 'matched'; streamerId: string; sessionId: string; returnToken?: string; resumed: boolean; shared: boolean }
  | { status: 'draining'; secondsLeft: number }
  | { status: 'ended'; reason: string; kind: 'over' | 'moves' | 'replaced' | 'stopped' };

interface Hooks {
  readonly state: State;
  readonly pixelStreaming: PixelStreaming;
  readonly sessionId: string | null;
  /** How often the stream has outlived its signalling socket. */
  readonly resumed: number;
  /** How media comes: directly, or through a relay. */
  readonly path: string;
  /** When things happened, in milliseconds since the page began to load. */
  readonly times: Record<string, number>;
  peer(): RTCPeerConnection | null;
  stats(): Promise<Record<string, unknown>[]>;
}

declare global {
  interface Window {
    penstock: Hooks;
  }
}

const url = new URL(window.location.href);
const overlay = new Overlay();
const times: Record<string, number> = {};
let sessionId: string | null = null;
let shared = false;
let failures = 0;
let retry: ReturnType<typeof setTimeout> | undefined;
let over = false;
let path = '';
/** Where the right to come back is kept: a window's own, and it outlives a reload. */
const kept = `penstock.return ${watched(url) ?? ''}`;
signalling.token = recall();

// The library logs every message, with a stack trace each: milliseconds that the first picture would wait for.
Logger.InitLogging(url.searchParams.has('debug') ? LogLevel.Debug : LogLevel.Error, false);
const config = new Config({ initialSettings: settings(url), useUrlParams: false });
const stream = new PixelStreaming(config, { videoElementParent: document.getElementById('stage')! });
const controller = stream.webRtcController;

/** The library makes a new connection each time that it subscribes. */
const peer = (): RTCPeerConnection | null => controller.peerConnectionController?.peerConnection ?? null;
const video = controller.videoPlayer.getVideoElement();
const mark = (what: string): void => {
  times[what] ??= Math.round(performance.now());
};

function connect(): void {
  clearTimeout(retry);
  retry = undefined;
  hangUp();
  over = false;
  overlay.show('connecting');
  mark('connect');
  stream.connect();
}

/** Leaves nothing of the last connection behind: the library would keep its socket, its pings and its peer. */
function hangUp(): void {
  over = true;
  peer()?.close();
  const transport = controller.protocol.transport as WebSocketTransport;
  const socket = transport.webSocket;
  if (!socket || socket.readyState === WebSocket.CLOSED) return;
  // Its close event may come long after; the library is told now, so that it can't take it for the next one's.
  socket.onopen = socket.onmessage = socket.onerror = socket.onclose = null;
  socket.close();
  transport.handleOnClose(new CloseEvent('close', { code: 1000 }));
}

/** Says that it is over, and tries again: soon at first, then less and less often. */
function ended(state: 'ended' | 'failed', why: string): void {
  if (retry !== undefined) return;
  hangUp();
  const wait = Math.min(500 * 2 ** failures, 15_000) * (0.75 + Math.random() / 2);
  failures += 1;
  again(state, why, wait);
}

function again(state: 'ended' | 'failed', why: string, wait: number): void {
  clearTimeout(retry);
  overlay.show(state, `${why} Connecting again${wait > 2000 ? ` in ${Math.round(wait / 1000)} s` : ''}.`);
  retry = setTimeout(connect, wait);
}

/** A socket never opened. Where that was on purpose, trying again and again would neither help nor say so. */
async function maybeRefused(): Promise<void> {
  const refused = await refusal(signallingUrl(url));
  // The next try may have opened by now.
  if (refused === undefined || signalling.opened) return;
  switch (refused.why) {
    case 'signedOut':
      return finished('signedOut', 'Your sign-in or your link is no longer good.');
    case 'forbidden':
      return finished('failed', 'You may not do this here. Ask whoever gave you this address for access.');
    case 'tooMany':
      hangUp();
      return again('failed', 'Too many connections come from your network.', refused.seconds * 1000 * (1 + Math.random() / 2));
  }
}

/** Over for good, unless the player wants it again. */
function finished(state: 'ended' | 'left' | 'failed' | 'signedOut', why: string): void {
  hangUp();
  clearTimeout(retry);
  retry = undefined;
  overlay.show(state, why);
}

function hear(notice: Notice): void {
  mark(notice.status);
  switch (notice.status) {
    case 'queued':
      return overlay.show('waiting', notice.nothingFits ? NOTHING_FITS : place(notice.position, notice.waiting, notice.expectedWaitSeconds));
    case 'matched':
      sessionId = notice.sessionId;
      shared = notice.shared;
      remember(notice.returnToken ?? '');
      if (!notice.resumed) overlay.show('starting');
      return;
    case 'draining':
      return drains(notice.secondsLeft);
    case 'ended':
      // The way back stays with the other window; but what an operator ended is not to be gone back to.
      if (notice.kind === 'stopped') remember('');
      if (notice.kind === 'replaced' || notice.kind === 'stopped') return finished('ended', notice.reason);
      // Where the player moves the socket stays, and the place in the queue with it; only the picture is over.
      peer()?.close();
      if (notice.kind === 'moves') remember('');
      return overlay.show(notice.kind === 'moves' ? 'moving' : 'ended', notice.reason);
  }
}

const NOTHING_FITS = 'Nothing that you ask for is running at the moment. You keep your place, and it starts as soon as it is there.';

function place(position: number, waiting: number, expected?: number): string {
  const about = expected === undefined ? '' : ` It should take about ${inWords(expected)}.`;
  return `You are number ${position} of ${waiting}.${about}`;
}

function drains(secondsLeft: number): void {
  if (secondsLeft < 1) return;
  overlay.hints(`This place closes in ${inWords(secondsLeft)}. You will then move to another one.`);
}

function recall(): string {
  try {
    return sessionStorage.getItem(kept) ?? '';
  } catch {
    return '';
  }
}

/** Without storage a reload begins anew; all else works. */
function remember(token: string): void {
  signalling.token = token;
  try {
    sessionStorage.setItem(kept, token);
  } catch {
    // No storage.
  }
}

/** The player goes, and says so: nobody waits for it. */
function leave(): void {
  const socket = (controller.protocol.transport as WebSocketTransport).webSocket;
  socket?.send(JSON.stringify({ type: 'unsubscribe' }));
  remember('');
  finished('left', 'Your place is free for others.');
}

function playing(): void {
  if (over || peer()?.connectionState === 'closed') return;
  mark('firstFrame');
  failures = 0;
  overlay.show('playing');
  overlay.share.hidden = !shared;
  unmute();
  void tellPath();
}

async function tellPath(): Promise<void> {
  const connection = peer();
  path = connection ? await pathOf(connection) : '';
  overlay.shows(path);
}

/** Turns the sound on, or offers a button for it where the browser wants a click first. */
function unmute(): void {
  const hasSound = controller.peerConnectionController?.audioTrack !== undefined;
  if (!hasSound || config.isFlagEnabled('StartVideoMuted') === false || asksForSilence()) return;
  // Where sound needs a click, unmuting a video that plays would stop it: so ask first.
  const may = navigator.userActivation?.hasBeenActive ?? false;
  overlay.sound.hidden = may;
  if (may) setMuted(false);
}

const asksForSilence = (): boolean => url.searchParams.get('StartVideoMuted')?.toLowerCase() === 'true';

function setMuted(muted: boolean): void {
  const sounds = [video, controller.streamController.audioElement];
  for (const sound of sounds) {
    sound.muted = muted;
    if (!muted && sound.srcObject) void sound.play().catch(() => (overlay.sound.hidden = false));
  }
}

/** Frames are shown as they come: a buffer against jitter would be delay that a player feels. */
function showAtOnce(connection: RTCPeerConnection): void {
  for (const receiver of connection.getReceivers()) {
    if (receiver.track.kind !== 'video') continue;
    const tuned = receiver as RTCRtpReceiver & { jitterBufferTarget?: number | null; playoutDelayHint?: number };
    if ('jitterBufferTarget' in tuned) tuned.jitterBufferTarget = 0;
    if ('playoutDelayHint' in tuned) tuned.playoutDelayHint = 0;
  }
}

function follow(connection: RTCPeerConnection): void {
  showAtOnce(connection);
  const stands = (): void => {
    if (connection !== peer() || over) return;
    if (connection.connectionState === 'connected') mark('connected');
    if (connection.connectionState === 'failed') {
      ended('ended', 'The connection to the stream was lost.');
    }
  };
  followPeer(connection, () => void tellPath(), stands);
}

// The protocol's own listeners see each message parsed, and the library passes over types that it does not know.
controller.protocol.addListener('matchmaker', (message: unknown) => hear(message as Notice));
controller.protocol.addListener('iceCandidate', (message: unknown) =>
  relayTo((message as { candidate: RTCIceCandidateInit }).candidate),
);
controller.protocol.transport.addListener('open', () => mark('open'));
stream.addEventListener('webRtcSdpOffer', () => {
  mark('offer');
  const connection = peer();
  if (connection) follow(connection);
});
stream.addEventListener('webRtcSdpAnswer', () => mark('answer'));
stream.addEventListener('webRtcDisconnected', ({ data }) => {
  if (over) return;
  ended('ended', sentence(data.eventString) || 'The connection was lost.');
  if (!signalling.opened) void maybeRefused();
});
signalling.alive = () => !over && peer()?.connectionState === 'connected';
stream.addEventListener('subscribeFailed', ({ data }) => finished('failed', data.message));
stream.addEventListener('playStreamRejected', () => {
  overlay.sound.hidden = false;
});

/**
 * With ForceTURN the library throws away every address of the streamer that is not a relay's. But it is the browser
 * that is to go through a relay; the streamer is where that relay sends to.
 */
function relayTo(candidate: RTCIceCandidateInit): void {
  if (!config.isFlagEnabled('ForceTURN') || !candidate.candidate || candidate.candidate.includes('relay')) return;
  void peer()?.addIceCandidate({ candidate: candidate.candidate, sdpMLineIndex: 0 }).catch(() => undefined);
}

function sentence(text: string | undefined): string {
  const trimmed = (text ?? '').trim();
  return trimmed === '' || /[.!?]$/.test(trimmed) ? trimmed : `${trimmed}.`;
}

// Each new stream shows its first frame through one of these, whichever the browser has.
video.addEventListener('loadeddata', playing);
video.addEventListener('playing', playing);

overlay.again.addEventListener('click', () => {
  // Only a page that is loaded makes a browser ask who somebody is.
  if (overlay.state === 'signedOut') return window.location.reload();
  failures = 0;
  connect();
});
// Any click or key will do: a browser asks for a sign of its user, not for this button.
for (const sign of ['pointerup', 'keyup']) {
  window.addEventListener(sign, () => {
    if (overlay.sound.hidden) return;
    overlay.sound.hidden = true;
    setMuted(false);
    void video.play().catch(() => undefined);
  }, true);
}
overlay.full.addEventListener('click', () => void overlay.fill(video).catch(() => undefined));
overlay.leave.addEventListener('click', leave);
overlay.keys.addEventListener('click', () => overlay.typed.focus());
// A button that keeps the focus would be pressed again by the next key that is meant for the stream.
for (const tool of [overlay.sound, overlay.share, overlay.full]) tool.addEventListener('click', () => tool.blur());
typeInto(overlay.typed, stream);
letGo(document.getElementById('stage')!);
overlay.share.addEventListener('click', () => {
  if (sessionId) void overlay.copied(watchLink(url, sessionId));
});
window.addEventListener('online', () => retry !== undefined && connect());

window.penstock = {
  get state() {
    return overlay.state;
  },
  get sessionId() {
    return sessionId;
  },
  get resumed() {
    return signalling.resumed;
  },
  get path() {
    return path;
  },
  pixelStreaming: stream,
  times,
  peer,
  async stats() {
    const report = await peer()?.getStats();
    return report ? [...report.values()] : [];
  },
};

if (watched(url) !== null) document.body.dataset['role'] = 'viewer';
connect();
