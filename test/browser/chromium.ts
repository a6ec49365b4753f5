/** Chromium for tests of pages: Debian's, headless, which talks to nobody but the page. */
import { existsSync } from "node:fs";
import { chromium, type Browser } from "playwright-core";

const candidates = [process.env["MOE_CHROMIUM"], "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

/** Path of the browser, or null where there is none. */
export const chromiumPath: string | null = candidates.find((path) => path !== undefined && path !== "" && existsSync(path)) ?? null;

/** Stands in the title of tests that need it. */
export const chromiumNote =
  chromiumPath === null ? " (skipped: no Chromium here; apt-get install chromium, or MOE_CHROMIUM names one)" : "";

/** A browser with an empty profile. The caller closes it. */
export async function launchChromium(): Promise<Browser> {
  return await chromium.launch({
    ...(chromiumPath === null ? {} : { executablePath: chromiumPath }),
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}
