// Bundles src/ to dist/: index.html, and assets with their content's hash in the name, which browsers may keep for
// ever.
import { readFile, rm, writeFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { build } from 'esbuild';

await rm('dist', { recursive: true, force: true });
const { metafile } = await build({
  entryPoints: ['src/player.ts', 'src/player.css'],
  outdir: 'dist/assets',
  entryNames: '[name]-[hash]',
  bundle: true,
  minify: true,
  format: 'iife',
  target: 'es2020',
  legalComments: 'linked',
  metafile: true,
});
let html = await readFile('src/index.html', 'utf8');
for (const [file, { entryPoint, bytes }] of Object.entries(metafile.outputs)) {
  if (!entryPoint) continue;
  html = html.replace(`assets/${basename(entryPoint).replace('.ts', '.js')}`, `assets/${basename(file)}`);
  console.log(`${file}  ${bytes} bytes`);
}
await writeFile('dist/index.html', html);
