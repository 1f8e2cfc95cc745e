// What the page says to its player.

export type State = 'connecting' | 'waiting' | 'starting' | 'playing' | 'ended' | 'failed';

const TITLES: Record<State, string> = {
  connecting: 'Connecting',
  waiting: 'Waiting for a free place',
  starting: 'Starting',
  playing: '',
  ended: 'The stream has ended',
  failed: 'This did not work',
};

export class Overlay {
  state: State = 'connecting';
  readonly again = element<HTMLButtonElement>('again');
  readonly sound = element<HTMLButtonElement>('sound');
  readonly share = element<HTMLButtonElement>('share');
  private readonly root = element('overlay');
  private readonly title = element('title');
  private readonly detail = element('detail');

  show(state: State, detail = ''): void {
    this.state = state;
    this.root.dataset['state'] = state;
    if (state === 'playing') this.root.dataset['picture'] = 'stale';
    this.title.textContent = TITLES[state];
    this.detail.textContent = detail;
    this.again.hidden = state !== 'ended' && state !== 'failed';
    this.again.textContent = state === 'failed' ? 'Try again' : 'Connect now';
    if (state !== 'playing') this.sound.hidden = true;
    document.title = state === 'playing' ? 'Penstock' : `${TITLES[state]} · Penstock`;
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

function element<T extends HTMLElement = HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}
