/**
 * The multiple-choice tasks: MMLU, CMMLU and the validation split of C-Eval. Each subject is a task, and all are one prompt:
 * a sentence that names the subject, the question, four lettered answers, and a word that asks for the letter. The four
 * letters are compared by their log-likelihood.
 */
import { strip } from "../python.ts";
import { missingText, textOf, type DatasetSpec, type Doc, type Metric, type MultipleChoiceTask, type TaskGroup } from "../task.ts";
import { cevalSubjects, cmmluSubjects, mmluCategories } from "./subjects.ts";

const letters = ["A", "B", "C", "D"] as const;
const accuracy: Metric = { name: "acc", aggregation: "mean", higherIsBetter: true };
const normalizedAccuracy: Metric = { name: "acc_norm", aggregation: "mean", higherIsBetter: true };

interface Subject {
  readonly name: string;
  readonly alias: string;
  readonly version: number;
  readonly description: string;
  readonly dataset: DatasetSpec;
  readonly metrics: readonly Metric[];
  /** The word before the answer. */
  readonly answerWord: string;
  readonly questionKey: string;
  readonly choiceTexts: (doc: Doc) => readonly string[];
  readonly correct: (doc: Doc) => number;
  parse(row: Doc): Doc | string;
}

function choiceTask(subject: Subject): MultipleChoiceTask {
  const { questionKey, answerWord, choiceTexts, correct, ...rest } = subject;
  return {
    ...rest,
    kind: "multiple_choice",
    choices: letters,
    numFewshot: 0,
    fixedFewshot: false,
    sampler: "first_n",
    text: (doc) => {
      const options = choiceTexts(doc).map((text, i) => `${letters[i]}. ${text}\n`);
      return `${strip(textOf(doc, questionKey))}\n${options.join("")}${answerWord}`;
    },
    target: correct,
    answer: (doc) => letters[correct(doc)] ?? "",
  };
}

/** MMLU's rows: a list of choices and the answer's number; in the original CSV, columns A to D and its letter. */
function parseMmlu(row: Doc): Doc | string {
  const missing = missingText(row, ["question"]);
  if (missing !== null) return missing;
  const { choices, answer } = row;
  if (choices === undefined) {
    const absent = missingText(row, letters);
    if (absent !== null) return absent;
    const index = letters.findIndex((letter) => letter === answer);
    if (index < 0) return `an answer A, B, C or D, got ${JSON.stringify(answer)}`;
    const { question, subject = "" } = row;
    return { question, subject, choices: letters.map((letter) => row[letter]), answer: index };
  }
  if (!Array.isArray(choices) || choices.length !== 4 || !choices.every((choice) => typeof choice === "string"))
    return `four texts under "choices", got ${JSON.stringify(choices)}`;
  if (!(typeof answer === "number" && Number.isInteger(answer) && answer >= 0 && answer < 4))
    return `an answer from 0 to 3, got ${JSON.stringify(answer)}`;
  return row;
}

/** Rows of columns A to D and an answer's letter. */
function parseLettered(questionKey: string, answerKey: string): (row: Doc) => Doc | string {
  return (row) => {
    const missing = missingText(row, [questionKey, ...letters]);
    if (missing !== null) return missing;
    const answer = row[answerKey];
    return letters.some((letter) => letter === answer) ? row : `an answer A, B, C or D under "${answerKey}", got ${JSON.stringify(answer)}`;
  };
}

function mmluSubject(subject: string): MultipleChoiceTask {
  return choiceTask({
    name: `mmlu_${subject}`,
    alias: subject,
    version: 1,
    description: `The following are multiple choice questions (with answers) about ${subject.replaceAll("_", " ")}.\n\n`,
    dataset: {
      path: "cais/mmlu",
      subset: subject,
      names: ["mmlu"],
      split: "test",
      fewshotSplit: "dev",
      columns: ["question", ...letters, "answer"],
    },
    metrics: [accuracy],
    answerWord: "Answer:",
    questionKey: "question",
    choiceTexts: (doc) => (Array.isArray(doc["choices"]) ? doc["choices"].map(String) : []),
    correct: (doc) => Number(doc["answer"]),
    parse: parseMmlu,
  });
}

/** CMMLU and C-Eval, which differ in names. */
function chineseSubject(options: Pick<Subject, "name" | "version" | "description" | "dataset" | "questionKey">, answerKey: string) {
  return choiceTask({
    ...options,
    alias: options.name,
    metrics: [accuracy, normalizedAccuracy],
    answerWord: "答案：",
    choiceTexts: (doc) => letters.map((letter) => textOf(doc, letter)),
    correct: (doc) => letters.findIndex((letter) => letter === doc[answerKey]),
    parse: parseLettered(options.questionKey, answerKey),
  });
}

function cmmluSubject([subject, title]: readonly [string, string]): MultipleChoiceTask {
  const dataset = { path: "haonan-li/cmmlu", subset: subject, names: ["cmmlu"], split: "test", fewshotSplit: "dev" };
  const description = `以下是关于${title}的单项选择题，请直接给出正确答案的选项。\n\n`;
  return chineseSubject({ name: `cmmlu_${subject}`, version: 1, description, dataset, questionKey: "Question" }, "Answer");
}

function cevalSubject([subject, title]: readonly [string, string]): MultipleChoiceTask {
  const dataset = { path: "ceval/ceval-exam", subset: subject, names: ["ceval", "ceval-exam"], split: "val", fewshotSplit: "dev" };
  const description = `以下是中国关于${title}的单项选择题，请选出其中的正确答案。\n\n`;
  return chineseSubject({ name: `ceval-valid_${subject}`, version: 2, description, dataset, questionKey: "question" }, "answer");
}

export function mmluTasks(): TaskGroup {
  const children = Object.entries(mmluCategories).map(([category, subjects]): TaskGroup => {
    const alias = category.replaceAll("_", " ");
    return { name: `mmlu_${category}`, alias, version: 2, metrics: ["acc"], children: subjects.map(mmluSubject) };
  });
  return { name: "mmlu", alias: "mmlu", version: 2, metrics: ["acc"], children };
}

export function cmmluTasks(): TaskGroup {
  const children = Object.entries(cmmluSubjects).map(cmmluSubject);
  return { name: "cmmlu", alias: "cmmlu", version: 1, metrics: ["acc", "acc_norm"], children };
}

export function cevalTasks(): TaskGroup {
  const children = Object.entries(cevalSubjects).map(cevalSubject);
  return { name: "ceval-valid", alias: "ceval-valid", version: 2, metrics: ["acc", "acc_norm"], children };
}
