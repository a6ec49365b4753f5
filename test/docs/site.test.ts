/**
 * The documentation's site: built, all its links followed, and its key pages opened in Chromium. MOE_SCREENSHOTS names a folder for pictures. The
 * build needs the packages of docs/ (`.ci/run` installs them), the pages need Chromium.
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { createServer, type Server } from "node:http";
import { createRequire } from "node:module";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { extname, join, posix } from "node:path";
import { fileURLToPath } from "node:url";
import type { Browser, BrowserContextOptions, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { chromiumNote, chromiumPath, launchChromium } from "../browser/chromium.ts";

const root = fileURLToPath(new URL("../../", import.meta.url));
const docs = join(root, "docs");
const isInstalled = existsSync(join(docs, "node_modules", ".package-lock.json"));
const note = isInstalled ? "" : " (skipped: docs/node_modules is not there; (cd docs && npm ci) installs it)";

describe("the package of the documentation", () => {
  test("stays out of the published one", () => {
    const { files } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { files: string[] };
    expect(files.filter((pattern) => /^(\.\/)?docs|^\*|^\.\/?$/.test(pattern))).toEqual([]);
  });

  test("has a lock file that names every platform's packages, and no registry", () => {
    const text = readFileSync(join(docs, "package-lock.json"), "utf8");
    const { packages } = JSON.parse(text) as {
      packages: Record<string, { resolved?: string; optionalDependencies?: Record<string, string> }>;
    };
    const locked = new Set(Object.keys(packages).map((path) => path.replace(/^.*node_modules\//, "")));
    const optional = Object.values(packages).flatMap((entry) => Object.keys(entry.optionalDependencies ?? {}));
    expect(optional.filter((name) => !locked.has(name))).toEqual([]);
    expect(Object.values(packages).filter(({ resolved }) => resolved !== undefined)).toEqual([]);
  });
});

describe.skipIf(!isInstalled)(`the built site${note}`, () => {
  let site = "";

  beforeAll(() => {
    site = mkdtempSync(join(tmpdir(), "moe-docs-"));
    const result = spawnSync("npm", ["run", "build", "--silent", "--", "--outDir", site], { cwd: docs, encoding: "utf8" });
    if (result.status !== 0) throw new Error(`the site does not build:\n${result.stdout}${result.stderr}`);
  }, 300_000);
  afterAll(() => {
    rmSync(site, { recursive: true, force: true });
  });

  test("has no link to a page, file or heading that is not there, and loads nothing from elsewhere", () => {
    const pages = new Map(pagesOf(site).map((path) => [path, readFileSync(join(site, path), "utf8")]));
    const ids = new Map([...pages].map(([path, html]) => [path, new Set(valuesOf(html, "id"))]));
    const dead: string[] = [];
    for (const [path, html] of pages) {
      for (const href of valuesOf(html, "href")) {
        const problem = problemOf(href, path, site, ids);
        if (problem !== null) dead.push(`${path}: ${href}: ${problem}`);
      }
      for (const source of valuesOf(html, "src")) {
        if (/^(https?:)?\/\//.test(source)) dead.push(`${path}: loads ${source}`);
        else if (source.startsWith("/") && !existsSync(join(site, source))) dead.push(`${path}: no file ${source}`);
      }
    }
    expect(pages.size).toBeGreaterThan(40);
    expect(dead).toEqual([]);
  });

  describe.skipIf(chromiumPath === null)(`in Chromium${chromiumNote}`, () => {
    let browser: Browser;
    let server: Server;
    let url = "";
    /** What went wrong on a page, and where it asked for something else than the site. */
    let trouble: string[] = [];

    beforeAll(async () => {
      [browser, server] = [await launchChromium(), await serve(site)];
      url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
    }, 60_000);
    afterAll(async () => {
      await browser?.close();
      server?.close();
    });
    afterEach(() => {
      const found = trouble;
      trouble = [];
      expect(found).toEqual([]);
    });

    async function open(path: string, options: BrowserContextOptions = {}): Promise<Page> {
      const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, locale: "en-US", ...options });
      const page = await context.newPage();
      page.on("console", (message) => {
        if (message.type() === "error" || message.type() === "warning") trouble.push(`${page.url()}: ${message.text()}`);
      });
      page.on("pageerror", (error) => trouble.push(error.stack ?? error.message));
      page.on("request", (request) => {
        if (!/^(data|blob):/.test(request.url()) && !request.url().startsWith(url)) trouble.push(`asked for ${request.url()}`);
      });
      page.on("response", (response) => {
        if (response.status() >= 400) trouble.push(`${response.status()} for ${response.url()}`);
      });
      await page.goto(url + path, { waitUntil: "networkidle" });
      return page;
    }

    const technique = "techniques/gating-normalization.html";
    test.each(["light", "dark"] as const)(
      "shows its first pages and a technique in %s, as axe wants them",
      { timeout: 120_000 },
      async (colorScheme) => {
        const found: Record<string, string[]> = {};
        const visited = ["", "first-ten-minutes.html", technique, "reference/configuration.html", "zh/"];
        for (const path of visited) {
          const page = await open(path, { colorScheme });
          expect(await page.locator("main h1").first().innerText()).not.toBe("");
          expect(await page.locator("html.dark").count()).toBe(colorScheme === "dark" ? 1 : 0);
          found[path] = await violations(page);
          await picture(page, `${path.replaceAll(/\W+/g, "-") || "home"}-${colorScheme}`);
          await page.context().close();
        }
        expect(found).toEqual(Object.fromEntries(visited.map((path) => [path, []])));
      },
    );

    test("draws equations, with words for those who do not see them", async () => {
      const page = await open(technique);
      const equations = page.locator("main mjx-container");
      expect(await equations.count()).toBeGreaterThan(0);
      const box = await equations.first().locator("svg").boundingBox();
      expect(box?.width ?? 0).toBeGreaterThan(4);
      expect(await equations.first().locator("math").count()).toBe(1);
      expect(await page.locator("main").innerText()).not.toMatch(/\$[^\s$][^$\n]*\$/);
      await page.context().close();
    });

    test("fits a window of 360 pixels: only tables, code and equations scroll, by themselves", { timeout: 120_000 }, async () => {
      for (const path of [
        "",
        "first-ten-minutes.html",
        technique,
        "platforms.html",
        "reference/configuration.html",
        "lab/",
        "zh/first-ten-minutes.html",
      ]) {
        const page = await open(path, { viewport: { width: 360, height: 740 } });
        expect(await page.evaluate<number>("document.documentElement.scrollWidth"), path).toBeLessThanOrEqual(360);
        await page.context().close();
      }
    });

    test("is searched without a server, and leads from one language to the other", { timeout: 60_000 }, async () => {
      const page = await open("");
      await page.keyboard.press("Control+k");
      await page.locator("#localsearch-input").fill("drop rate coefficient");
      await page.locator("#localsearch-list a").first().waitFor();
      await page.keyboard.press("Escape");
      await page.goto(`${url}zh/`);
      expect(await page.locator("html").getAttribute("lang")).toBe("zh-CN");
      await page.keyboard.press("Control+k");
      await page.locator("#localsearch-input").fill("专家");
      await page.locator("#localsearch-list a").first().waitFor();
      await page.keyboard.press("Escape");
      expect(await page.locator("main h1").first().innerText()).not.toBe("");
      await page.context().close();
    });
  });
});

function pagesOf(site: string): string[] {
  return readdirSync(site, { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".html"))
    .map((name) => name.replaceAll("\\", "/"));
}

function valuesOf(html: string, attribute: "href" | "src" | "id"): string[] {
  const pattern = new RegExp(`\\s${attribute}="([^"]*)"`, "g");
  return [...html.matchAll(pattern)].map(([, value = ""]) => value.replaceAll("&amp;", "&"));
}

/** What is wrong with a link of the page at `path`, or null. Other sites are not asked. */
function problemOf(href: string, path: string, site: string, ids: ReadonlyMap<string, ReadonlySet<string>>): string | null {
  if (/^[a-z][a-z\d+.-]*:/i.test(href)) return null;
  const [before = "", fragment = ""] = href.split("#");
  const joined = before === "" ? path : before.startsWith("/") ? before.slice(1) : posix.join(posix.dirname(path), before);
  let target = decodeURI(joined.split("?")[0] ?? "");
  if (target === "" || target.endsWith("/")) target += "index.html";
  if (!existsSync(join(site, target))) return "no such page";
  const known = ids.get(target);
  return fragment === "" || known === undefined || known.has(decodeURIComponent(fragment)) ? null : "no such heading";
}

const types: Readonly<Record<string, string>> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".css": "text/css",
  ".json": "application/json",
  ".svg": "image/svg+xml",
  ".png": "image/png",
};

/** The files of a folder at a port of their own. */
async function serve(folder: string): Promise<Server> {
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url ?? "/", "http://site");
    const path = join(folder, posix.normalize(decodeURIComponent(pathname)), pathname.endsWith("/") ? "index.html" : "");
    if (!path.startsWith(folder) || !existsSync(path) || !statSync(path).isFile()) return response.writeHead(404).end();
    return response.writeHead(200, { "content-type": types[extname(path)] ?? "application/octet-stream" }).end(readFileSync(path));
  });
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  return server;
}

async function picture(page: Page, name: string): Promise<void> {
  const pictures = process.env["MOE_SCREENSHOTS"];
  if (pictures !== undefined) await page.screenshot({ path: join(pictures, `${name}.png`) });
}

interface AxeResult {
  readonly violations: readonly {
    readonly id: string;
    readonly nodes: readonly { readonly html: string; readonly failureSummary: string }[];
  }[];
}
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

async function violations(page: Page): Promise<string[]> {
  await page.evaluate(axe);
  const result = await page.evaluate<AxeResult>(
    "axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'] })",
  );
  return result.violations.map(
    ({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html.slice(0, 120)} ${failureSummary}`).join("; ")}`,
  );
}
