/**
 * The dashboard in a browser: every view on a run that the real trainer recorded, live, compared, broken, empty and hostile; keyboard, themes,
 * languages, a narrow window; and what axe finds. MOE_SCREENSHOTS names a folder for pictures of the views.
 */
import { appendFileSync, cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Browser, BrowserContextOptions, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { startDashboard, type Dashboard } from "../../src/dashboard/index.ts";
import { post, removeFolder, serveTiny, writeTinyModel } from "../server/harness.ts";
import { chromiumNote, chromiumPath, launchChromium } from "./chromium.ts";
import { recordedSteps, recordRuns } from "./recorded-run.ts";

const views = ["overview", "training", "balance", "gates", "similarity", "samples", "pipeline", "results"] as const;
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

interface AxeResult {
  readonly violations: readonly {
    readonly id: string;
    readonly nodes: readonly { readonly html: string; readonly failureSummary: string }[];
  }[];
}

describe.skipIf(chromiumPath === null)(`the dashboard in Chromium${chromiumNote}`, () => {
  let [folder, runs] = ["", ""];
  let browser: Browser;
  let dashboard: Dashboard;
  /** What went wrong on a page, and where it asked for something else than the dashboard. */
  let trouble: string[] = [];

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), "moe-dashboard-"));
    runs = await recordRuns(folder);
    dashboard = await startDashboard({ folder: runs, host: "127.0.0.1", port: 0 });
    browser = await launchChromium();
  }, 240_000);
  afterAll(async () => {
    await browser?.close();
    await dashboard?.close();
    rmSync(folder, { recursive: true, force: true });
  });
  afterEach(() => {
    const found = trouble;
    trouble = [];
    expect(found).toEqual([]);
  });

  async function open(path = "", options: BrowserContextOptions = {}, url = dashboard.url): Promise<Page> {
    const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, locale: "en-US", ...options });
    const page = await context.newPage();
    page.on("console", (message) => {
      if (message.type() === "error" || message.type() === "warning") trouble.push(`${page.url()}: ${message.text()}`);
    });
    page.on("pageerror", (error) => trouble.push(error.stack ?? error.message));
    page.on("dialog", (dialog) => {
      trouble.push(`a dialog: ${dialog.message()}`);
      void dialog.dismiss();
    });
    page.on("request", (request) => {
      if (!request.url().startsWith(url)) trouble.push(`asked for ${request.url()}`);
    });
    await page.goto(url + path);
    return page;
  }
  const idOf = async (name: string, url = dashboard.url): Promise<string> => {
    const { runs } = (await (await fetch(`${url}api/runs`)).json()) as { runs: { id: string; name: string }[] };
    return runs.find((run) => run.name === name)?.id ?? "";
  };
  const metrics = (name: string): Record<string, unknown>[] =>
    readFileSync(join(runs, name, "metrics.jsonl"), "utf8")
      .split("\n")
      .flatMap((line) => (line.startsWith("{") ? [JSON.parse(line) as Record<string, unknown>] : []));
  /** Waits until the page has drawn what it asked for. */
  const settled = async (page: Page): Promise<void> => {
    await page.waitForLoadState("domcontentloaded");
    await page.locator("main .card, main .chart, main .note").first().waitFor();
    await page.waitForTimeout(250);
  };
  const violations = async (page: Page): Promise<string[]> => {
    await page.evaluate(axe);
    const result = await page.evaluate<AxeResult>(
      "axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'] })",
    );
    return result.violations.map(
      ({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html.slice(0, 120)} ${failureSummary}`).join("; ")}`,
    );
  };

  /** Goes to a view without loading the page again. */
  const turnTo = async (page: Page, view: (typeof views)[number], run: string): Promise<void> => {
    await page.evaluate(`location.hash = "#/${view}?run=${run}"`);
    await page.locator(`nav a[href="#/${view}"][aria-current]`).waitFor();
    await settled(page);
  };
  const picture = async (page: Page, name: string, fullPage = true): Promise<void> => {
    const pictures = process.env["MOE_SCREENSHOTS"];
    if (pictures !== undefined) await page.screenshot({ path: join(pictures, `${name}.png`), fullPage });
  };

  test.each(["light", "dark"] as const)(
    "shows every view of a recorded run in %s without an error, as axe wants it",
    { timeout: 90_000 },
    async (colorScheme) => {
      const run = await idOf("moe");
      const page = await open(`#/overview?run=${run}`, { colorScheme });
      const found: Record<string, string[]> = {};
      for (const view of views) {
        await turnTo(page, view, run);
        found[view] = await violations(page);
        await picture(page, `${view}-${colorScheme}`);
      }
      await page.context().close();
      expect(found).toEqual(Object.fromEntries(views.map((view) => [view, []])));
    },
  );

  test("shows what the records hold: loss, load of a cell, drop rate, similarity, the text of a sample", async () => {
    const run = await idOf("moe");
    const page = await open(`#/overview?run=${run}`);
    await settled(page);
    const last = metrics("moe").findLast(({ type }) => type === "step");
    const tiles = await page.locator(".tiles").first().innerText();
    expect(tiles).toContain(`${recordedSteps} / ${recordedSteps}`);
    expect(tiles).toContain(String(Number(Number(last?.["loss"]).toPrecision(4))));
    const heatmap = page.locator("canvas[role=application]").first();
    await heatmap.focus();
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("ArrowRight");
    const layers = last?.["layers"] as { load: number[] }[];
    const share = layers[0]?.load[1] ?? 0;
    const tip = await page.locator(".heatmap .tip").first().innerText();
    expect(tip).toMatch(/^layer 0, expert 1: /);
    expect(tip).toContain(share === 0 ? "dead" : `${(100 * share).toFixed(1)}%`);
    await page.goto(`${dashboard.url}#/samples?run=${run}`);
    const sample = readFileSync(join(runs, "moe", "samples.jsonl"), "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as { prompt: number; tokens: string[]; experts: number[][][] })
      .findLast(({ prompt }) => prompt === 0);
    const spans = page.locator("[data-testid=sample] span");
    await spans.first().waitFor();
    expect(await spans.count()).toBe(sample?.tokens.length);
    expect(
      await spans.evaluateAll((all) =>
        all.map((span) => Number((span as unknown as { dataset: Record<string, string> }).dataset["expert"])),
      ),
    ).toEqual(sample?.experts[0]?.map((chosen) => chosen[0]));
    await page.goto(`${dashboard.url}#/results?run=${run}`);
    await page.getByText("± 0.0625").waitFor();
    await page.getByText("upcycling.json").waitFor();
    await page.getByText("plan/plan.json").waitFor();
    await page.goto(`${dashboard.url}#/pipeline?run=${run}`);
    await page.getByText("bubble").first().waitFor();
    await page.context().close();
  }, 60_000);

  test("goes through steps by keyboard and keeps the place in the address", async () => {
    const page = await open(`#/overview?run=${await idOf("moe")}`);
    await settled(page);
    const slider = page.locator("#scrubber");
    await slider.focus();
    for (let i = 0; i < 3; i++) await page.keyboard.press("ArrowLeft");
    await page.waitForURL(/step=37/);
    await page.getByText("37", { exact: true }).first().waitFor();
    await page.reload();
    await settled(page);
    expect(await slider.inputValue()).toBe("37");
    await page.keyboard.press("Tab");
    expect(await page.evaluate("document.activeElement.className")).toBe("skip");
    await page.context().close();
  }, 60_000);

  test("compares runs: a line each, by color and name", async () => {
    const page = await open(`#/training?run=${await idOf("moe")}`);
    await settled(page);
    await page.getByLabel("compare: dense").check();
    await page.waitForURL(/run=[0-9a-f]{12},[0-9a-f]{12}/);
    const legend = page.locator(".legend").first();
    await legend.getByText("dense · training").waitFor();
    expect(await legend.innerText()).toContain("moe · training");
    const strokes = await page
      .locator("figure")
      .first()
      .locator("path[fill=none]")
      .evaluateAll((all) => all.map((path) => (path as unknown as { getAttribute(name: string): string }).getAttribute("stroke")));
    expect(new Set(strokes.filter(Boolean)).size).toBe(2);
    await page.context().close();
  }, 60_000);

  test("speaks Chinese, and remembers the language and the theme", async () => {
    const page = await open("#/overview", { locale: "zh-CN" });
    await settled(page);
    await page.getByRole("link", { name: "总览" }).waitFor();
    expect(await page.getAttribute("html", "lang")).toBe("zh-CN");
    expect(await violations(page)).toEqual([]);
    await page.getByRole("button", { name: /English/ }).click();
    await page.getByLabel("Theme").selectOption("dark");
    await page.reload();
    await page.getByRole("link", { name: "Overview" }).waitFor();
    expect(await page.getAttribute("html", "data-theme")).toBe("dark");
    await page.context().close();
  }, 60_000);

  test("fits every view into a window of 360 pixels", { timeout: 60_000 }, async () => {
    const run = await idOf("moe");
    const page = await open(`#/overview?run=${run}`, { viewport: { width: 360, height: 740 } });
    const widths: Record<string, unknown> = {};
    for (const view of views) {
      await turnTo(page, view, run);
      widths[view] = await page.evaluate("document.documentElement.scrollWidth");
      await picture(page, `${view}-phone`, false);
    }
    await page.context().close();
    expect(widths).toEqual(Object.fromEntries(views.map((view) => [view, 360])));
  });

  test("loads in less than 300 KB compressed, and nothing from elsewhere", async () => {
    const page = await browser.newPage();
    const sizes: Promise<number>[] = [];
    page.on("requestfinished", (request) => {
      if (!request.url().includes("/api/")) sizes.push(request.sizes().then(({ responseBodySize }) => responseBodySize));
    });
    await page.goto(dashboard.url);
    await settled(page);
    const bytes = (await Promise.all(sizes)).reduce((a, b) => a + b, 0);
    expect(sizes.length).toBeGreaterThanOrEqual(3);
    expect(bytes).toBeGreaterThan(10_000);
    expect(bytes).toBeLessThan(300_000);
    await page.close();
  });

  describe("on runs that change or are broken", () => {
    let other = "";
    let live: Dashboard;
    const write = (name: string, text: string): void => {
      mkdirSync(join(other, name), { recursive: true });
      writeFileSync(join(other, name, "metrics.jsonl"), text);
    };
    beforeAll(async () => {
      other = mkdtempSync(join(tmpdir(), "moe-dashboard-live-"));
      cpSync(join(runs, "moe"), join(other, "growing"), { recursive: true });
      write("empty", "");
      const good = readFileSync(join(runs, "moe", "metrics.jsonl"), "utf8").split("\n");
      write("corrupt", [...good.slice(0, 10), '{"type":"step","step":', "\u0000\u0001 binary", ...good.slice(10)].join("\n"));
      const script = '</script><script>alert(1)</script><img src=x onerror="alert(2)">';
      write(
        `evil ${script.replaceAll("/", "")}`,
        [
          ...good,
          JSON.stringify({ type: "evaluation", step: 9, name: script, loss: 1e308, standardError: 1e308 }),
          JSON.stringify({
            type: "step",
            step: 1e15,
            loss: 1e308,
            gradNorm: 1e-320,
            [script]: 1,
            layers: [{ layer: 0, dropRate: 1e300, load: [1, 1e300, -5, 0] }],
          }),
          `{"type":"step","step":1000000000000001,"loss":${"[".repeat(50_000)}${"]".repeat(50_000)}}`,
        ].join("\n") + "\n",
      );
      const evil = join(other, `evil ${script.replaceAll("/", "")}`);
      writeFileSync(
        join(evil, "samples.jsonl"),
        `${JSON.stringify({ step: 1, prompt: 0, promptTokens: 1, tokens: [script, script], layers: [0], experts: [[[0], [1e9]]], weights: [[[1], [1]]] })}\n`,
      );
      writeFileSync(
        join(evil, "plan.json"),
        JSON.stringify({ best: { pp: script, [script]: [script] }, deep: JSON.parse(`${"[".repeat(5000)}${"]".repeat(5000)}`) as unknown }),
      );
      writeFileSync(
        join(evil, "x.trace.json"),
        JSON.stringify({
          traceEvents: [{ ph: "X", name: script, pid: script, tid: script, ts: -1e300, dur: 1e300, args: { [script]: script } }],
        }),
      );
      writeFileSync(join(evil, "config.json"), JSON.stringify({ numSteps: 1e308, samples: { prompts: [script] }, model: script }));
      live = await startDashboard({ folder: other, host: "127.0.0.1", port: 0 });
    });
    afterAll(async () => {
      await live?.close();
      rmSync(other, { recursive: true, force: true });
    });

    test("follows a live run by its events, without asking over and over", async () => {
      const page = await open(`#/overview?run=${await idOf("growing", live.url)}`, {}, live.url);
      await settled(page);
      const asked: string[] = [];
      page.on("request", (request) => asked.push(request.url()));
      await page.waitForTimeout(1500);
      expect(asked).toEqual([]);
      const record = metrics("moe").findLast(({ type }) => type === "step");
      appendFileSync(join(other, "growing", "metrics.jsonl"), `${JSON.stringify({ ...record, step: 41, loss: 1.2345 })}\n`);
      const tiles = page.locator(".tiles").first();
      await tiles.getByText("41 /").waitFor({ timeout: 5000 });
      await tiles.getByText("1.234", { exact: false }).waitFor();
      for (let step = 42; step < 72; step++) {
        appendFileSync(join(other, "growing", "metrics.jsonl"), `${JSON.stringify({ ...record, step })}\n`);
        await page.waitForTimeout(30);
      }
      await tiles.getByText("71 /").waitFor({ timeout: 5000 });
      // A new step is told at most twice a second; each telling asks for the parts of one view.
      expect(asked.length).toBeLessThan(100);
      await page.context().close();
    }, 60_000);

    test("finds a run that begins while it looks on", async () => {
      const page = await open("", {}, live.url);
      await settled(page);
      write("born later", '{"type":"step","step":1,"loss":3}\n');
      await page.getByRole("button", { name: /born later/ }).waitFor({ timeout: 15_000 });
      await page.context().close();
    }, 60_000);

    test("says how many lines are corrupt, and shows the rest", async () => {
      const page = await open(`#/overview?run=${await idOf("corrupt", live.url)}`, {}, live.url);
      await page.getByText(/2 unreadable lines; the first: a line that is not a JSON object/).waitFor();
      await page.locator(".tiles").first().getByText(String(recordedSteps)).first().waitFor();
      await page.context().close();
    });

    test("shows an empty run as one in every view, without an error", async () => {
      const run = await idOf("empty", live.url);
      const page = await open(`#/overview?run=${run}`, {}, live.url);
      for (const view of views) {
        await page.evaluate(`location.hash = "#/${view}?run=${run}"`);
        await page.locator(`nav a[href="#/${view}"][aria-current]`).waitFor();
        await page.getByText("This run has no step yet.").waitFor();
        await page.waitForTimeout(100);
      }
      await page.context().close();
    }, 60_000);

    test("takes no harm from a hostile run: scripts in texts, huge numbers, deep JSON", async () => {
      const { runs: all } = (await (await fetch(`${live.url}api/runs`)).json()) as { runs: { id: string; name: string }[] };
      const run = all.find(({ name }) => name.startsWith("evil"));
      const page = await open(`#/overview?run=${run?.id ?? ""}`, {}, live.url);
      for (const view of views) {
        await turnTo(page, view, run?.id ?? "");
        expect(await page.locator("main script, main img, aside script, aside img").count()).toBe(0);
      }
      await page.context().close();
    }, 60_000);
  });

  test(
    "shows a served model live: loads of its experts, the queue, times to the first and between tokens",
    { timeout: 120_000 },
    async () => {
      const model = await writeTinyModel();
      const server = await serveTiny(model, {}, { apiKey: "key" });
      const watching = await startDashboard({ folder: runs, host: "127.0.0.1", port: 0, server: server.url, apiKey: "key" });
      try {
        const page = await open("#/serving", {}, watching.url);
        for (let i = 0; i < 3; i++)
          await post(
            server,
            "/v1/completions",
            { model: "tiny", prompt: "a b c", max_tokens: 24 },
            { headers: { authorization: "Bearer key", "content-type": "application/json" } },
          );
        const heatmap = page.locator("canvas[role=application]").first();
        await heatmap.waitFor({ timeout: 15_000 });
        await page
          .locator(".tiles")
          .getByText(/\d ms|\d s/)
          .first()
          .waitFor({ timeout: 15_000 });
        await heatmap.focus();
        await page.keyboard.press("ArrowDown");
        expect(await page.locator(".heatmap .tip").innerText()).toMatch(/^layer 0, expert 0: (dead|[\d.]+×)$/);
        expect(await violations(page)).toEqual([]);
        await picture(page, "serving-light");
        await server.close();
        await page.getByText(/does not answer/).waitFor({ timeout: 15_000 });
        await page.context().close();
      } finally {
        await watching.close();
        await server.close();
        removeFolder(model);
      }
    },
  );
});
