/** Pulling models from a server on this machine that answers as the Hub does, and misbehaves on request. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import type { IncomingMessage, ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { commit, FakeHub, gitOid, sha256 } from "../../test/fake-hub.ts";
import { MoeError } from "../util/errors.ts";
import { pullModel, type PullOptions } from "./hub.ts";

const text = (value: unknown): Uint8Array => new TextEncoder().encode(typeof value === "string" ? value : JSON.stringify(value));
const random = (numBytes: number): Uint8Array => Uint8Array.from({ length: numBytes }, (_, i) => (i * 2654435761) >>> 24);

let hub = new FakeHub();
let folder = "";
beforeEach(async () => {
  hub = new FakeHub();
  await hub.start();
  folder = mkdtempSync(join(tmpdir(), "moe-hub-"));
  hub.files.set("config.json", text({ model_type: "llama" }));
  hub.files.set("tokenizer.json", text({ version: "1.0" }));
  hub.files.set("model.safetensors", random(300_000));
});
afterEach(async () => {
  await hub.stop();
  rmSync(folder, { recursive: true, force: true });
});

const pull = (options: PullOptions = {}): ReturnType<typeof pullModel> =>
  pullModel("acme/tiny", { folder, endpoint: hub.endpoint, token: "", retryDelayMs: 1, maxRetries: 2, silenceMs: 5000, ...options });
async function failure(work: Promise<unknown>): Promise<MoeError> {
  const error: unknown = await work.then(
    () => new Error("nothing was thrown"),
    (reason: unknown) => reason,
  );
  if (error instanceof MoeError) return error;
  throw error;
}
const visible = (): string[] =>
  readdirSync(folder)
    .filter((name) => !name.startsWith("."))
    .toSorted();
function expectWhole(): void {
  for (const name of visible()) expect(Buffer.compare(readFileSync(join(folder, name)), Buffer.from(hub.files.get(name) ?? []))).toBe(0);
}
/** Sends `count` bytes of what comes after the range's start, then cuts the connection. */
function cut(request: IncomingMessage, response: ServerResponse, bytes: Uint8Array, count: number): void {
  const from = Number(/\d+/.exec(request.headers.range ?? "0")?.[0]);
  response.writeHead(from === 0 ? 200 : 206, {
    "content-length": bytes.length - from,
    ...(from === 0 ? {} : { "content-range": `bytes ${from}-${bytes.length - 1}/${bytes.length}` }),
  });
  response.write(bytes.subarray(from, from + count), () => setTimeout(() => response.destroy(), 20));
}

describe("what is chosen", () => {
  test("weights, configuration, tokenizer, template and licence come; pickles, code and other formats stay", async () => {
    for (const name of ["chat_template.jinja", "LICENSE", "tokenizer.model", "merges.txt", "generation_config.json"])
      hub.files.set(name, text(name));
    for (const name of [
      "pytorch_model.bin",
      "modeling_tiny.py",
      "model.pt",
      "training.pkl",
      "README.md",
      "tiny.gguf",
      "pytorch_model.bin.index.json",
    ])
      hub.files.set(name, text(name));
    const result = await pull();
    expect(visible()).toEqual(
      [
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
      ].toSorted(),
    );
    expectWhole();
    expect(result).toMatchObject({ id: "acme/tiny", revision: "main", commit, folder });
    expect(result.numBytes).toBe(result.files.reduce((sum, { bytes }) => sum + bytes, 0));
    expect(readdirSync(folder).filter((name) => name.endsWith(".part"))).toEqual([]);
  });

  test("of a sharded model exactly the shards that the index names come, and an index that names another file is refused", async () => {
    hub.files.delete("model.safetensors");
    const index = (last: string): void =>
      void hub.files.set(
        "model.safetensors.index.json",
        text({ weight_map: { a: "model-1.safetensors", b: "model-1.safetensors", c: last } }),
      );
    for (const name of ["model-1.safetensors", "model-2.safetensors", "consolidated.safetensors"]) hub.files.set(name, random(1000));
    index("model-2.safetensors");
    await pull();
    expect(visible()).toEqual([
      "config.json",
      "model-1.safetensors",
      "model-2.safetensors",
      "model.safetensors.index.json",
      "tokenizer.json",
    ]);
    expectWhole();
    index("../model-2.safetensors");
    expect((await failure(pull())).message).toMatch(/index\.json: expected names of \.safetensors files of acme\/tiny, got "\.\.\/model-2/);
    index("config.json");
    expect((await failure(pull())).kind).toBe("file");
  });

  test("a GGUF file comes where there is nothing else; of several one has to be named", async () => {
    hub.files.delete("model.safetensors");
    hub.files.set("tiny.Q8_0.gguf", random(5000));
    await pull();
    expect(visible()).toContain("tiny.Q8_0.gguf");
    hub.files.set("tiny.Q4_0.gguf", random(4000));
    expect(await failure(pull())).toMatchObject({
      kind: "usage",
      message: expect.stringMatching(/several GGUF files.*--file: tiny.Q8_0.gguf, tiny.Q4_0.gguf/) as unknown,
    });
    await pull({ file: "tiny.Q4_0.gguf" });
    expect(visible()).toContain("tiny.Q4_0.gguf");
    expect((await failure(pull({ file: "tiny.gguf" }))).kind).toBe("usage");
  });

  test("a repository with pickles only says so", async () => {
    hub.files.delete("model.safetensors");
    hub.files.set("pytorch_model.bin", random(10));
    expect((await failure(pull())).message).toMatch(
      /expected model.safetensors, .* got pytorch_model.bin \(pickles are never downloaded\)/,
    );
    expect(hub.downloads()).toEqual([]);
  });

  test.each(["../evil.json", "/etc/evil.json", "a/../../evil.json", "..\\evil.json", "C:evil.json", "nul\0.json", "..json"])(
    "a listed name %j is refused and nothing is written",
    async (name) => {
      hub.changeList = (entries) => entries.map((entry) => (entry.path === "config.json" ? { ...entry, path: name } : entry));
      expect((await failure(pull())).message).toMatch(/expected plain file names/);
      expect(readdirSync(folder)).toEqual([]);
    },
  );
});

describe("resuming", () => {
  test("a second pull fetches nothing, and one changed or missing file only itself", async () => {
    expect((await pull()).files.map(({ state }) => state)).toEqual(["downloaded", "downloaded", "downloaded"]);
    hub.requests.length = 0;
    expect((await pull()).files.map(({ state }) => state)).toEqual(["present", "present", "present"]);
    expect(hub.downloads()).toEqual([]);
    writeFileSync(join(folder, "model.safetensors"), random(299_999));
    writeFileSync(join(folder, "config.json"), text({ model_type: "lIama" }));
    await pull();
    expect(hub.downloads()).toEqual(["config.json", "model.safetensors"]);
    expectWhole();
  });

  test("a connection that is cut goes on where it was cut, within one pull", async () => {
    const bytes = hub.files.get("model.safetensors") ?? new Uint8Array(0);
    hub.misbehave = (request, response, name, attempt) => {
      if (name !== "model.safetensors" || attempt > 3) return false;
      cut(request, response, bytes, 70_000);
      return true;
    };
    expect((await pull()).files.at(-1)?.state).toBe("downloaded");
    expectWhole();
    const ranges = hub.requests.filter(({ url }) => url.endsWith("model.safetensors")).map(({ range }) => range);
    expect(ranges).toEqual([undefined, "bytes=70000-", "bytes=140000-", "bytes=210000-"]);
  });

  test("a connection that stays cut is an error that names the file and how to go on, and the next pull goes on", async () => {
    const bytes = hub.files.get("model.safetensors") ?? new Uint8Array(0);
    hub.misbehave = (request, response, name, attempt) => {
      if (name !== "model.safetensors") return false;
      cut(request, response, bytes, attempt === 1 ? 123_456 : 0);
      return true;
    };
    const error = await failure(pull());
    expect(error).toMatchObject({ kind: "communication" });
    expect(error.message).toMatch(
      /model\.safetensors: expected 300000 bytes, but the connection .* after 123456 of them; run the same command again/,
    );
    expect(visible()).not.toContain("model.safetensors");
    hub.misbehave = () => false;
    hub.requests.length = 0;
    expect((await pull()).files.map(({ state }) => state)).toEqual(["present", "present", "resumed"]);
    expect(hub.requests.at(-1)?.range).toBe("bytes=123456-");
    expectWhole();
  });

  test("a server that ignores the range, or refuses it, makes the file start again", async () => {
    const bytes = hub.files.get("model.safetensors") ?? new Uint8Array(0);
    for (const status of [200, 416]) {
      rmSync(join(folder, "model.safetensors"), { force: true });
      hub.misbehave = (request, response, name) => {
        if (name !== "model.safetensors") return false;
        if (request.headers.range === undefined) cut(request, response, bytes, 1000);
        else response.destroy();
        return true;
      };
      await failure(pull());
      hub.misbehave = (request, response, name) => {
        if (name !== "model.safetensors" || request.headers.range === undefined) return false;
        response.writeHead(status).end(status === 200 ? bytes : undefined);
        return true;
      };
      await pull();
      expectWhole();
    }
  });

  test("a connection that falls silent counts as lost", async () => {
    hub.misbehave = (_request, response, name, attempt) => {
      if (name !== "model.safetensors" || attempt > 1) return false;
      response.writeHead(200, { "content-length": 300_000 });
      response.write(hub.files.get(name)?.subarray(0, 5000));
      return true;
    };
    await pull({ silenceMs: 200 });
    expectWhole();
    expect(hub.requests.at(-1)?.range).toBe("bytes=5000-");
  });
});

describe("what is wrong with the content", () => {
  test.each(["model.safetensors", "config.json"])("%s with other bytes than announced is refused and not kept", async (name) => {
    const bytes = Uint8Array.from(hub.files.get(name) ?? []);
    bytes[5] = (bytes[5] ?? 0) ^ 1;
    hub.misbehave = (_request, response, requested) => {
      if (requested !== name) return false;
      response.writeHead(200).end(bytes);
      return true;
    };
    const error = await failure(pull());
    expect(error.kind).toBe("file");
    expect(error.message).toMatch(
      name === "config.json" ? /config\.json: expected content with git/ : /model\.safetensors: expected content with sha256/,
    );
    expect(visible()).not.toContain(name);
    expect(readdirSync(folder).filter((entry) => entry.includes(name))).toEqual([]);
  });

  test("a part that was damaged while it waited is thrown away, and the file fetched whole", async () => {
    const oid = sha256(hub.files.get("model.safetensors") ?? new Uint8Array(0));
    writeFileSync(join(folder, `.model.safetensors.${oid.slice(0, 16)}.part`), new Uint8Array(1000).fill(7));
    await pull();
    expectWhole();
    expect(hub.requests.slice(-2).map(({ range }) => range)).toEqual(["bytes=1000-", undefined]);
  });

  test("more bytes than announced are refused", async () => {
    hub.misbehave = (_request, response, name) => {
      if (name !== "config.json") return false;
      response.writeHead(200).end(random(5000));
      return true;
    };
    expect((await failure(pull())).message).toMatch(/config\.json: expected \d+ bytes, got more from the server/);
  });

  test.each([
    ["a digest that is none", { oid: "../../x" }, /expected a digest of config.json/],
    ["a size that is none", { size: -1 }, /expected the size of config.json/],
  ])("%s is refused", async (_, change, message) => {
    hub.changeList = (entries) => entries.map((entry) => (entry.path === "config.json" ? { ...entry, ...change } : entry));
    expect((await failure(pull())).message).toMatch(message);
  });

  test("a model larger than the disk is refused before it is fetched", async () => {
    hub.changeList = (entries) =>
      entries.map((entry) => (entry.lfs === undefined ? entry : { ...entry, size: 2 ** 52, lfs: { ...entry.lfs, size: 2 ** 52 } }));
    expect(await failure(pull())).toMatchObject({
      kind: "resource",
      message: expect.stringMatching(/expected room for \d+ bytes, got \d+ free/) as unknown,
    });
    expect(hub.downloads()).not.toContain("model.safetensors");
  });
});

describe("refusals", () => {
  test.each([
    [404, "file", /acme\/tiny at revision main: expected a model on .*404: no such model or revision/],
    [401, "communication", /401: no such model, or not for everyone; .*set HF_TOKEN/],
    [403, "communication", /403: not for this account; .*accept its conditions at .*\/acme\/tiny and set HF_TOKEN/],
  ])("%i from the list is explained, and not tried again", async (status, kind, message) => {
    hub.misbehave = (_request, response) => {
      response.writeHead(status).end();
      return true;
    };
    const error = await failure(pull());
    expect(error.kind).toBe(kind);
    expect(error.message).toMatch(message);
    expect(hub.requests).toHaveLength(1);
  });

  test("a gated model that lists its files and refuses them is explained, naming the file", async () => {
    hub.misbehave = (_request, response, name) => {
      if (name === "") return false;
      response.writeHead(403, { "x-error-code": "GatedRepo" }).end();
      return true;
    };
    expect((await failure(pull())).message).toMatch(/file config\.json: expected to be let in, got 403.*accept its conditions/);
  });

  test("a file that is listed and not there is an error that names it", async () => {
    hub.changeList = (entries) => [...entries, { type: "file", path: "extra.json", size: 1, oid: gitOid(text("x")) }];
    expect((await failure(pull())).message).toMatch(/extra\.json: expected the file on the server/);
  });

  test("a server that is busy is asked again; one that stays so, or is not there, is an error", async () => {
    hub.misbehave = (_request, response, _name, attempt) => {
      if (attempt > 1) return false;
      response.writeHead(503).end();
      return true;
    };
    await pull();
    expectWhole();
    hub.misbehave = (_request, response) => {
      response.writeHead(500).end();
      return true;
    };
    expect(await failure(pull())).toMatchObject({ kind: "communication" });
    await hub.stop();
    expect((await failure(pull())).message).toMatch(/acme\/tiny: expected an answer from http.*ECONNREFUSED.*is HF_ENDPOINT right\?/);
    await hub.start();
  });

  test("the token goes to the endpoint and not to where it redirects", async () => {
    const elsewhere = new FakeHub();
    await elsewhere.start();
    try {
      const bytes = hub.files.get("model.safetensors") ?? new Uint8Array(0);
      elsewhere.misbehave = (_request, response) => {
        response.writeHead(200).end(bytes);
        return true;
      };
      hub.misbehave = (_request, response, name) => {
        if (name !== "model.safetensors") return false;
        response.writeHead(302, { location: `${elsewhere.endpoint}/blob` }).end();
        return true;
      };
      await pull({ token: "secret" });
      expectWhole();
      expect(new Set(hub.requests.map(({ authorization }) => authorization))).toEqual(new Set(["Bearer secret"]));
      expect(elsewhere.requests).toEqual([{ url: "/blob", range: undefined, authorization: undefined }]);
    } finally {
      await elsewhere.stop();
    }
  });

  test.each(["tiny", "a/b/c", "../x", "acme/..", "acme/", "https://acme/tiny"])("%j is not a model's name", async (id) => {
    expect(await failure(pullModel(id, { folder, endpoint: hub.endpoint }))).toMatchObject({ kind: "usage" });
    expect(hub.requests).toEqual([]);
  });

  test("an endpoint that is no address is refused, and a target that is a file too", async () => {
    expect(await failure(pull({ endpoint: "ftp://x" }))).toMatchObject({ kind: "usage" });
    writeFileSync(join(folder, "file"), "");
    expect(await failure(pull({ folder: join(folder, "file") }))).toMatchObject({ kind: "file" });
    expect(existsSync(join(folder, "file"))).toBe(true);
  });
});
