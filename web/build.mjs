/* src/ -> herder/serve/web/static/: scripts and styles under names with their hashes, so browsers keep them for good.
 * `node build.mjs DIRECTORY` writes somewhere else; the tests compare that with what is committed. */

import { build } from "esbuild";
import { copyFile, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const out = process.argv[2] ?? join(here, "../herder/serve/web/static");

await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });
const { metafile } = await build({
  absWorkingDir: here,
  entryPoints: ["src/main.tsx", "src/docs.tsx"],
  entryNames: "assets/[name]-[hash]",
  chunkNames: "assets/[name]-[hash]",
  outdir: out,
  bundle: true,
  splitting: true,
  format: "esm",
  target: ["chrome123", "firefox120", "safari17.5"],
  jsx: "automatic",
  jsxImportSource: "preact",
  minify: true,
  legalComments: "none", // licences.txt has them
  metafile: true,
});

const names = {};
for (const path of Object.keys(metafile.outputs)) {
  const file = basename(path);
  names[file.replace(/-[A-Z0-9]{8}\./, ".")] = file;
}
for (const page of ["index.html", "docs.html"]) {
  const html = await readFile(join(here, page), "utf8");
  const linked = html.replace(/assets\/([a-z.]+)/g, (whole, name) => {
    if (!names[name]) throw new Error(`${page} links ${whole}, which was not built`);
    return `assets/${names[name]}`;
  });
  await writeFile(join(out, page), linked);
}
await copyFile(join(here, "favicon.svg"), join(out, "favicon.svg"));

/** The licences of what is in the bundle. */
const packages = new Set();
for (const input of Object.keys(metafile.inputs)) {
  const found = /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input);
  if (found) packages.add(found[1]);
}
let licences = "The page contains these packages.\n";
for (const name of [...packages].sort()) {
  const folder = join(here, "node_modules", name);
  const { version, license } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
  let text = "";
  for (const file of ["LICENSE", "LICENSE.md", "LICENSE.txt"]) {
    text ||= await readFile(join(folder, file), "utf8").catch(() => "");
  }
  if (!text) throw new Error(`${name} has no licence file`);
  licences += `\n${"-".repeat(100)}\n${name} ${version} (${license})\n\n${text.trim()}\n`;
}
await writeFile(join(out, "licences.txt"), licences);
