// The overview: nodes, GPUs and slices as a picture that is kept up to date.

import { duration, Feed } from './feed';

type State = 'free' | 'playing' | 'starting' | 'draining' | 'reserved';

/** As GET overview.json gives it; openapi.json says what each is. What is not known is absent. */
interface Overview {
  totals: {
    gpus: number;
    encoderUnits?: number;
    reservedUnits: number;
    streamers: number;
    free: number;
    players: number;
    away: number;
    viewers: number;
  };
  queue: { waiting: number; longestWaitSeconds?: number; expectedWaitSeconds?: number };
  nodes: Node[];
  elsewhere: Slice[];
  turnServers?: { draining: boolean; allocations: number; maxAllocations: number; bytesPerSecond: number }[];
  silent: ('agent' | 'pods' | 'gpuNodes')[];
}

interface Node {
  name?: string;
  gpus: Gpu[];
  problems: string[];
}

interface Gpu {
  uuid: string;
  model?: string;
  encoderUnits?: number;
  reservedUnits: number;
  encoderLoad?: { fromPercent: number; toPercent: number };
  encoderSessions?: number;
  problems: string[];
  slices: Slice[];
}

interface Slice {
  name: string;
  units: number;
  smPercent?: number;
  vramMib?: number;
  state: State;
  note?: string;
  streamer?: {
    id: string;
    application?: string;
    stream: string;
    units: number;
    players: number;
    maxPlayers: number;
    away: number;
    viewers: number;
  };
}

const STATES: Record<State, string> = {
  playing: 'playing',
  free: 'free',
  starting: 'starting',
  draining: 'draining',
  reserved: 'reserved, no streamer heard',
};

const SILENT = {
  agent: 'The agent can’t be heard: what it said last is shown, if anything.',
  pods: 'The API server does not tell of pods: what it said last is shown, if anything.',
  gpuNodes: 'The API server does not tell of GPU nodes: what it said last is shown, if anything.',
};

const picture = id('picture');
const link = id('link');

function draw(overview: Overview): void {
  picture.removeAttribute('aria-busy');
  texts(id('notes'), overview.silent.map((source) => SILENT[source]));
  totals(overview);
  const known = overview.nodes.length + overview.elsewhere.length > 0;
  id('legend').hidden = !known;
  const cards = overview.nodes.map((node): Card => ({ title: node.name ?? 'This machine', ...node }));
  if (overview.elsewhere.length > 0) cards.push({ title: 'GPU not known', gpus: [], problems: [], rest: overview.elsewhere });
  if (cards.length === 0) {
    const nothing = 'No GPU is known, and no streamer. They show up here by themselves.';
    cards.push({ title: 'Nothing here yet', gpus: [], problems: [], nothing });
  }
  keyed(id('nodes'), cards, (node) => node.title, newCard, updateCard);
  relays(overview.turnServers);
}

function totals({ totals, queue, nodes }: Overview): void {
  const { players, away, viewers, free, streamers, encoderUnits: all, reservedUnits } = totals;
  const used = all === undefined || all === 0 ? '' : ` %`;
  const percent = all === undefined || all === 0 ? '–' : `${Math.round((100 * reservedUnits) / all)}`;
  const units = all === undefined ? `${reservedUnits} units` : `${reservedUnits} of ${all} units, ${hardware(nodes.flatMap((node) => node.gpus))}`;
  const expected = queue.expectedWaitSeconds;
  const tiles = [
    { name: 'Playing', value: `${players}`, more: list([away && `${away} away`, many(viewers, 'viewer')]) },
    { name: 'Free', value: `${free}`, more: `of ${many(streamers, 'streamer')}` },
    {
      name: 'Waiting',
      value: `${queue.waiting}`,
      more: list([
        queue.longestWaitSeconds !== undefined && `longest ${duration(queue.longestWaitSeconds)}`,
        expected !== undefined && `next about ${duration(expected)}`,
      ]) || 'nobody',
    },
    { name: 'Encoders reserved', value: `${percent}${used}`, more: units },
  ];
  const make = (): HTMLElement => {
    const tile = element('div');
    tile.append(element('dt'), element('dd', 'value'), element('dd', 'more'));
    return tile;
  };
  keyed(id('totals'), tiles, (tile) => tile.name, make, (at, tile) => {
    text(part(at, 'dt'), tile.name);
    text(part(at, '.value'), tile.value);
    text(part(at, '.more'), tile.more);
  });
}

interface Card extends Node {
  title: string;
  rest?: Slice[];
  nothing?: string;
}

function newCard(): HTMLElement {
  const card = element('section', 'node');
  card.append(element('h2'), element('p', 'sum'), element('div', 'problems'), element('div', 'gpus'), element('ul', 'rows'));
  return card;
}

function updateCard(card: HTMLElement, node: Card): void {
  card.setAttribute('aria-label', node.title);
  text(part(card, 'h2'), node.title);
  const slices = [...node.gpus.flatMap((gpu) => gpu.slices), ...(node.rest ?? [])];
  text(part(card, '.sum'), node.nothing ?? list([hardware(node.gpus), counted(slices)]));
  texts(part(card, '.problems'), node.problems, 'problem');
  keyed(part(card, '.gpus'), node.gpus, (gpu) => gpu.uuid, newGpu, updateGpu);
  rows(part(card, ':scope > .rows'), node.rest ?? []);
}

function newGpu(): HTMLElement {
  const gpu = element('div', 'gpu');
  const head = element('div', 'head');
  head.append(element('h3'), element('span'));
  const bar = element('div', 'bar');
  bar.setAttribute('role', 'img');
  const slices = element('details');
  slices.append(element('summary'), element('ul', 'rows'));
  const load = element('div', 'load');
  load.append(element('i', 'to'), element('i', 'from'));
  gpu.append(head, element('div', 'problems'), bar, load, element('p', 'measured'), slices);
  // A click on the bar says more, where there is no mouse to point with.
  bar.addEventListener('click', ({ target }) => {
    const key = (target as Element).closest<HTMLElement>('.slice')?.dataset['key'];
    if (key !== undefined) choose(slices, key);
  });
  return gpu;
}

function choose(slices: HTMLElement, key: string): void {
  (slices as HTMLDetailsElement).open = true;
  for (const row of slices.querySelectorAll<HTMLElement>('li')) {
    const chosen = row.dataset['key'] === key;
    row.classList.toggle('chosen', chosen);
    if (chosen) row.scrollIntoView({ block: 'nearest' });
  }
}

function updateGpu(at: HTMLElement, gpu: Gpu): void {
  const { encoderUnits: all, reservedUnits: reserved, slices } = gpu;
  const scale = Math.max(all ?? 0, reserved, 1);
  text(part(at, 'h3'), gpu.model ?? gpu.uuid);
  part(at, 'h3').title = gpu.uuid;
  const units = all === undefined ? `${reserved} units reserved` : `${reserved} of ${all} units reserved`;
  text(part(at, '.head span'), units);
  texts(part(at, '.problems'), gpu.problems, 'problem');
  const bar = part(at, '.bar');
  bar.setAttribute('aria-label', list([`${units}`, counted(slices)]));
  drawBar(bar, slices, scale, all !== undefined && reserved > all ? all : undefined);
  drawLoad(at, gpu, (all ?? 0) / scale);
  const details = part(at, 'details');
  details.hidden = slices.length === 0;
  text(part(details, 'summary'), many(slices.length, 'slice'));
  rows(part(details, '.rows'), slices);
}

function drawBar(bar: HTMLElement, slices: Slice[], scale: number, end: number | undefined): void {
  const make = (): HTMLElement => {
    const slice = element('div', 'slice');
    slice.append(element('span'));
    return slice;
  };
  keyed(bar, slices, sliceKey, make, (at, slice) => {
    at.dataset['state'] = slice.state;
    at.style.width = `${(100 * slice.units) / scale}%`;
    at.title = `${slice.name}: ${STATES[slice.state]}. ${more(slice)}`;
    text(part(at, 'span'), slice.streamer?.application ?? slice.streamer?.id ?? slice.name);
  });
  bar.querySelector('.end')?.remove();
  if (end === undefined) return;
  const mark = element('i', 'end');
  mark.style.left = `${(100 * end) / scale}%`;
  mark.title = 'All that there is: more is reserved';
  bar.append(mark);
}

/** The load is a share of what the encoder offers, so it is drawn to the same scale as the slices. */
function drawLoad(at: HTMLElement, { encoderLoad: load, encoderSessions: sessions }: Gpu, scale: number): void {
  const line = part(at, '.load');
  line.hidden = load === undefined;
  if (load) {
    part(line, '.from').style.width = `${load.fromPercent * scale}%`;
    part(line, '.to').style.width = `${load.toPercent * scale}%`;
  }
  const measured = load ? `Measured encoder load ${load.fromPercent} to ${load.toPercent} %` : 'Encoder load not measured';
  text(part(at, '.measured'), list([measured, sessions !== undefined && many(sessions, 'encoder session')]));
}

function rows(at: HTMLElement, slices: Slice[]): void {
  const make = (): HTMLElement => {
    const row = element('li');
    const what = element('div', 'what');
    what.append(element('b'), element('span', 'is'));
    row.append(element('i', 'swatch'), what, element('div', 'more'));
    return row;
  };
  keyed(at, slices, sliceKey, make, (row, slice) => {
    part(row, '.swatch').dataset['state'] = slice.state;
    text(part(row, 'b'), slice.name);
    text(part(row, '.is'), STATES[slice.state]);
    text(part(row, '.more'), more(slice));
  });
}

function more({ units, smPercent, vramMib, note, streamer }: Slice): string {
  const { application, stream, players, maxPlayers, away, viewers } = streamer ?? {};
  const size = stream?.replace('x', '×').replace('@', ', ');
  return list([
    note,
    application,
    size && `${size} fps`,
    players !== undefined && maxPlayers !== undefined && (maxPlayers > 1 || players > 0)
      ? `${maxPlayers > 1 ? `${players} of ${many(maxPlayers, 'player')}` : many(players, 'player')}`
      : undefined,
    away && `${away} away`,
    viewers && many(viewers, 'viewer'),
    many(units, 'encoder unit'),
    smPercent !== undefined && `${smPercent} % of the SMs`,
    vramMib !== undefined && `${vramMib} MiB`,
  ]);
}

function relays(servers: Overview['turnServers']): void {
  id('turn').hidden = servers === undefined;
  const numbered = (servers ?? []).map((server, index) => ({ ...server, name: `${index + 1}` }));
  const make = (): HTMLElement => {
    const row = element('li');
    const line = element('div', 'load');
    line.append(element('i'));
    row.append(element('span'), line);
    return row;
  };
  keyed(id('relays'), numbered, (server) => server.name, make, (row, server) => {
    const { name, allocations, maxAllocations, bytesPerSecond, draining } = server;
    const rate = `${(bytesPerSecond / 1e6).toFixed(1)} MB/s`;
    const words = [`${allocations} of ${maxAllocations} allocations`, rate, draining && 'draining'];
    text(part(row, 'span'), `Server ${name}: ${list(words)}`);
    part(row, 'i').style.width = `${(100 * allocations) / Math.max(maxAllocations, 1)}%`;
  });
}

/** `2 GPUs`; a machine without any encodes in software. */
function hardware(gpus: Gpu[]): string {
  const software = gpus.filter(({ uuid }) => uuid.startsWith('CPU-')).length;
  const real = gpus.length - software;
  return list([real > 0 && many(real, 'GPU'), software > 0 && many(software, 'software encoder')]);
}

/** `3 playing, 1 free` */
function counted(slices: Slice[]): string {
  const states = Object.keys(STATES) as State[];
  const counts = states.map((state) => ({ state, count: slices.filter((slice) => slice.state === state).length }));
  const said = counts.filter(({ count }) => count > 0).map(({ state, count }) => `${count} ${state}`);
  return said.join(', ') || 'no slices';
}

/** Pods of two namespaces may have one name, and then share a GPU. */
function sliceKey(slice: Slice, index: number, all: Slice[]): string {
  const before = all.slice(0, index).filter((other) => other.name === slice.name).length;
  return before === 0 ? slice.name : `${slice.name} ${before}`;
}

/** Makes the children of `parent` be one for each item, in order. Those that stay are kept, with what was opened. */
function keyed<T>(
  parent: HTMLElement,
  items: T[],
  key: (item: T, index: number, all: T[]) => string,
  make: () => HTMLElement,
  update: (at: HTMLElement, item: T) => void,
): void {
  const old = new Map<string, HTMLElement>();
  for (const child of parent.children) old.set((child as HTMLElement).dataset['key'] ?? '', child as HTMLElement);
  items.forEach((item, index) => {
    const name = key(item, index, items);
    const child = old.get(name) ?? make();
    old.delete(name);
    child.dataset['key'] = name;
    update(child, item);
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
  for (const child of old.values()) child.remove();
}

function texts(parent: HTMLElement, lines: string[], kind = ''): void {
  keyed(parent, lines, (line) => line, () => element('p', kind), text);
}

/** Only what changes is written: a screen reader would say all of it again. */
function text(at: HTMLElement, words: string): void {
  if (at.textContent !== words) at.textContent = words;
}

function many(count: number, what: string): string {
  return `${count} ${what}${count === 1 ? '' : 's'}`;
}

function list(parts: (string | number | boolean | undefined)[]): string {
  return parts.filter((part) => typeof part === 'string' && part !== '').join(' · ');
}

function element(name: string, kind = ''): HTMLElement {
  const made = document.createElement(name);
  made.className = kind;
  return made;
}

function part(of: HTMLElement, selector: string): HTMLElement {
  return of.querySelector(selector) as HTMLElement;
}

function id(name: string): HTMLElement {
  return document.getElementById(name) as HTMLElement;
}

/** Without the name and password that the page's own address may have: no request may be made with these in it. */
const beside = (path: string): string => new URL(path, location.origin + location.pathname).href;

new Feed<Overview>(beside('overview/events'), beside('overview.json'), draw, (state, words, age) => {
  link.dataset['state'] = state;
  text(id('words'), words);
  text(id('age'), age);
  picture.toggleAttribute('data-stale', state === 'stale' || state === 'denied');
});
