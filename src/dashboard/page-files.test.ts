import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { loadPage } from "./page-files.ts";

let root = "";
/** A page whose build takes a while, and notes in `builds` that it ran. */
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "moe-page-"));
  const folder = join(root, "dashboard");
  mkdirSync(join(folder, "src"), { recursive: true });
  mkdirSync(join(folder, "node_modules"));
  writeFileSync(join(folder, "node_modules", ".package-lock.json"), "{}");
  writeFileSync(join(folder, "package.json"), JSON.stringify({ name: "page", scripts: { build: "node build.cjs" } }));
  writeFileSync(
    join(folder, "build.cjs"),
    `const fs = require("fs");
     fs.appendFileSync("builds", "x");
     fs.mkdirSync("dist", { recursive: true });
     setTimeout(() => fs.writeFileSync("dist/index.html", "<p>page</p>"), 700);`,
  );
});
afterEach(() => {
  rmSync(root, { recursive: true, force: true });
});
const builds = (): string => readFileSync(join(root, "dashboard", "builds"), "utf8");

test("two first uses at once build the page once, and both have it", async () => {
  const program = `import { loadPage } from ${JSON.stringify(new URL("./page-files.ts", import.meta.url).href)};
    console.log(loadPage(${JSON.stringify(root)}).get("/").body.toString());`;
  const use = (): Promise<string> =>
    new Promise((resolve) => {
      const child = spawn(process.execPath, ["--input-type=module", "-e", program], { stdio: ["ignore", "pipe", "pipe"] });
      let said = "";
      for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk: Buffer) => (said += chunk.toString()));
      child.on("close", () => {
        resolve(said.trim());
      });
    });
  expect(await Promise.all([use(), use()])).toEqual(["<p>page</p>", "<p>page</p>"]);
  expect(builds()).toBe("x");
});

test("a build that fails says why, and the next use tries again", () => {
  writeFileSync(
    join(root, "dashboard", "build.cjs"),
    `require("fs").appendFileSync("builds", "x"); console.error("no space left"); process.exit(1);`,
  );
  expect(() => loadPage(root)).toThrow(/cannot be built: npm run build in .* failed \(.*no space left/s);
  expect(() => loadPage(root)).toThrow(/no space left/);
  expect(builds()).toBe("xx");
});
