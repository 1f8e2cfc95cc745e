// Server-sent events that come again by themselves, and that know how old what they said last is.

export type Link = 'connecting' | 'live' | 'stale' | 'denied';

/** A heartbeat comes every 10 s: after this long something is wrong, whatever the browser thinks. */
const STALE_AFTER = 15_000;
/** After this long the connection is given up: a phone that slept may hold on to one that is no more. */
const DEAD_AFTER = 25_000;
const RETRY_AFTER = 3_000;

export class Feed<T> {
  private source: EventSource | undefined;
  private retry: number | undefined;
  private heardAt: number | undefined;
  private openedAt = Date.now();
  private lost = false;
  private denied = false;

  constructor(
    private readonly url: string,
    /** Where the same is to be had once: asked for why there are no events. */
    private readonly once: string,
    private readonly hear: (value: T) => void,
    /** How it stands, in words, and how old what is shown is, where it is not new. */
    private readonly tell: (link: Link, words: string, age: string) => void,
  ) {
    this.open();
    window.setInterval(() => this.look(), 1000);
    window.addEventListener('online', () => this.lost && this.open());
    document.addEventListener('visibilitychange', () => this.look());
  }

  private open(): void {
    clearTimeout(this.retry);
    this.retry = undefined;
    this.source?.close();
    this.openedAt = Date.now();
    const source = new EventSource(this.url);
    this.source = source;
    source.addEventListener('message', ({ data }: MessageEvent<string>) => {
      this.heard();
      this.hear(JSON.parse(data) as T);
    });
    source.addEventListener('heartbeat', () => this.heard());
    source.addEventListener('error', () => this.broke(source));
  }

  private heard(): void {
    this.heardAt = Date.now();
    this.lost = this.denied = false;
    this.look();
  }

  /** The browser opens a connection that broke again by itself, but not one that was refused. */
  private broke(source: EventSource): void {
    if (source !== this.source) return;
    this.lost = true;
    this.look();
    if (source.readyState === EventSource.CLOSED) {
      void this.why();
      this.later();
    }
  }

  private later(): void {
    this.retry ??= window.setTimeout(() => this.open(), RETRY_AFTER);
  }

  private async why(): Promise<void> {
    const status = await fetch(this.once, { cache: 'no-store' }).then(
      (answer) => answer.status,
      () => 0,
    );
    this.denied = status === 401 || status === 403;
    this.look();
  }

  private look(): void {
    const now = Date.now();
    const age = this.heardAt === undefined ? undefined : now - this.heardAt;
    if (now - Math.max(this.heardAt ?? 0, this.openedAt) > DEAD_AFTER) this.open();
    const last = age === undefined ? '' : `Last heard ${duration(Math.round(age / 1000))} ago.`;
    if (this.denied) return this.tell('denied', 'You may not see this (any more). Load the page anew to sign in.', last);
    if (age === undefined) return this.tell('connecting', this.lost ? 'No connection. Trying again.' : 'Connecting', '');
    if (this.lost) return this.tell('stale', 'Out of date: the connection was lost. Trying again.', last);
    if (age > STALE_AFTER) return this.tell('stale', 'Out of date.', last);
    this.tell('live', 'Live', '');
  }
}

/** As short as can be read. */
export function duration(seconds: number): string {
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
