// Bundles src/ to dist/: the pages, and assets with their content's hash in the name, which browsers may keep for ever.
import { readFile, rm, writeFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { build } from 'esbuild';

const PAGES = ['index.html', 'overview.html'];

await rm('dist', { recursive: true, force: true });
const { metafile } = await build({
  entryPoints: ['src/player.ts', 'src/player.css', 'src/overview.ts', 'src/overview.css'],
  outdir: 'dist/assets',
  entryNames: '[name]-[hash]',
  bundle: true,
  minify: true,
  format: 'iife',
  target: 'es2020',
  legalComments: 'linked',
  metafile: true,
});
const names = new Map();
for (const [file, { entryPoint, bytes }] of Object.entries(metafile.outputs)) {
  if (!entryPoint) continue;
  names.set(`assets/${basename(entryPoint).replace('.ts', '.js')}`, `assets/${basename(file)}`);
  console.log(`${file}  ${bytes} bytes`);
}
for (const page of PAGES) {
  let html = await readFile(`src/${page}`, 'utf8');
  for (const [name, hashed] of names) html = html.replace(name, hashed);
  await writeFile(`dist/${page}`, html);
}
