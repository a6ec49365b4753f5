/**
 * Runs at the end of `npm ci` in a clone: builds the native library where a C compiler is, and compiles TypeScript where the compiler is
 * installed. It never fails an installation: the WebAssembly engine works without a compiler, the sources run without `dist/`.
 * Each thing that cannot be done costs one line of output that says why. Plain JavaScript for any Node from 20 on.
 */
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const rootDir = dirname(dirname(fileURLToPath(import.meta.url)));
const failureLog = join(rootDir, "build", "native", "failed.txt");

function say(text) {
  console.log(`moe.ts: ${text}`);
}

/** The loader reads the failure log, so that a first use does not try in vain what was just tried. */
function buildNative() {
  const script = join(rootDir, "native", "build.mjs");
  if (!existsSync(script)) return;
  rmSync(failureLog, { force: true });
  const result = spawnSync(process.execPath, [script, "--quiet"], { encoding: "utf8" });
  if (result.status === 0) return;
  const reason = (result.stderr || String(result.error ?? "")).trim();
  try {
    mkdirSync(dirname(failureLog), { recursive: true });
    writeFileSync(failureLog, `${reason}\n`);
  } catch {
    // A read-only place: then there is nothing to remember either.
  }
  say(`native engine not built (${reason.split("\n")[0]}); the WebAssembly engine is used`);
}

function buildTypeScript() {
  const require = createRequire(join(rootDir, "package.json"));
  let compiler;
  try {
    compiler = join(dirname(require.resolve("typescript/package.json")), "bin", "tsc");
  } catch {
    say("dist/ not built: typescript is not installed (a development dependency)");
    return;
  }
  const result = spawnSync(process.execPath, [compiler, "-b"], { cwd: rootDir, encoding: "utf8" });
  if (result.status !== 0)
    say(`dist/ not built completely: ${(result.stdout || result.stderr || String(result.error)).trim().split("\n")[0]}`);
}

/** The npm package of Node carries 67 MB of C headers that nothing here compiles against; a clone stays below 400 MB without them. */
function dropNodeHeaders() {
  const packages = join(rootDir, "node_modules", "node", "node_modules");
  if (!existsSync(packages)) return;
  for (const name of readdirSync(packages).filter((entry) => entry.startsWith("node-"))) {
    rmSync(join(packages, name, "include"), { recursive: true, force: true });
  }
}

/** `npx moe` in a clone: without a program of this name npx would install the clone into its cache, and build it there. */
function linkCommand() {
  const programs = join(rootDir, "node_modules", ".bin");
  if (process.platform === "win32" || !existsSync(join(programs, "node"))) return;
  const path = join(programs, "moe");
  const text = `#!/bin/sh\nhere=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd -P)\nexec "$here/node" "$here/../../src/cli/main.ts" "$@"\n`;
  try {
    writeFileSync(path, text);
    chmodSync(path, 0o755);
  } catch (error) {
    say(`npx moe is not there in this clone (${error instanceof Error ? error.message : String(error)}); npm run moe -- is`);
  }
}

dropNodeHeaders();
linkCommand();
buildNative();
buildTypeScript();
