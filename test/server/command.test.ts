/** `moe serve` as a process: what it prints, how it ends. */
import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { removeFolder, until, writeTinyModel } from "./harness.ts";

const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
let folder = "";
beforeAll(async () => {
  folder = await writeTinyModel();
}, 60_000);
afterAll(() => {
  removeFolder(folder);
});

interface Running {
  readonly process: ChildProcess;
  readonly url: string;
  readonly lines: () => string[];
  readonly exited: Promise<number | null>;
}
async function serve(...args: string[]): Promise<Running> {
  const child = spawn(process.execPath, [main, "serve", folder, "--port", "0", ...args], { stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  child.stderr.on("data", (data: Buffer) => (text += data.toString()));
  const exited = new Promise<number | null>((done) => {
    child.once("exit", done);
  });
  const url = (): string | undefined => /http:\/\/[\d.]+:\d+/.exec(text)?.[0];
  await until(() => url() !== undefined || child.exitCode !== null, 60);
  return { process: child, url: url() ?? "", lines: () => text.trimEnd().split("\n"), exited };
}

describe("moe serve", () => {
  test("finishes what is under way at SIGTERM and exits with 0; its log is JSON", { timeout: 120_000 }, async () => {
    const server = await serve("--json-logs", "--name", "m", "--max-context", "256", "--api-key", "k");
    const request = (body: unknown): Promise<Response> =>
      fetch(`${server.url}/v1/completions`, {
        method: "POST",
        headers: { "content-type": "application/json", authorization: "Bearer k" },
        body: JSON.stringify(body),
      });
    const response = await request({ model: "m", prompt: "Hello", max_tokens: 200, temperature: 0, ignore_eos: true, stream: true });
    server.process.kill("SIGTERM");
    const events = (await response.text()).trimEnd().split("\n\n");
    expect(events.at(-1)).toBe("data: [DONE]");
    expect(events.at(-2)).toMatch(/"finish_reason":"length"/);
    expect(await server.exited).toBe(0);
    const entries = server.lines().map((line) => JSON.parse(line) as Record<string, unknown>);
    expect(entries[0]).toMatchObject({ level: "info", context: 256 });
    expect(entries.map(({ message }) => message)).toContain("POST /v1/completions 200");
    expect(JSON.stringify(entries)).not.toContain("Hello");
  });
  test.each([
    [["--max-context", "100000"], 2, /--max-context: the model was made for 512 positions, got 100000/],
    [["--host", "192.0.2.1"], 1, /expected to listen on 192\.0\.2\.1/],
    [["--kv-dtype", "f64"], 2, /kv-dtype/],
    [["--port", "70000"], 2, /expected 0 to 65535/],
  ])("%j ends with %i and says why", { timeout: 60_000 }, (args, status, message) => {
    const result = spawnSync(process.execPath, [main, "serve", folder, "--port", "0", ...args], { encoding: "utf8" });
    expect(result.stderr).toMatch(message);
    expect(result.status).toBe(status);
  });
  test("a model that is not there ends with 1 and is named", { timeout: 60_000 }, () => {
    const result = spawnSync(process.execPath, [main, "serve", `${folder}/nowhere`], { encoding: "utf8" });
    expect(result.stderr).toMatch(/^moe: .*nowhere: expected .* got nothing of that name\n$/);
    expect(result.status).toBe(1);
  });
});
