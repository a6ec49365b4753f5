/**
 * The published package: packed, installed in an empty folder, and used through its public exports by the example that the
 * documentation shows. Needs the package registry for the dependencies; skips visibly where it is not reachable.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { copyFileSync, existsSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, test } from "vitest";

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const folder = mkdtempSync(join(tmpdir(), "moe-package-"));
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
}, 60_000);
const registry =
  spawnSync("npm", ["ping"], { encoding: "utf8", timeout: 20_000 }).status === 0 ||
  spawnSync("npm", ["view", "koffi", "version"], { timeout: 20_000 }).status === 0;

/** Bytes that files take: links are not followed, a file with two names counts once. */
function sizeOf(path: string, seen = new Set<number>()): number {
  const stat = lstatSync(path);
  if (stat.isDirectory()) return readdirSync(path).reduce((n, name) => n + sizeOf(join(path, name), seen), 0);
  if (stat.nlink > 1 && seen.has(stat.ino)) return 0;
  seen.add(stat.ino);
  return stat.size;
}

/** What the installed package's dashboard serves at its address: the page that was built before it was packed. */
function pageOf(main: string, cwd: string): string {
  const script = `
    const { spawn } = require("node:child_process");
    const child = spawn(process.execPath, [process.argv[1], "dashboard", ".", "--port", "0", "--json"], { stdio: ["ignore", "pipe", "inherit"] });
    child.stdout.once("data", async (text) => {
      const { url } = JSON.parse(text);
      process.stdout.write(await (await fetch(url)).text());
      child.kill("SIGTERM");
    });
    child.once("exit", (code) => { process.exitCode = code ?? 1; });`;
  return execFileSync(process.execPath, ["-e", script, main], {
    cwd,
    encoding: "utf8",
    timeout: 60_000,
    stdio: ["ignore", "pipe", "inherit"],
  });
}

describe("the package", () => {
  test("has dependencies of less than 400 MB in a clone", () => {
    // Without what programs that ran since keep there.
    const caches = [".vite", ".vitest-cache", ".cache"].map((name) => join(root, "node_modules", name)).filter((path) => existsSync(path));
    const bytes = sizeOf(join(root, "node_modules")) - caches.reduce((sum, path) => sum + sizeOf(path), 0);
    expect(bytes).toBeGreaterThan(10e6);
    expect(bytes).toBeLessThan(400e6);
  });

  test("has a lock file that names every platform's packages, or npm ci refuses it on another", () => {
    const { packages } = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")) as {
      packages: Record<string, { version?: string; optionalDependencies?: Record<string, string> }>;
    };
    const optional = Object.values(packages).flatMap((entry) => Object.keys(entry.optionalDependencies ?? {}));
    expect(optional.length).toBeGreaterThan(0);
    const locked = new Set(Object.keys(packages).map((path) => path.replace(/^.*node_modules\//, "")));
    expect(optional.filter((name) => !locked.has(name))).toEqual([]);
  });

  test.skipIf(!registry)(
    `installs in an empty folder and runs the example${registry ? "" : " (skipped: the package registry is not reachable)"}`,
    { timeout: 300_000 },
    () => {
      const run = (command: string, args: readonly string[], cwd: string): string =>
        execFileSync(command, args, { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });
      const [packed] = JSON.parse(run("npm", ["pack", "--json", "--pack-destination", folder], root).replace(/^[^[]*/, "")) as {
        filename: string;
        files: { path: string }[];
      }[];
      const paths = (packed?.files ?? []).map(({ path }) => path);
      expect(paths).toContain("dist/api/index.js");
      expect(paths).toContain("dist/api/index.d.ts");
      expect(paths).toContain("native/prebuilt/moe.wasm");
      expect(paths).toContain("dashboard/dist/index.html");
      expect(paths.filter((path) => path.startsWith("dashboard/") && !path.startsWith("dashboard/dist/"))).toEqual([]);
      expect(paths.filter((path) => /\.test\.|golden|node_modules/.test(path))).toEqual([]);

      const user = join(folder, "user");
      mkdirSync(user);
      writeFileSync(join(user, "package.json"), JSON.stringify({ name: "user", type: "module", private: true }));
      run("npm", ["install", "--no-audit", "--no-fund", join(folder, packed?.filename ?? "")], user);
      copyFileSync(join(root, "examples", "loop.ts"), join(user, "loop.ts"));
      const text = run(process.execPath, ["loop.ts"], user);
      expect(text).toMatch(/\d+ parameters, \d+ active/);
      expect(text).toMatch(/Tell me.*Muse/s);
      const doctor = JSON.parse(
        run(process.execPath, [join("node_modules", "moe.ts", "dist", "cli", "main.js"), "doctor", "--json"], user),
      ) as { engine: string };
      expect(["native", "wasm"]).toContain(doctor.engine);
      expect(pageOf(join(user, "node_modules", "moe.ts", "dist", "cli", "main.js"), user)).toMatch(/<title>moe dashboard<\/title>/);
      expect(readFileSync(join(user, "node_modules", "moe.ts", "LICENSE"), "utf8")).toContain("Apache License");
    },
  );
});
