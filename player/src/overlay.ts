// What the page says to its player.

export type State = 'connecting' | 'waiting' | 'starting' | 'playing' | 'moving' | 'ended' | 'left' | 'failed' | 'signedOut';

const TITLES: Record<State, string> = {
  connecting: 'Connecting',
  waiting: 'Waiting for a free place',
  starting: 'Starting',
  playing: '',
  moving: 'Moving to another place',
  ended: 'The stream has ended',
  left: 'You have left',
  failed: 'This did not work',
  signedOut: 'You are not signed in (any more)',
};

const AGAIN: Partial<Record<State, string>> = { failed: 'Try again', left: 'Play again', signedOut: 'Sign in again' };

/** Where nothing goes on by itself, or only after a while. */
const OVER = new Set<State>(['ended', 'left', 'failed', 'signedOut']);

export class Overlay {
  state: State = 'connecting';
  readonly again = element<HTMLButtonElement>('again');
  readonly sound = element<HTMLButtonElement>('sound');
  readonly share = element<HTMLButtonElement>('share');
  readonly full = element<HTMLButtonElement>('full');
  readonly keys = element<HTMLButtonElement>('keys');
  readonly leave = element<HTMLButtonElement>('leave');
  readonly typed = element<HTMLInputElement>('typed');
  private readonly root = element('overlay');
  private readonly title = element('title');
  private readonly detail = element('detail');
  private readonly hint = element('hint');
  private readonly path = element('path');

  show(state: State, detail = ''): void {
    this.state = state;
    this.root.dataset['state'] = state;
    if (state === 'playing') this.root.dataset['picture'] = 'stale';
    this.title.textContent = TITLES[state];
    this.detail.textContent = detail;
    this.again.hidden = !OVER.has(state);
    this.again.textContent = AGAIN[state] ?? 'Connect now';
    if (state === 'playing') return this.playing();
    for (const tool of [this.sound, this.share, this.full, this.keys, this.leave, this.path]) tool.hidden = true;
    this.hints('');
    document.title = `${TITLES[state]} · Penstock`;
  }

  private playing(): void {
    document.title = 'Penstock';
    this.full.hidden = !canFill();
    this.keys.hidden = !window.matchMedia('(pointer: coarse)').matches || document.body.dataset['role'] === 'viewer';
    this.leave.hidden = false;
  }

  /** A line beside the picture; empty for none. */
  hints(text: string): void {
    this.hint.textContent = text;
    this.hint.hidden = text === '';
  }

  /** How media comes. */
  shows(path: string): void {
    this.path.textContent = path;
    this.path.hidden = path === '' || this.state !== 'playing';
  }

  /** Fills the screen, or leaves it. Phones that can't do that with a page can with a video. */
  async fill(video: HTMLVideoElement): Promise<void> {
    if (document.fullscreenElement) return document.exitFullscreen();
    if (document.fullscreenEnabled) return document.documentElement.requestFullscreen({ navigationUI: 'hide' });
    (video as { webkitEnterFullscreen?: () => void }).webkitEnterFullscreen?.();
  }

  async copied(link: string): Promise<void> {
    const label = this.share.textContent;
    try {
      await navigator.clipboard.writeText(link);
      this.share.textContent = 'Link copied';
    } catch {
      // No clipboard without HTTPS or permission: then the link is shown, to be copied by hand.
      window.prompt('A link with which others can watch:', link);
    }
    setTimeout(() => (this.share.textContent = label), 2000);
  }
}

const canFill = (): boolean =>
  document.fullscreenEnabled || 'webkitEnterFullscreen' in HTMLVideoElement.prototype;

/** As a person says it. */
export function inWords(seconds: number): string {
  if (seconds < 60) return `${seconds} seconds`;
  const minutes = Math.round(seconds / 60);
  return minutes === 1 ? 'a minute' : `${minutes} minutes`;
}

function element<T extends HTMLElement = HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}
