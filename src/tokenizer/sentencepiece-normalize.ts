/**
 * SentencePiece's normalizer: longest-match rules of the character map, white space removed or kept as the model says,
 * spaces written as U+2581, and a space put before (or after) the text. User-defined symbols pass untouched.
 */

import { CharsMap } from "./charsmap.ts";
import type { SentencePieceModel } from "./source.ts";
import type { Trie } from "./trie.ts";

export function sentencePieceNormalizer(model: SentencePieceModel, userDefined: Trie, origin: string): (text: string) => string {
  const map = model.charsMap.length > 0 ? new CharsMap(model.charsMap, origin) : undefined;
  const removes = model.removeExtraWhitespaces;
  return (text) => {
    if (text === "") return "";
    const chunks = map === undefined ? [text] : mapped(text, map, userDefined);
    let normalized = removes ? squeeze(chunks) : chunks.join("");
    if (removes && normalized === "") return "";
    if (model.addDummyPrefix) normalized = model.whitespaceAsSuffix ? `${normalized} ` : ` ${normalized}`;
    return model.escapeWhitespaces ? normalized.replaceAll(" ", "▁") : normalized;
  };
}

/** The text in chunks, each the result of one rule, one symbol or one character. */
function mapped(text: string, map: CharsMap, userDefined: Trie): string[] {
  const bytes = new TextEncoder().encode(text);
  const chunks: string[] = [];
  let at = 0;
  for (let i = 0; i < text.length;) {
    const symbol = userDefined.longestAt(text, i);
    const rule = symbol > 0 ? undefined : map.longestAt(bytes, at);
    if (rule !== undefined) {
      chunks.push(rule[0]);
      const end = at + rule[1];
      while (at < end) {
        const codePoint = text.codePointAt(i) as number;
        at += utf8Length(codePoint);
        i += codePoint > 0xffff ? 2 : 1;
      }
      continue;
    }
    const stop = symbol > 0 ? i + symbol : i + ((text.codePointAt(i) as number) > 0xffff ? 2 : 1);
    chunks.push(text.slice(i, stop));
    while (i < stop) {
      const codePoint = text.codePointAt(i) as number;
      at += utf8Length(codePoint);
      i += codePoint > 0xffff ? 2 : 1;
    }
  }
  return chunks;
}

function utf8Length(codePoint: number): number {
  if (codePoint < 0x80) return 1;
  if (codePoint < 0x800) return 2;
  return codePoint < 0x10000 ? 3 : 4;
}

/** Without spaces at both ends and after another space. Only the space itself counts: the map has turned the rest into it. */
function squeeze(chunks: readonly string[]): string {
  const out: string[] = [];
  let afterSpace = true;
  for (const chunk of chunks.length === 1 ? Array.from(chunks[0] as string) : chunks) {
    let kept = chunk;
    if (afterSpace) while (kept.startsWith(" ")) kept = kept.slice(1);
    if (kept !== "") {
      out.push(kept);
      afterSpace = kept.endsWith(" ");
    }
  }
  let text = out.join("");
  while (text.endsWith(" ")) text = text.slice(0, -1);
  return text;
}
