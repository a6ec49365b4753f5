/**
 * The built page (`dashboard/dist`), read whole into memory when the dashboard starts: a request is looked up in a map, so that no path of a
 * request ever reaches the file system. In a clone the page is built at the first use; the published package has it.
 */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import { MoeError } from "../util/errors.ts";
import { lockFolder, lockName } from "../util/lock.ts";

export interface PageFile {
  readonly type: string;
  readonly body: Buffer;
  readonly gzip: Buffer;
  readonly brotli: Buffer;
  readonly tag: string;
  /** The name holds a hash of the content: it may be kept for ever. */
  readonly immutable: boolean;
}

const types: Readonly<Record<string, string>> = {
  html: "text/html; charset=utf-8",
  js: "text/javascript; charset=utf-8",
  css: "text/css; charset=utf-8",
  svg: "image/svg+xml",
};

/** The package's own folder: above `src/dashboard` in a clone and `dist/dashboard` in the published package. */
export function packageRoot(): string {
  return dirname(dirname(dirname(fileURLToPath(import.meta.url))));
}

/**
 * Files of the page by path ("/" is index.html). Builds the page where it is not built or older than its sources: `npm ci` and the page's build
 * script, in `dashboard/`. Throws `resource` where that fails, with what npm said.
 */
export function loadPage(root = packageRoot(), onNote: (note: string) => void = () => undefined): ReadonlyMap<string, PageFile> {
  const folder = join(root, "dashboard", "dist");
  if (isStale(root, folder)) buildPageAlone(root, folder, onNote);
  if (!existsSync(join(folder, "index.html")))
    throw new MoeError("resource", `${folder}: expected the built page of the dashboard, got none; npm run build in dashboard/ makes it`);
  const files = new Map<string, PageFile>();
  for (const name of readdirSync(folder, { recursive: true, encoding: "utf8" })) {
    const path = join(folder, name);
    const type = types[name.split(".").at(-1) ?? ""];
    if (type === undefined || !statSync(path).isFile()) continue;
    const url = `/${name.replaceAll("\\", "/")}`;
    const file = pageFile(readFileSync(path), type, url.startsWith("/assets/"));
    files.set(url === "/index.html" ? "/" : url, file);
  }
  return files;
}

function pageFile(body: Buffer, type: string, immutable: boolean): PageFile {
  return {
    type,
    body,
    gzip: gzipSync(body, { level: 9 }),
    brotli: brotliCompressSync(body, { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } }),
    tag: `"${createHash("sha256").update(body).digest("hex").slice(0, 16)}"`,
    immutable,
  };
}

/** Not built, or a source is newer. Without sources (the published package) what is there is what there is. */
function isStale(root: string, folder: string): boolean {
  const sources = join(root, "dashboard", "src");
  if (!existsSync(sources)) return false;
  const built = join(folder, "index.html");
  if (!existsSync(built)) return true;
  const builtAt = statSync(built).mtimeMs;
  const files = readdirSync(sources, { recursive: true, encoding: "utf8" }).map((name) => join(sources, name));
  return [...files, join(root, "dashboard", "index.html"), join(root, "dashboard", "package.json")].some(
    (path) => existsSync(path) && statSync(path).mtimeMs > builtAt,
  );
}

/** Two first uses at once would build into each other: the second waits, and finds what the first has built. */
function buildPageAlone(root: string, folder: string, onNote: (note: string) => void): void {
  using _ = waitForLock(join(root, "dashboard"));
  if (isStale(root, folder)) buildPage(root, onNote);
}

function waitForLock(folder: string): Disposable {
  const patience = performance.now() + 300_000;
  for (let failedWhileFree = 0; ;) {
    try {
      return lockFolder(folder, "a page that no process builds");
    } catch (error) {
      // Gone between our look at it and now, or a folder that nobody can write to.
      if (!existsSync(join(folder, lockName))) failedWhileFree++;
      if (failedWhileFree > 1 || performance.now() > patience) throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 500);
    }
  }
}

function buildPage(root: string, onNote: (note: string) => void): void {
  const folder = join(root, "dashboard");
  const npm = (what: string, args: readonly string[]): void => {
    const result = spawnSync("npm", args, { cwd: folder, encoding: "utf8", shell: process.platform === "win32" });
    if (result.status === 0) return;
    const reason = (result.stderr || result.stdout || String(result.error ?? "")).trim().split("\n").slice(-3).join(" ");
    throw new MoeError("resource", `the dashboard's page cannot be built: ${what} in ${folder} failed (${reason.slice(0, 400)})`);
  };
  onNote("building the dashboard's page (once)");
  if (!existsSync(join(folder, "node_modules", ".package-lock.json"))) npm("npm ci", ["ci", "--no-audit", "--no-fund", "--loglevel=error"]);
  npm("npm run build", ["run", "build", "--silent"]);
}
