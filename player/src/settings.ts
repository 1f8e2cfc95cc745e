// The stock front end's URL parameters, read as it reads them: names without regard to case, flags true unless
// "false". The library could read them itself, but then the page's URL would also choose the streamer by name, and a
// player whose streamer is gone would wait for it for ever.
import {
  type AllSettings,
  Flags,
  NumericParameters,
  OptionParameters,
  TextParameters,
} from '@epicgames-ps/lib-pixelstreamingfrontend-ue5.7';

const names = (table: object): string[] =>
  Object.values(table).filter((value): value is string => typeof value === 'string');

const OURS = new Set<string>([
  Flags.AutoConnect,
  Flags.WaitForStreamer,
  OptionParameters.StreamerId,
  NumericParameters.MaxReconnectAttempts,
]);

/** What the page's URL asks of the matchmaker: a session, a join link, what to play and on which streamer. */
const ASKED = ['watch', 'join', 'application', 'stream', 'id'];

/** What the page starts with, overridden by what its URL says. */
export function settings(url: URL): Partial<AllSettings> {
  const chosen: Record<string, boolean | number | string> = {
    // The cursor stays visible, and positions are absolute: a game asks for the other mode by itself.
    [Flags.HoveringMouseMode]: true,
    [Flags.KeyboardInput]: true,
    [Flags.AutoPlayVideo]: true,
    // A browser plays without a click only what is silent; sound comes as soon as it may.
    [Flags.StartVideoMuted]: true,
    [Flags.WaitForStreamer]: false,
    // The page reconnects by itself, with a back-off.
    [NumericParameters.MaxReconnectAttempts]: 0,
    [TextParameters.SignallingServerUrl]: signallingUrl(url),
  };
  if (watched(url) !== null) {
    // A viewer steers nothing, and keeps its own keys.
    for (const input of [Flags.KeyboardInput, Flags.MouseInput, Flags.TouchInput, Flags.GamepadInput]) {
      chosen[input] = false;
    }
  }
  const given = new Map([...url.searchParams].map(([name, value]) => [name.toLowerCase(), value]));
  const read = (table: object, parse: (text: string) => boolean | number | string | undefined) => {
    for (const name of names(table)) {
      const text = given.get(name.toLowerCase());
      const value = text === undefined || OURS.has(name) ? undefined : parse(text);
      if (value !== undefined) chosen[name] = value;
    }
  };
  read(Flags, (text) => text.toLowerCase() !== 'false');
  read(NumericParameters, (text) => (Number.isFinite(parseFloat(text)) ? parseFloat(text) : undefined));
  read(OptionParameters, (text) => text || undefined);
  read(TextParameters, (text) => text || undefined);
  return chosen as Partial<AllSettings>;
}

/** The session to watch, where the page was opened to watch. */
export function watched(url: URL): string | null {
  return url.searchParams.get('watch');
}

/** A link with which others can watch. */
export function watchLink(url: URL, session: string): string {
  const link = new URL(url.pathname, url.origin);
  link.searchParams.set('watch', session);
  return link.href;
}

/** Where the signalling of this page is. */
export function signallingUrl(url: URL): string {
  const signalling = new URL('signalling', new URL('.', url));
  signalling.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:';
  for (const name of ASKED) {
    const value = url.searchParams.get(name);
    if (value !== null) signalling.searchParams.set(name, value);
  }
  return signalling.href;
}
