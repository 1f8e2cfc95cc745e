// The signalling socket, as the library sees it: one that lasts as long as the stream does. The library ends a healthy
// stream when its socket closes, and makes a new peer connection for every `config`; so while media flows, a socket that
// broke is opened again underneath, and the library hears of neither.
//
//   open ──── breaks, media flows ───► away: tries again; pings are answered here
//     ▲                                  │ open, matched (resumed)     → all goes on
//     └──────────────────────────────────┤ anything else               → closed for the library; its next socket is
//                                        │                               the one that just opened
//                                        └ media has ended too         → closed for the library
//
// It has to stand in for `WebSocket` before the library is loaded.

/** What the socket needs to know of the page, and tells it. */
export const signalling = {
  /** Whether media flows. */
  alive: (): boolean => false,
  /** The right to come back to the session; empty where there is none. */
  token: '',
  /** Whether the socket is away while the stream goes on. */
  away: false,
  /** How often the stream has outlived its socket. */
  resumed: 0,
  /** Whether the last socket opened: one that never did may have been refused. */
  opened: false,
};

const Native = window.WebSocket;
/** What the matchmaker says of the session, as far as it matters here. */
interface Notice {
  status?: string;
  resumed?: boolean;
}

/** An open socket that the library's next one becomes, with what came over it. */
let spare: { socket: WebSocket; held: MessageEvent[] } | undefined;

class LastingSocket {
  static readonly CONNECTING = 0;
  static readonly OPEN = 1;
  static readonly CLOSING = 2;
  static readonly CLOSED = 3;
  onopen: ((event: Event) => void) | null = null;
  onmessage: ((event: MessageEvent) => void) | null = null;
  onerror: ((event: Event) => void) | null = null;
  onclose: ((event: CloseEvent) => void) | null = null;
  readyState: number = LastingSocket.CONNECTING;
  private socket: WebSocket | undefined;
  /** What came over a socket that may or may not go on with the stream; undefined once that is known. */
  private held: MessageEvent[] | undefined;
  /** Whether what goes on is older than this socket: then a `config` is not for it, however late it comes. */
  private goesOn = false;
  private unsent: string[] = [];
  private attempts = 0;
  private retry: ReturnType<typeof setTimeout> | undefined;
  /** The ping that is not answered yet, and when it is given up. */
  private pinged: { data: string; late: ReturnType<typeof setTimeout> } | undefined;
  private slow: ReturnType<typeof setTimeout> | undefined;
  private readonly online = () => this.retry !== undefined && this.reopen();

  constructor(
    readonly url: string,
    private readonly protocols?: string | string[],
  ) {
    window.addEventListener('online', this.online);
    const adopted = spare;
    spare = undefined;
    if (adopted?.socket.readyState !== Native.OPEN) {
      adopted?.socket.close();
      signalling.opened = false;
      this.follow(this.dial(false));
      return;
    }
    this.follow(adopted.socket);
    // The library sets its handlers once this has returned.
    setTimeout(() => {
      this.opened();
      for (const event of adopted.held) this.onmessage?.(event);
    });
  }

  send(data: string): void {
    const open = this.socket?.readyState === Native.OPEN && this.held === undefined;
    const kind = kindOf(data);
    if (kind === 'ping') {
      if (!open) return this.echo(data);
      this.pinged ??= { data, late: setTimeout(() => this.broken(), ANSWER_WITHIN) };
    }
    if (open) this.socket?.send(data);
    else if (this.unsent.length < UNSENT) this.unsent.push(data);
  }

  close(code?: number, reason?: string): void {
    const socket = this.socket;
    this.end();
    socket?.close(code, reason);
    this.onclose?.(new CloseEvent('close', { code: code ?? 1000, reason: reason ?? '' }));
  }

  private dial(live: boolean): WebSocket {
    const url = new URL(this.url);
    url.searchParams.set('return', signalling.token);
    if (live) url.searchParams.set('live', 'true');
    return this.protocols === undefined ? new Native(url) : new Native(url, this.protocols);
  }

  private follow(socket: WebSocket): void {
    this.socket = socket;
    socket.onopen = () => this.readyState === LastingSocket.CONNECTING && this.opened();
    socket.onmessage = (event) => this.hear(event);
    socket.onclose = (event) => this.closed(event);
  }

  private opened(): void {
    this.readyState = LastingSocket.OPEN;
    signalling.opened = true;
    this.onopen?.(new Event('open'));
  }

  private hear(event: MessageEvent): void {
    const kind = kindOf(event.data);
    if (kind === 'pong') this.answered();
    clearTimeout(this.slow);
    const notice = kind === 'matchmaker' ? (JSON.parse(String(event.data)) as Notice) : undefined;
    if (this.held === undefined) return this.pass(event, kind, notice);
    if (!notice && kind !== 'subscribeFailed') {
      this.held.push(event);
      return;
    }
    if (notice?.status === 'matched' && notice.resumed) this.resume(event);
    else this.replace(event);
  }

  private pass(event: MessageEvent, kind: string | undefined, notice: Notice | undefined): void {
    if (notice?.status === 'ended' || notice?.status === 'matched') this.goesOn = false;
    if (kind !== 'config' || !this.goesOn) this.onmessage?.(event);
  }

  /** The stream goes on; the library has what the new `config` would say already. */
  private resume(event: MessageEvent): void {
    this.held = undefined;
    this.goesOn = true;
    this.attempts = 0;
    signalling.away = false;
    signalling.resumed += 1;
    this.onmessage?.(event);
    for (const data of this.unsent.splice(0)) this.socket?.send(data);
  }

  /** There is no session to come back to. What is open now waits in the queue already, so it is kept for what is next. */
  private replace(event: MessageEvent): void {
    if (!this.socket) return;
    const held = [...(this.held ?? []), event];
    spare = { socket: this.socket, held };
    this.socket.onmessage = (more) => held.push(more);
    this.socket.onclose = null;
    this.socket = undefined;
    this.fail(new CloseEvent('close', { code: 4001, reason: 'The session is over.' }));
  }

  private closed(event: CloseEvent): void {
    const final = FINAL.has(event.code) || this.readyState !== LastingSocket.OPEN || !signalling.alive();
    if (final) return this.fail(event);
    this.broken();
  }

  /** Tries again, at once and then less and less often, for as long as media flows. */
  private broken(): void {
    const ping = this.pinged?.data;
    this.forget();
    if (!signalling.alive()) {
      return this.fail(new CloseEvent('close', { code: 1006, reason: 'The connection was lost.' }));
    }
    if (ping) this.echo(ping);
    signalling.away = true;
    this.held = [];
    const wait = this.attempts === 0 ? 0 : Math.min(250 * 2 ** this.attempts, 4000) * (0.75 + Math.random() / 2);
    this.attempts += 1;
    this.retry = setTimeout(() => this.reopen(), wait);
  }

  private reopen(): void {
    clearTimeout(this.retry);
    this.retry = undefined;
    this.follow(this.dial(true));
    this.slow = setTimeout(() => this.broken(), ANSWER_WITHIN);
  }

  private fail(event: CloseEvent): void {
    this.end();
    this.onclose?.(event);
  }

  private end(): void {
    this.readyState = LastingSocket.CLOSED;
    window.removeEventListener('online', this.online);
    clearTimeout(this.retry);
    this.retry = undefined;
    signalling.away = false;
    this.forget();
  }

  private answered(): void {
    clearTimeout(this.pinged?.late);
    this.pinged = undefined;
  }

  private forget(): void {
    clearTimeout(this.slow);
    this.answered();
    const socket = this.socket;
    this.socket = undefined;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onerror = socket.onclose = null;
    if (socket.readyState < Native.CLOSING) socket.close();
  }

  /** The library gives up a socket whose pings are not answered. */
  private echo(ping: string): void {
    const { time } = JSON.parse(ping) as { time: number };
    const data = JSON.stringify({ type: 'pong', time });
    setTimeout(() => this.onmessage?.(new MessageEvent('message', { data })));
  }
}

function kindOf(data: unknown): string | undefined {
  return typeof data === 'string' ? /"type"\s*:\s*"(\w+)"/.exec(data)?.[1] : undefined;
}

/** Codes with which the other side ends it on purpose: unreadable, too much, too long, ended by the streamer. */
const FINAL = new Set([1003, 1007, 1008, 1009, 1011]);
/** How long a ping, or a new socket, may go without an answer, in milliseconds. */
const ANSWER_WITHIN = 5_000;
const UNSENT = 64;

window.WebSocket = LastingSocket as unknown as typeof WebSocket;
