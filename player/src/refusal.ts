// Why a socket was refused: of a WebSocket that never opened a browser says nothing, so the same is asked over HTTP.

export type Refusal =
  | { readonly why: 'signedOut' | 'forbidden' }
  /** To be tried again after so many seconds. */
  | { readonly why: 'tooMany'; readonly seconds: number };

/** Undefined where nobody refuses, or nobody answers: then the socket failed for another reason, and may work next time. */
export async function refusal(signalling: string, ask: typeof fetch = fetch): Promise<Refusal | undefined> {
  const url = new URL(signalling);
  url.protocol = url.protocol === 'wss:' ? 'https:' : 'http:';
  try {
    const answer = await ask(url, { cache: 'no-store', signal: AbortSignal.timeout(ANSWER_WITHIN) });
    return refusalOf(answer.status, answer.headers.get('retry-after'));
  } catch {
    return undefined;
  }
}

function refusalOf(status: number, retryAfter: string | null): Refusal | undefined {
  switch (status) {
    case 401:
      return { why: 'signedOut' };
    case 403:
      return { why: 'forbidden' };
    case 429: {
      const seconds = Number.parseInt(retryAfter ?? '', 10);
      return { why: 'tooMany', seconds: Number.isFinite(seconds) ? Math.max(seconds, 1) : UNSAID_WAIT };
    }
    default:
      return undefined;
  }
}

/** In milliseconds. */
const ANSWER_WITHIN = 5_000;
/** In seconds, where the answer names no time. */
const UNSAID_WAIT = 10;
