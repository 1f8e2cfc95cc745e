// What the library leaves to the page: how media comes, and a phone's keyboard.
import type { PixelStreaming } from '@epicgames-ps/lib-pixelstreamingfrontend-ue5.7';

/** How media comes: by the pair of addresses that the browser has chosen. Empty while there is none. */
export async function pathOf(connection: RTCPeerConnection): Promise<string> {
  const stats = await connection.getStats();
  const all = [...stats.values()] as Record<string, unknown>[];
  const chosen = all.find((s) => s['type'] === 'transport' && s['selectedCandidatePairId'])?.['selectedCandidatePairId'];
  const pair = all.find((s) => (chosen ? s['id'] === chosen : s['type'] === 'candidate-pair' && s['nominated']));
  if (!pair) return '';
  const ends = [pair['localCandidateId'], pair['remoteCandidateId']];
  const relayed = all.some((s) => ends.includes(s['id']) && s['candidateType'] === 'relay');
  return relayed ? 'through a relay' : 'direct';
}

/**
 * A phone's keyboard writes into a field rather than press keys: what comes into this one is passed on as text. A
 * blank is kept in it, since some keyboards tell of a deletion only where there is something to delete.
 */
export function typeInto(field: HTMLInputElement, stream: PixelStreaming): void {
  const handlers = stream.webRtcController.streamMessageController.toStreamerHandlers;
  const press = (code: number): void => {
    handlers.get('KeyDown')?.([code, 0]);
    handlers.get('KeyUp')?.([code]);
  };
  const empty = (): void => {
    field.value = ' ';
    field.setSelectionRange(1, 1);
  };
  empty();
  // The library listens on the whole document, and would take what a keyboard with keys sends a second time.
  for (const kind of ['keydown', 'keyup', 'keypress']) field.addEventListener(kind, (event) => event.stopPropagation());
  field.addEventListener('keydown', (event) => {
    if (event.key === 'Enter') press(ENTER);
  });
  field.addEventListener('input', (event) => {
    const { inputType, data, isComposing } = event as InputEvent;
    if (isComposing) return;
    if (inputType.startsWith('delete')) press(BACKSPACE);
    else if (data) handlers.get('TextboxEntry')?.([data]);
    empty();
  });
  field.addEventListener('compositionend', (event) => {
    if (event.data) handlers.get('TextboxEntry')?.([event.data]);
    empty();
  });
}

const ENTER = 13;
const BACKSPACE = 8;
