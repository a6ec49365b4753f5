/**
 * How well a model predicts whole texts: any file, and WikiText-2, whose spaced-out tokens are joined to plain text before they are
 * scored, while words and bytes are counted as they stand in the file.
 */
import { MoeError } from "../../util/errors.ts";
import { strip } from "../python.ts";
import { missingText, textOf, type DatasetSpec, type Metric, type RollingTask } from "../task.ts";

const metrics: readonly Metric[] = [
  { name: "word_perplexity", aggregation: "weighted_perplexity", higherIsBetter: false },
  { name: "byte_perplexity", aggregation: "weighted_perplexity", higherIsBetter: false },
  { name: "bits_per_byte", aggregation: "bits_per_byte", higherIsBetter: false },
];
const tokenPerplexity: Metric = { name: "token_perplexity", aggregation: "weighted_perplexity", higherIsBetter: false };

function rollingTask(
  name: string,
  dataset: DatasetSpec,
  rest: Pick<RollingTask, "version" | "metrics" | "parse" | "target" | "counted">,
): RollingTask {
  const fixed = { description: "", numFewshot: 0, fixedFewshot: true, sampler: "default", text: () => "", answer: () => "" } as const;
  return { kind: "loglikelihood_rolling", name, alias: name, dataset, ...fixed, ...rest };
}

/**
 * Perplexity on a file: every document of it (a text file is one; JSONL, CSV and Parquet have one a row, in column `text`) is scored
 * whole, in windows of the model's length. Throws `usage` without a path.
 */
export function perplexityTask(name: string, path: string): RollingTask {
  if (path === "") throw new MoeError("usage", `${name}<file>: expected the path of a file, got nothing`);
  const dataset = { path, subset: null, names: [], split: "test", fewshotSplit: null };
  return rollingTask(name, dataset, {
    version: 1,
    metrics: [...metrics, tokenPerplexity],
    parse: (row) => (typeof row["text"] === "string" && row["text"] !== "" ? row : 'a text under "text" that is not empty'),
    target: (doc) => textOf(doc, "text"),
  });
}

export function wikitextTask(): RollingTask {
  const path = "EleutherAI/wikitext_document_level";
  const dataset = { path, subset: "wikitext-2-raw-v1", single: true, names: ["wikitext"], split: "test", fewshotSplit: null };
  return rollingTask("wikitext", dataset, {
    version: 2,
    metrics,
    parse: (row) => missingText(row, ["page"]) ?? row,
    target: (doc) => plainWikitext(textOf(doc, "page")),
    counted: (doc) => textOf(doc, "page"),
  });
}

/** What encloses text with spaces inside. */
const enclosures: readonly (readonly [string, string])[] = [
  ["(", ")"],
  ["[", "]"],
  ["{", "}"],
  ['"', '"'],
  ["'", "'"],
];
const replacements: readonly (readonly [string, string])[] = [
  ["= = = =", "===="],
  ["= = =", "==="],
  ["= =", "=="],
  [" \u00b0 ", "\u00b0"],
  [" \n", "\n"],
  ["\n ", "\n"],
  [" N ", " 1 "],
  [" 's", "'s"],
];

/** WikiText's tokens as running text. */
export function plainWikitext(page: string): string {
  let text = page.replaceAll("s '", "s'").replaceAll(/\/' [0-9]\//g, "/'[0-9]/");
  for (const mark of ["-", ",", "."]) text = text.replaceAll(` @${mark}@ `, mark);
  for (const mark of [":", ";", ".", "!", "?", ","]) text = text.replaceAll(` ${mark} `, `${mark} `);
  for (const [open, close] of enclosures) text = tightened(text, open, close);
  for (const [before, after] of replacements) text = text.replaceAll(before, after);
  return text;
}

/** Without white space next to an opening mark and the first closing one after it: `open\s*(.*?)\s*close`, in linear time. */
function tightened(text: string, open: string, close: string): string {
  let out = "";
  for (let from = 0; ;) {
    const start = text.indexOf(open, from);
    const end = start < 0 ? -1 : text.indexOf(close, start + 1);
    if (end < 0) return out + text.slice(from);
    out += text.slice(from, start) + open + strip(text.slice(start + 1, end)) + close;
    from = end + 1;
  }
}
