/**
 * MATH (arXiv 2103.03874), by two prompts: Minerva's four examples that end in "The final answer is" (`minerva_math`), and the
 * plain question (`hendrycks_math`). Seven subjects each; `minerva_math500` is the first prompt over the MATH-500 selection.
 */
import { missingText, textOf, type DatasetSpec, type Doc, type GenerationTask, type TaskGroup } from "../task.ts";
import { exactMatch } from "./generation.ts";
import { boxedAnswer, hendrycksEquivalent, mathEquivalent, minervaFinalAnswer, minervaNormalized } from "./math-answer.ts";
import { minervaExamples } from "./minerva.ts";

/** Name of the task, and of its data. */
const subjects: readonly (readonly [string, string])[] = [
  ["algebra", "algebra"],
  ["counting_and_prob", "counting_and_probability"],
  ["geometry", "geometry"],
  ["intermediate_algebra", "intermediate_algebra"],
  ["num_theory", "number_theory"],
  ["prealgebra", "prealgebra"],
  ["precalc", "precalculus"],
];

const common = {
  kind: "generate_until",
  description: "",
  fixedFewshot: false,
  metrics: [exactMatch],
  until: ["Problem:"],
  maxTokens: 256,
} as const;

/** Longer answers are none: the rules that compare answers take quadratic time. */
const maxAnswerCharacters = 10_000;

/** The row with its answer under `answer`. */
function parseProblem(normalize: (answer: string) => string): (row: Doc) => Doc | string {
  return (row) => {
    const missing = missingText(row, ["problem", "solution"]);
    if (missing !== null) return missing;
    const answer = boxedAnswer(textOf(row, "solution"));
    if (answer === null) return "a solution with its answer in \\boxed{}, got none";
    if (answer.length > maxAnswerCharacters)
      return `an answer of at most ${maxAnswerCharacters} characters in \\boxed{}, got ${answer.length}`;
    return { ...row, answer: normalize(answer) };
  };
}

function data(subset: string): DatasetSpec {
  return { path: "EleutherAI/hendrycks_math", subset, names: ["hendrycks_math", "MATH", "math"], split: "test", fewshotSplit: null };
}

function minervaTask(name: string, dataset: DatasetSpec): GenerationTask {
  return {
    ...common,
    name,
    alias: name,
    version: 3.1,
    dataset,
    numFewshot: 4,
    sampler: "first_n",
    fewshotDocs: minervaExamples,
    parse: parseProblem(minervaNormalized),
    text: (doc) => `Problem:\n${textOf(doc, "problem")}\n\nSolution:`,
    answer: (doc) => textOf(doc, "solution"),
    target: (doc) => textOf(doc, "answer"),
    filters: [{ name: "none", apply: (completion) => completion }],
    score: (completion, doc) => {
      const answer = minervaNormalized(minervaFinalAnswer(completion));
      return { exact_match: mathEquivalent(answer, textOf(doc, "answer")) ? 1 : 0 };
    },
  };
}

function hendrycksTask([name, subset]: readonly [string, string]): GenerationTask {
  return {
    ...common,
    name: `hendrycks_math_${name}`,
    alias: `hendrycks_math_${name}`,
    version: 1,
    dataset: { ...data(subset), fewshotSplit: "train" },
    numFewshot: 0,
    sampler: "default",
    parse: parseProblem((answer) => answer),
    text: (doc) => `Problem: ${textOf(doc, "problem")}\nAnswer:`,
    answer: (doc) => textOf(doc, "answer"),
    target: (doc) => textOf(doc, "answer"),
    filters: [{ name: "none", apply: (completion) => completion }],
    score: (completion, doc) => ({ exact_match: hendrycksEquivalent(betweenDollars(completion), textOf(doc, "answer")) ? 1 : 0 }),
  };
}

/** From the first dollar to the last, where there are two. */
function betweenDollars(text: string): string {
  const [first, last] = [text.indexOf("$"), text.lastIndexOf("$")];
  return first < last ? text.slice(first + 1, last) : text;
}

export function minervaMathTasks(): TaskGroup {
  const children = subjects.map(([name, subset]) => minervaTask(`minerva_math_${name}`, data(subset)));
  return { name: "minerva_math", alias: "minerva_math", version: 1, metrics: ["exact_match"], children };
}

export function math500Task(): GenerationTask {
  const names = ["MATH-500", "math500", "math-500"];
  return minervaTask("minerva_math500", { ...data(""), path: "HuggingFaceH4/MATH-500", subset: null, names });
}

export function hendrycksMathTasks(): TaskGroup {
  const children = subjects.map(hendrycksTask);
  return { name: "hendrycks_math", alias: "hendrycks_math", version: 1, metrics: ["exact_match"], children };
}
