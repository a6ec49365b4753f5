/**
 * The fenced code blocks of a Markdown page, and what comments before them say to the test that runs them. A comment that begins with `test:` is
 * for the block that follows it and stays visible in the source:
 *
 * | comment | what |
 * | --- | --- |
 * | `<!-- test: numSteps=300 => numSteps=4 -->` | this text of the block is replaced by that one, so that the test is short |
 * | `<!-- test: needs mpirun -->` | where there is no such program the block is skipped, and the test says so |
 * | `<!-- test: set up: cp a b -->` | these commands run first |
 * | `<!-- test: edp.json is a layout -->` | the JSON is written to this file, and read as what it is said to be |
 *
 * Not a Markdown parser: fences (backticks and tildes, indented in lists as well), HTML comments and paragraphs are all that it knows.
 */

export interface Block {
  readonly page: string;
  /** Of the opening fence, from 1. */
  readonly line: number;
  /** The first word behind the fence; empty where there is none. */
  readonly language: string;
  readonly text: string;
  /** The paragraph before it. */
  readonly lead: string;
  readonly notes: readonly Note[];
}

export type Note =
  | { readonly type: "replace"; readonly from: string; readonly to: string }
  | { readonly type: "needs"; readonly program: string }
  | { readonly type: "set up"; readonly script: string }
  | { readonly type: "file"; readonly name: string; readonly kind: string };

/** All blocks in the order of the page. Throws where a fence or comment has no end, or a note is not understood or has no block. */
export function codeBlocks(page: string, markdown: string): Block[] {
  const lines = markdown.split(/\r?\n/);
  const blocks: Block[] = [];
  let notes: Note[] = [];
  let lead: string[] = [];
  let isParagraph = false;
  const wrong = (at: number, problem: string): never => {
    throw new Error(`${page}:${at + 1}: ${problem}`);
  };
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i] ?? "";
    const fence = openingFence(line);
    if (fence !== null) {
      const end = lines.findIndex((other, at) => at > i && fence.closes(other));
      if (end < 0) wrong(i, "the fence has no end");
      const text = lines.slice(i + 1, end).map((other) => withoutIndent(other, fence.indent));
      blocks.push({ page, line: i + 1, language: fence.language, text: text.join("\n"), lead: lead.join("\n"), notes });
      [notes, lead, isParagraph, i] = [[], [], false, end];
    } else if (line.trimStart().startsWith("<!--")) {
      const end = lines.findIndex((other, at) => at >= i && other.includes("-->"));
      if (end < 0) wrong(i, "the comment has no end");
      const [, inside = ""] = /<!--([^]*?)-->/.exec(lines.slice(i, end + 1).join("\n")) ?? [];
      if (inside.trim().startsWith("test:"))
        notes.push(parseNote(inside.trim().slice("test:".length).trim()) ?? wrong(i, `not understood: ${inside}`));
      i = end;
    } else if (line.trim() === "") isParagraph = false;
    else {
      if (notes.length > 0) wrong(i, "a comment for the test stands before this and not before a block");
      lead = isParagraph ? [...lead, line] : [line];
      isParagraph = true;
    }
  }
  if (notes.length > 0) wrong(lines.length - 1, "a comment for the test has no block behind it");
  return blocks;
}

interface Fence {
  readonly indent: number;
  readonly language: string;
  closes(line: string): boolean;
}
function openingFence(line: string): Fence | null {
  const [, indent = "", mark = "", info = ""] = /^(\s*)(`{3,}|~{3,})(.*)$/.exec(line) ?? [];
  if (mark === "" || (mark.startsWith("`") && info.includes("`"))) return null;
  return {
    indent: indent.length,
    language: info.trim().split(/\s/)[0] ?? "",
    closes: (other) => {
      const text = other.trim();
      return text.length >= mark.length && text === (mark[0] ?? "").repeat(text.length);
    },
  };
}
function withoutIndent(line: string, indent: number): string {
  return line.slice(Math.min(indent, line.length - line.trimStart().length));
}

function parseNote(text: string): Note | null {
  const setUp = /^set up:\s*([^]+)$/.exec(text);
  if (setUp !== null) return { type: "set up", script: setUp[1] ?? "" };
  const needs = /^needs (\S+)$/.exec(text);
  if (needs !== null) return { type: "needs", program: needs[1] ?? "" };
  const replace = /^([^]*?\S) =>(?: ([^]*))?$/.exec(text);
  if (replace !== null) return { type: "replace", from: replace[1] ?? "", to: (replace[2] ?? "").trim() };
  const file = /^(\S+) is (?:an? )?(\S.*)$/.exec(text);
  return file === null ? null : { type: "file", name: file[1] ?? "", kind: file[2] ?? "" };
}

/** A block's text with what its notes replace. Throws where a text to replace is not there: the page has changed, and the note has not. */
export function replaced(block: Block): string {
  let { text } = block;
  for (const note of block.notes) {
    if (note.type !== "replace") continue;
    if (!text.includes(note.from))
      throw new Error(`${block.page}:${block.line}: the block does not have "${note.from}", which the test shall replace`);
    text = text.replaceAll(note.from, note.to);
  }
  return text;
}

/** A script without its comments and empty lines: what two translations of a page have in common. */
export function withoutComments(script: string): string {
  return script
    .split("\n")
    .map((line) => line.replace(/(^|\s+)(#|\/\/) .*$/, "").trimEnd())
    .filter((line) => line !== "")
    .join("\n");
}
