/**
 * The tasks that judge a completion: GSM8K (arXiv 2110.14168), whose answer is the number behind `####`, and HumanEval
 * (arXiv 2107.03374), whose answer is a program that must pass its tests. MATH is in math.ts.
 */
import { strip } from "../python.ts";
import { missingText, textOf, type Doc, type Filter, type GenerationTask, type Metric } from "../task.ts";

export const exactMatch: Metric = { name: "exact_match", aggregation: "mean", higherIsBetter: true };

/** What a filter gives where its pattern is not found. */
const invalid = "[invalid]";

/** The number behind the first `####`. */
const strictMatch: Filter = {
  name: "strict-match",
  apply: (completion) => {
    const [, number] = /#### (-?[0-9.,]+)/.exec(completion) ?? [];
    return number === undefined ? invalid : strip(number);
  },
};

/** The last thing that looks like a number. */
const flexibleExtract: Filter = {
  name: "flexible-extract",
  apply: (completion) => strip(completion.match(/-?[$0-9.,]{2,}|-?[0-9]+/g)?.at(-1) ?? invalid),
};

/** What does not count when answers are compared: thousands separators, dollars, the way to the answer, a final point. */
function comparableNumber(text: string): string {
  const plain = text.replaceAll(",", "").replaceAll("$", "");
  const mark = plain.lastIndexOf("#### ");
  return (mark < 0 ? plain : plain.slice(mark + "#### ".length)).replace(/\.(?=\n?$)/, "").toLowerCase();
}

export function gsm8kTask(): GenerationTask {
  return {
    kind: "generate_until",
    name: "gsm8k",
    alias: "gsm8k",
    version: 3,
    dataset: { path: "openai/gsm8k", subset: "main", single: true, names: ["gsm8k"], split: "test", fewshotSplit: "train" },
    description: "",
    numFewshot: 5,
    fixedFewshot: false,
    sampler: "default",
    metrics: [exactMatch],
    parse: (row) => missingText(row, ["question", "answer"]) ?? row,
    text: (doc) => `Question: ${textOf(doc, "question")}\nAnswer:`,
    answer: (doc) => textOf(doc, "answer"),
    target: (doc) => textOf(doc, "answer"),
    until: ["Question:", "</s>", "<|im_end|>"],
    maxTokens: 256,
    filters: [strictMatch, flexibleExtract],
    score: (filtered, doc) => ({ exact_match: comparableNumber(filtered) === comparableNumber(textOf(doc, "answer")) ? 1 : 0 }),
  };
}

function humanEvalTests(doc: Doc): string {
  return `${textOf(doc, "test")}\ncheck(${textOf(doc, "entry_point")})`;
}

export function humanEvalTask(): GenerationTask {
  return {
    kind: "generate_until",
    name: "humaneval",
    alias: "humaneval",
    version: 1,
    dataset: {
      path: "openai/openai_humaneval",
      subset: "openai_humaneval",
      single: true,
      names: ["humaneval", "HumanEval"],
      split: "test",
      fewshotSplit: null,
    },
    description: "",
    numFewshot: 0,
    fixedFewshot: true,
    sampler: "default",
    metrics: [{ name: "pass@1", aggregation: "mean", higherIsBetter: true }],
    parse: (row) => missingText(row, ["prompt", "test", "entry_point"]) ?? row,
    text: (doc) => textOf(doc, "prompt"),
    answer: humanEvalTests,
    target: humanEvalTests,
    until: ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
    maxTokens: 1024,
    filters: [{ name: "create_test", apply: (completion, doc) => textOf(doc, "prompt") + completion }],
    program: (filtered, doc) => `${filtered}\n${humanEvalTests(doc)}`,
  };
}
