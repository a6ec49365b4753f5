/** The chat page at `/` of a server, in a browser: an answer that is seen growing, stopped, begun anew, refused; and nothing on the console. */
import { join } from "node:path";
import type { Browser, BrowserContextOptions, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { removeFolder, serveTiny, writeTinyModel, type TestServer } from "../server/harness.ts";
import { chromiumNote, chromiumPath, launchChromium } from "./chromium.ts";

/** What code that runs in the page has (the page forbids `eval`, so that it has to be functions). */
interface InPage {
  lengths: Set<number>;
  pressed: boolean;
  readonly document: {
    readonly body: unknown;
    querySelector(selector: string): { readonly textContent: string; removeAttribute(name: string): void; click(): void } | null;
  };
  readonly MutationObserver: new (callback: () => void) => { observe(node: unknown, options: Readonly<Record<string, boolean>>): void };
}

describe.skipIf(chromiumPath === null)(`the chat page in Chromium${chromiumNote}`, () => {
  let folder = "";
  let server: TestServer;
  let locked: TestServer;
  let browser: Browser;
  let trouble: string[] = [];

  beforeAll(async () => {
    folder = await writeTinyModel();
    server = await serveTiny(folder);
    locked = await serveTiny(folder, {}, { apiKey: "secret" });
    browser = await launchChromium();
  }, 120_000);
  afterAll(async () => {
    await browser?.close();
    await server?.close();
    await locked?.close();
    removeFolder(folder);
  });
  afterEach(() => {
    const found = trouble;
    trouble = [];
    expect(found).toEqual([]);
  });

  async function open(url = server.url, options: BrowserContextOptions = {}): Promise<Page> {
    const context = await browser.newContext({ viewport: { width: 900, height: 700 }, ...options });
    const page = await context.newPage();
    page.on("console", (message) => {
      if (message.type() === "error" || message.type() === "warning") trouble.push(message.text());
    });
    page.on("pageerror", (error) => trouble.push(error.message));
    page.on("request", (request) => {
      if (!request.url().startsWith(url) && !request.url().startsWith("data:")) trouble.push(`a request to ${request.url()}`);
    });
    await page.goto(url);
    return page;
  }
  async function say(page: Page, text: string, tokens: number): Promise<void> {
    await page.fill("#max", String(tokens));
    await page.fill("textarea", text);
    await page.press("textarea", "Enter");
  }
  const isDone = async (page: Page): Promise<void> => {
    await page.waitForFunction(() => (globalThis as unknown as InPage).document.querySelector("#send")?.textContent === "Send");
  };

  test("an answer grows piece by piece, and the next question has the conversation before it", { timeout: 60_000 }, async () => {
    const page = await open();
    expect(await page.title()).toBe("tiny");
    const bodies: unknown[] = [];
    page.on("request", (request) => {
      if (request.method() === "POST") bodies.push(request.postDataJSON());
    });
    // Every length that the answer was seen at.
    await page.evaluate(() => {
      const here = globalThis as unknown as InPage;
      here.lengths = new Set();
      new here.MutationObserver(() => {
        const answer = here.document.querySelector("article.assistant");
        if (answer !== null) here.lengths.add(answer.textContent.length);
      }).observe(here.document.body, { subtree: true, childList: true, characterData: true });
    });
    await say(page, "Hello <b>there</b>", 60);
    await page.waitForSelector("article.assistant");
    await isDone(page);
    const seen = await page.evaluate(() => [...(globalThis as unknown as InPage).lengths]);
    expect(seen.length).toBeGreaterThan(5);
    // What was said is text, never markup.
    expect(await page.textContent("article.user")).toBe("Hello <b>there</b>");
    expect(await page.$("article b")).toBeNull();
    const answer = (await page.textContent("article.assistant")) ?? "";
    expect(answer.length).toBeGreaterThan(10);
    const screenshots = process.env["MOE_SCREENSHOTS"];
    if (screenshots !== undefined) await page.screenshot({ path: join(screenshots, "chat.png") });
    await say(page, "And then?", 5);
    await isDone(page);
    expect(bodies).toMatchObject([
      { stream: true, messages: [{ role: "user", content: "Hello <b>there</b>" }] },
      {
        messages: [
          { role: "user", content: "Hello <b>there</b>" },
          { role: "assistant", content: answer },
          { role: "user", content: "And then?" },
        ],
      },
    ]);
    await page.context().close();
  });

  test(
    "Stop keeps what was said and frees the server; a new chat is empty, whatever the old one still says",
    { timeout: 60_000 },
    async () => {
      const page = await open();
      // Seen and pressed within the page: a fast server is done before a message from here arrives.
      await page.evaluate(() => {
        const here = globalThis as unknown as InPage;
        here.pressed = false;
        const press = (): void => {
          const [answer, button] = [here.document.querySelector("article.assistant"), here.document.querySelector("#send")];
          if (here.pressed || (answer?.textContent ?? "").length <= 3 || button?.textContent !== "Stop") return;
          here.pressed = true;
          button.click();
        };
        new here.MutationObserver(press).observe(here.document.body, { childList: true, subtree: true, characterData: true });
      });
      await say(page, "Tell me all", 480);
      await isDone(page);
      expect(await page.evaluate(() => (globalThis as unknown as InPage).pressed)).toBe(true);
      const kept = (await page.textContent("article.assistant")) ?? "";
      expect(kept.length).toBeGreaterThan(3);
      await expect.poll(() => server.engine.stats.running).toBe(0);
      // However much was said before Stop came through: the next conversation has room.
      await page.click("#new");
      await say(page, "More", 300);
      await page.waitForSelector("article.assistant");
      await page.click("#new");
      expect(await page.$("article")).toBeNull();
      const [request] = await Promise.all([page.waitForRequest(`${server.url}/v1/chat/completions`), say(page, "Anew", 3)]);
      expect(request.postDataJSON()).toMatchObject({ messages: [{ role: "user", content: "Anew" }] });
      await isDone(page);
      await page.context().close();
    },
  );

  test("what the server refuses is shown as its own words", { timeout: 60_000 }, async () => {
    const page = await open();
    await page.evaluate(() => (globalThis as unknown as InPage).document.querySelector("#max")?.removeAttribute("min"));
    await say(page, "Hello", 0);
    await page.waitForSelector("article.error");
    expect(await page.textContent("article.error")).toMatch(/max_tokens/);
    // The browser says on the console that an answer was 400: that is not the page's fault.
    trouble = trouble.filter((line) => !line.includes("400 (Bad Request)"));
    await page.context().close();
  });

  test("a key is asked for as a password", { timeout: 60_000 }, async () => {
    const page = await open(locked.url, { httpCredentials: { username: "me", password: "secret" } });
    await say(page, "Hello", 5);
    await page.waitForSelector("article.assistant");
    await isDone(page);
    expect(await page.$("article.error")).toBeNull();
    await page.context().close();
  });
});
