/**
 * Finding added tokens in a text: the pieces that are recognised as a whole before anything is split.
 *
 * Two disciplines exist and differ when tokens overlap. tokenizers takes the leftmost match and of those the longest
 * (`findLeftmostLongest`); llama.cpp goes through the tokens, longest first, and cuts out every occurrence of each
 * (`findLongestFirst`). A section of the result is a piece of text or a token.
 */

import type { AddedToken } from "./tokenizer.ts";

export type Section = { readonly text: string; readonly start: number } | AddedToken;

export type FindAdded = (text: string) => Section[];

/** Characters that count as part of a word for `singleWord`. */
const wordCharacter = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]/u;
const whiteSpace = /\p{White_Space}/u;

function escape(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&");
}

/** tokenizers' way. `contents` are what to look for, in step with `tokens` (normalized tokens look different). */
export function findLeftmostLongest(tokens: readonly AddedToken[], contents: readonly string[]): FindAdded {
  const byContent = new Map<string, AddedToken>();
  tokens.forEach((token, i) => {
    const content = contents[i] as string;
    if (content !== "" && !byContent.has(content)) byContent.set(content, token);
  });
  if (byContent.size === 0) return (text) => (text === "" ? [] : [{ text, start: 0 }]);
  const longestFirst = [...byContent.keys()].sort((a, b) => b.length - a.length);
  const pattern = new RegExp(longestFirst.map(escape).join("|"), "g");
  return (text) => {
    const sections: Section[] = [];
    let from = 0;
    for (const match of text.matchAll(pattern)) {
      const token = byContent.get(match[0]);
      let start = match.index;
      let end = start + match[0].length;
      if (token === undefined || start < from || !fits(text, start, end, token)) continue;
      if (token.lstrip) while (start > from && whiteSpace.test(text[start - 1] as string)) start--;
      if (token.rstrip) while (end < text.length && whiteSpace.test(text[end] as string)) end++;
      if (start > from) sections.push({ text: text.slice(from, start), start: from });
      sections.push(token);
      from = end;
    }
    if (from < text.length) sections.push({ text: text.slice(from), start: from });
    return sections;
  };
}

/** Whether a single-word token stands free at [start, end). */
function fits(text: string, start: number, end: number, token: AddedToken): boolean {
  if (!token.singleWord) return true;
  const before = start > 0 && wordCharacter.test(characterBefore(text, start));
  const after = end < text.length && wordCharacter.test(String.fromCodePoint(text.codePointAt(end) as number));
  return !before && !after;
}

function characterBefore(text: string, end: number): string {
  const unit = text.charCodeAt(end - 1);
  return unit >= 0xdc00 && unit <= 0xdfff && end > 1 ? text.slice(end - 2, end) : (text[end - 1] as string);
}

/** llama.cpp's way. */
export function findLongestFirst(tokens: readonly AddedToken[]): FindAdded {
  const encoder = new TextEncoder();
  const sized = tokens.filter((token) => token.content !== "").map((token) => ({ token, size: encoder.encode(token.content).length }));
  const ordered = sized.sort((a, b) => b.size - a.size).map(({ token }) => token);
  return (text) => {
    let sections: Section[] = text === "" ? [] : [{ text, start: 0 }];
    for (const token of ordered) {
      if (!text.includes(token.content)) continue;
      sections = sections.flatMap((section) => ("text" in section ? cut(section.text, section.start, token) : [section]));
    }
    return sections;
  };
}

function cut(text: string, offset: number, token: AddedToken): Section[] {
  const sections: Section[] = [];
  let from = 0;
  for (let at = text.indexOf(token.content); at >= 0; at = text.indexOf(token.content, from)) {
    const end = at + token.content.length;
    if (at > from) sections.push({ text: text.slice(from, at), start: offset + from });
    sections.push(token);
    from = end;
  }
  if (from < text.length) sections.push({ text: text.slice(from), start: offset + from });
  return sections;
}
