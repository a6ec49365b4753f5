/** What runs the pages: it finds all blocks, and what is wrong with one fails. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { codeBlocks, replaced, withoutComments } from "./markdown.ts";
import { PageRun, type Outcome } from "./page-run.ts";

const folder = mkdtempSync(join(tmpdir(), "moe-page-run-"));
/** `moe serve well`, `badly` (it exits with 3) or `never`. */
const server = `
import { createServer } from "node:http";
const how = process.argv[3];
if (how === "never") throw new Error("no such model");
createServer((_, response) => response.end("here")).listen(Number(process.argv.at(-1)), "127.0.0.1", () => console.log("at http://127.0.0.1:" + process.argv.at(-1)));
process.on("SIGTERM", () => process.exit(how === "badly" ? 3 : 0));
`;
for (const [name, script] of Object.entries({
  moe: `exec "${process.execPath}" "${join(folder, "server.mjs")}" "$@"`,
  npx: 'shift; exec moe "$@"',
})) {
  writeFileSync(join(folder, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
}
writeFileSync(join(folder, "server.mjs"), server);
const env = { ...process.env, PATH: [folder, dirname(process.execPath), process.env["PATH"]].join(delimiter) };

afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

describe("blocks of a page", () => {
  const page = [
    "# Title",
    "",
    "Write `a.json`,",
    "which is short:",
    "<!-- test: a.json is a layout -->",
    "",
    "```json",
    "{}",
    "```",
    "",
    "- in a list:",
    "  ~~~~sh title",
    "  moe a   # what",
    "    ```",
    "  ~~~~",
    "<!-- a remark: ```sh -->",
    "<!-- test: set up: one",
    "two -->",
    "<!-- test: --steps 20 => --steps 2 -->",
    "<!-- test: needs mpirun -->",
    "```bash",
    "moe b --steps 20",
    "<!-- test: needs nothing -->",
    "```",
    "`in line` and ``` not a fence ```",
  ].join("\n");

  test("are found with language, text, what stands before, and notes, whatever their fence", () => {
    const [json, sh, bash, ...more] = codeBlocks("page.md", page);
    expect(more).toEqual([]);
    expect(json).toMatchObject({ line: 7, language: "json", text: "{}", lead: "Write `a.json`,\nwhich is short:" });
    expect(json?.notes).toEqual([{ type: "file", name: "a.json", kind: "layout" }]);
    expect(sh).toMatchObject({ line: 12, language: "sh", text: "moe a   # what\n  ```", lead: "- in a list:", notes: [] });
    expect(bash?.notes).toEqual([
      { type: "set up", script: "one\ntwo" },
      { type: "replace", from: "--steps 20", to: "--steps 2" },
      { type: "needs", program: "mpirun" },
    ]);
    expect(bash === undefined ? "" : replaced(bash)).toBe("moe b --steps 2\n<!-- test: needs nothing -->");
  });
  test.each([
    ["```sh\nmoe a", "page.md:1: the fence has no end"],
    ["<!-- test: a => b", "page.md:1: the comment has no end"],
    ["<!-- test: whatever -->\n```sh\n```", "page.md:1: not understood:  test: whatever "],
    ["<!-- test: a => b -->\ntext\n```sh\n```", "page.md:2: a comment for the test stands before this"],
    ["<!-- test: a => b -->", "page.md:1: a comment for the test has no block behind it"],
  ])("are refused where they are not whole, or a note has none: %j", (markdown, message) => {
    expect(() => codeBlocks("page.md", markdown)).toThrow(message);
  });
  test("a text to replace has to be there", () => {
    const [block] = codeBlocks("page.md", "<!-- test: a => b -->\n```sh\nmoe c\n```");
    expect(() => block && replaced(block)).toThrow('page.md:2: the block does not have "a", which the test shall replace');
  });
  test("comments of scripts and programs are no part of what is compared", () => {
    expect(withoutComments("# one\nmoe a --x '#'   # two\n\nmoe b#c")).toBe("moe a --x '#'\nmoe b#c");
  });
});

describe("a page that runs", () => {
  async function outcomes(...blocks: readonly string[]): Promise<{ outcomes: Outcome[]; end: string }> {
    const place = mkdtempSync(join(folder, "page-"));
    const lacks = (program: string): string | null => (program === "there" ? null : `there is no ${program}`);
    const run = new PageRun({ folder: place, env, isElsewhere: (line) => line === "npm ci", lacks, timeoutMs: 5000 });
    const found: Outcome[] = [];
    for (const block of codeBlocks("page.md", blocks.join("\n"))) found.push(await run.run(block));
    const end = await run.end().then(
      () => "",
      (error: unknown) => String(error),
    );
    return { outcomes: found, end };
  }
  const failure = async (...blocks: readonly string[]): Promise<string> => {
    const last = (await outcomes(...blocks)).outcomes.at(-1);
    return last?.type === "failed" ? last.error : "";
  };

  test("has one folder for all of its blocks, and says what was not run", async () => {
    const { outcomes: found } = await outcomes(
      "```sh\necho 1 > a\n```",
      "```sh\ngrep 1 a\n```",
      "```text\nmoe no such thing\n```",
      "```sh\nnpm ci   # once\n# nothing\n```",
      "<!-- test: needs there -->\n<!-- test: needs nowhere -->\n```sh\nfalse\n```",
      "<!-- test: set up: echo 3 > c -->\n```js\nimport { readFileSync } from 'node:fs';\nif (readFileSync('c', 'utf8') !== '3\\n') throw new Error('no');\n```",
    );
    expect(found.map(({ type }) => type)).toEqual(["ran", "ran", "shown", "elsewhere", "skipped", "ran"]);
    expect(found[4]).toEqual({ type: "skipped", why: "there is no nowhere" });
  });
  test("writes the files that it names, after reading them", async () => {
    const note = "Write `b.json`:\n<!-- test: b.json is a layout -->\n";
    expect((await outcomes(`${note}\`\`\`json\n{ "tp": 2 }\n\`\`\``, "```sh\ngrep tp b.json\n```")).outcomes).toEqual([
      { type: "ran" },
      { type: "ran" },
    ]);
    expect(await failure(`${note}\`\`\`json\n{ "tpp": 2 }\n\`\`\``)).toMatch(/^page\.md:3: .*tpp/);
    expect(await failure(`${note}\`\`\`json\n{ tp\n\`\`\``)).toMatch(/^page\.md:3: .*JSON/);
    expect(await failure("```json\n{}\n```")).toMatch("JSON without a comment that says of which file");
    expect(await failure("A file:\n<!-- test: b.json is a layout -->\n```json\n{}\n```")).toMatch(
      "the sentence before it does not name `b.json`",
    );
    expect(await failure("`b.json`\n<!-- test: b.json is a poem -->\n```json\n{}\n```")).toMatch('"poem" is not known');
  });
  test.each([
    ["a command that fails", "```sh\necho told; exit 3\n```", /^page\.md:1: exit code 3:[^]*told/],
    ["a command before the last", "```sh\nfalse\ntrue\n```", /exit code 1/],
    ["a part of a pipe", "```sh\nfalse | cat\n```", /exit code 1/],
    ["a command that is not there", "```sh\nno-such-command\n```", /exit code 127/],
    ["what is set up", "<!-- test: set up: exit 4 -->\n```sh\ntrue\n```", /exit code 4/],
    ["a program that throws", "```ts\nconst x: number = 1;\nthrow new Error(`thrown ${x}`);\n```", /thrown 1/],
    ["a language that nobody runs", "```python\nprint()\n```", /a block in "python"/],
    ["a fence without a language", "```\nmoe\n```", /a block in ""/],
  ])("fails for %s", async (_, block, message) => {
    expect(await failure(block)).toMatch(message);
  });
  test("ends what takes too long", { timeout: 20_000 }, async () => {
    expect(await failure("```sh\nsleep 60\n```")).toMatch(/not finished after 5 s/);
  });

  test("has servers for the blocks that follow, at another port than is written, until the page ends", { timeout: 20_000 }, async () => {
    const look = "```sh\ncurl --silent --fail http://127.0.0.1:8000/ | grep here\n```";
    const { outcomes: found, end } = await outcomes(
      "```sh\nmoe serve well   # until Ctrl-C\n```",
      look,
      "```sh\nnpx moe serve well --port 8001\n```",
      look,
    );
    expect(found).toEqual([{ type: "ran" }, { type: "ran" }, { type: "ran" }, { type: "ran" }]);
    expect(end).toBe("");
  });
  test("fails where a server does not come up, or does not end well", { timeout: 20_000 }, async () => {
    expect(await failure("```sh\nmoe serve never\n```")).toMatch(/it does not serve: moe serve never[^]*no such model/);
    expect((await outcomes("```sh\nmoe serve badly\n```")).end).toMatch(/told to end, it exited with 3: moe serve badly/);
  });
});
