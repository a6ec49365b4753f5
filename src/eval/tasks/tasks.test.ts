import { describe, expect, test } from "vitest";
import { ExampleSampler, promptOf } from "../prompt.ts";
import { isGroup, leaves, type Doc, type GenerationTask, type Task } from "../task.ts";
import {
  boxedAnswer,
  hendrycksEquivalent,
  hendrycksNormalized,
  mathEquivalent,
  minervaFinalAnswer,
  minervaNormalized,
} from "./math-answer.ts";
import { allTasks, chooseTasks } from "./registry.ts";

function task(name: string): Task {
  const found = allTasks().get(name);
  if (found === undefined || isGroup(found)) throw new Error(name);
  return found;
}
function parsed(of: Task, row: Doc): Doc {
  const doc = of.parse(row);
  if (typeof doc === "string") throw new Error(doc);
  return doc;
}
function generation(name: string): GenerationTask {
  const found = task(name);
  if (found.kind !== "generate_until") throw new Error(name);
  return found;
}
/** What each filter of a task makes of a completion, and the score of it. */
function judged(of: GenerationTask, completion: string, doc: Doc): unknown[] {
  return of.filters.map((filter) => [
    filter.name,
    filter.apply(completion, doc),
    of.score?.(filter.apply(completion, doc), doc)["exact_match"],
  ]);
}

describe("multiple choice", () => {
  test("an MMLU prompt names the subject, shows examples with their letters, and ends in Answer:", () => {
    const mmlu = task("mmlu_high_school_us_history");
    const doc = parsed(mmlu, { question: " Who? ", subject: "", choices: ["a", "b", "c", "d"], answer: 2 });
    expect(promptOf(mmlu, doc, [doc])).toBe(
      "The following are multiple choice questions (with answers) about high school us history.\n\n" +
        "Who?\nA. a\nB. b\nC. c\nD. d\nAnswer: C\n\n" +
        "Who?\nA. a\nB. b\nC. c\nD. d\nAnswer:",
    );
    expect(mmlu.target(doc)).toBe(2);
  });
  test("MMLU's original CSV rows become the same documents", () => {
    const doc = parsed(task("mmlu_anatomy"), { question: "q", A: "1", B: "2", C: "3", D: "4", answer: "B" });
    expect(doc).toEqual({ question: "q", subject: "", choices: ["1", "2", "3", "4"], answer: 1 });
  });
  test("CMMLU and C-Eval differ in their sentence and in the names of columns", () => {
    const cmmlu = task("cmmlu_agronomy");
    const row = { Question: "问", A: "一", B: "二", C: "三", D: "四", Answer: "D" };
    expect(promptOf(cmmlu, parsed(cmmlu, row), [])).toBe(
      "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n问\nA. 一\nB. 二\nC. 三\nD. 四\n答案：",
    );
    const ceval = task("ceval-valid_logic");
    const doc = parsed(ceval, { id: 0, question: "问", A: "一", B: "二", C: "三", D: "四", answer: "D", explanation: "" });
    expect(promptOf(ceval, doc, [doc])).toContain(
      "以下是中国关于逻辑学的单项选择题，请选出其中的正确答案。\n\n问\nA. 一\nB. 二\nC. 三\nD. 四\n答案： D\n\n问",
    );
    expect([ceval.dataset.split, ceval.dataset.fewshotSplit, ceval.version]).toEqual(["val", "dev", 2]);
  });
  test.each([
    ["mmlu_anatomy", { question: "q", choices: ["a", "b", "c"], answer: 0 }, "four texts"],
    ["mmlu_anatomy", { question: "q", choices: ["a", "b", "c", "d"], answer: 4 }, "0 to 3"],
    ["mmlu_anatomy", { choices: [] }, '"question"'],
    ["cmmlu_agronomy", { Question: "q", A: "", B: "", C: "", D: "", Answer: "E" }, "A, B, C or D"],
    ["cmmlu_agronomy", { Question: "q", A: "", B: "", C: "", Answer: "A" }, '"D"'],
    ["gsm8k", { question: "q" }, '"answer"'],
    ["minerva_math_algebra", { problem: "p", solution: "no box" }, "boxed"],
    ["minerva_math_algebra", { problem: "p", solution: `\\boxed{${"1".repeat(20_000)}}` }, "at most 10000 characters"],
    ["humaneval", { prompt: "p", test: "t" }, '"entry_point"'],
  ])("a broken row of %s is refused with what it lacks", (name, row, complaint) => {
    expect(task(name).parse(row)).toContain(complaint);
  });
});

describe("GSM8K", () => {
  const gsm8k = generation("gsm8k");
  const doc = { question: "How many?", answer: "2 + 3 = <<2+3=5>>5\n#### 1,005" };
  test("shows examples with their whole answers", () => {
    expect(promptOf(gsm8k, doc, [doc])).toBe(`Question: How many?\nAnswer: ${doc.answer}\n\nQuestion: How many?\nAnswer:`);
  });
  test.each([
    ["It is\n#### 1005\nmore #### 7", "1005", 1, "7", 0],
    ["#### $1,005.", "[invalid]", 0, "$1,005.", 1],
    ["So 12 apples, then 1005", "[invalid]", 0, "1005", 1],
    ["none", "[invalid]", 0, "[invalid]", 0],
    ["#### -3", "-3", 0, "-3", 0],
  ])("filters of %j", (completion, strict, strictScore, flexible, flexibleScore) => {
    expect(judged(gsm8k, completion, doc)).toEqual([
      ["strict-match", strict, strictScore],
      ["flexible-extract", flexible, flexibleScore],
    ]);
  });
  test("draws examples anew for each prompt, the same ones for the same seed", () => {
    const pool = Array.from({ length: 100 }, (_, i) => ({ question: String(i), answer: "" }));
    const draw = (): string[] => {
      const sampler = new ExampleSampler(gsm8k, pool, 5, 1234);
      return [sampler.next(5), sampler.next(5)].map((docs) => docs.map(({ question }) => String(question)).join(" "));
    };
    // CPython: q = random.Random(1234); q.sample(range(100), 5), q.sample(range(100), 5)
    expect(draw()).toEqual(draw());
    expect(new Set(draw()).size).toBe(2);
    expect(() => new ExampleSampler(gsm8k, pool.slice(0, 4), 5, 1)).toThrow("expected 5 examples");
  });
});

describe("MATH", () => {
  test("the answer is what the last box holds, braces and all", () => {
    expect(boxedAnswer("so \\boxed{1} and \\boxed{\\frac{1}{2}}.")).toBe("\\frac{1}{2}");
    expect(boxedAnswer("so \\boxed 7$ ends")).toBe("7");
    expect(boxedAnswer("no")).toBeNull();
    expect(boxedAnswer("\\boxed{open")).toBeNull();
  });
  test.each([
    ["$x = 5$ cm", "5"],
    ["1,000", "1000"],
    ["0,1", "0,1"],
    ["\\left(2,3\\right)", "\\left(2,3\\right)"],
    ["\\frac12", "\\frac{1}{2}"],
    ["\\sqrt[3]8", "\\sqrt[3]{8}"],
    ["30^{\\circ}", "30"],
    ["\\text{yes}", "yes"],
    ["12 dollars", "12"],
  ])("Minerva writes %j as %j", (answer, normalized) => {
    // Expected: lm-evaluation-harness 0.4.13, normalize_final_answer.
    expect(minervaNormalized(answer)).toBe(normalized);
  });
  test.each([
    ["\\tfrac12", "\\frac{1}{2}"],
    ["0.5", "\\frac{1}{2}"],
    ["k = 3", "3"],
    ["\\sqrt3", "\\sqrt{3}"],
    ["3\\text{ cm}", "3"],
    ["1/2", "\\frac{1}{2}"],
    ["x/2", null],
    ["a\\text{ b}\\text{ c}", null],
  ])("the authors write %j as %j", (answer, normalized) => {
    expect(hendrycksNormalized(answer)).toBe(normalized);
  });
  test("answers are the same as text, as tidied LaTeX or as rational numbers, and not otherwise", () => {
    expect(mathEquivalent("\\frac{2}{4}", "0.5")).toBe(true);
    expect(mathEquivalent("[2,5)", "[2,5)")).toBe(true);
    expect(mathEquivalent("-1/3", "-\\frac{1}{3}")).toBe(true);
    expect(mathEquivalent("0.333", "\\frac{1}{3}")).toBe(false);
    expect(mathEquivalent("x+1", "1+x")).toBe(false);
    expect(mathEquivalent("[invalidanswer]", "[invalidanswer]")).toBe(false);
    expect(hendrycksEquivalent("x/2", "x/2")).toBe(true);
    expect(hendrycksEquivalent("\\frac{2}{4}", "\\frac{1}{2}")).toBe(false);
  });
  test("minerva_math reads the final answer of a completion; four examples stand before the problem", () => {
    const minerva = generation("minerva_math_algebra");
    const doc = parsed(minerva, { problem: "p?", level: "1", solution: "\\boxed{\\frac12}" });
    expect(doc["answer"]).toBe("\\frac{1}{2}");
    const prompt = promptOf(minerva, doc, minerva.fewshotDocs ?? []);
    expect(prompt).toMatch(/^Problem:\nFind the domain.*\n\nSolution: The expressions/);
    expect(prompt.match(/I hope it is correct\.\n\nProblem:\n/g)).toHaveLength(4);
    expect(prompt.endsWith("Problem:\np?\n\nSolution:")).toBe(true);
    const score = (text: string): unknown => minerva.score?.(text, doc)["exact_match"];
    expect(score("Final Answer: The final answer is $0.5$. I hope it is correct.")).toBe(1);
    expect(score("It is $0.5$.")).toBe(0);
    expect(minervaFinalAnswer("x")).toBe("[invalidanswer]");
    // re.search and str.strip of CPython: a carriage return is a character like others, a line feed ends the search.
    expect(minervaFinalAnswer("Final Answer: The final answer is 1\r2. I hope it is correct.")).toBe("1\r2");
    expect(minervaFinalAnswer("Final Answer: The final answer is 1\n2. I hope it is correct.")).toBe("[invalidanswer]");
  });
  test("hendrycks_math reads what stands between dollars, and the whole text where nothing does", () => {
    const hendrycks = generation("hendrycks_math_algebra");
    const doc = parsed(hendrycks, { problem: "p", solution: "\\boxed{3}" });
    expect(["$x$ so $3$", " 3", "3 $"].map((text) => hendrycks.score?.(text, doc)["exact_match"])).toEqual([0, 1, 0]);
    expect(hendrycks.score?.("it is $3$", doc)["exact_match"]).toBe(1);
  });
});

test("a HumanEval program is the prompt, the completion, the tests and their call", () => {
  const humaneval = generation("humaneval");
  const doc = { task_id: "x", prompt: "def f():\n", test: "def check(g):\n    assert g()", entry_point: "f" };
  const filtered = humaneval.filters[0]?.apply("    return 1", doc) ?? "";
  expect(humaneval.program?.(filtered, doc)).toBe("def f():\n    return 1\ndef check(g):\n    assert g()\ncheck(f)");
});

test("WikiText is joined to plain text; words and bytes are those of the file", () => {
  // Expected: lm-evaluation-harness 0.4.13, wikitext_detokenizer.
  const page = " = = Title = = \n He ( the \" old \" one ) had 1 @,@ 000 dogs ' and 3 @.@ 5 cats ; so , N \n it 's [ x ] .";
  const wikitext = task("wikitext");
  expect(wikitext.target({ page })).toBe(" == Title ==\nHe (the \"old\" one) had 1,000 dogs'and 3.5 cats; so, N\nit's [x] .");
  expect(wikitext.kind === "loglikelihood_rolling" && wikitext.counted?.({ page })).toBe(page);
});

test("a row of megabytes that was made to be slow takes linear time", () => {
  const spaces = " ".repeat(1 << 20);
  const started = performance.now();
  for (const page of [`(${spaces}`, "(".repeat(1 << 20), `x${spaces}x`, `"${spaces}"`])
    expect(task("wikitext").target({ page })).toBeTypeOf("string");
  const mmlu = task("mmlu_anatomy");
  expect(mmlu.text({ question: `a${spaces}b `, choices: ["1", "2", "3", "4"], answer: 0 })).toContain(`a${spaces}b\nA. 1`);
  expect(generation("gsm8k").score?.("1", { answer: `${"#".repeat(1 << 20)}${spaces}1` })).toEqual({ exact_match: 0 });
  // Milliseconds each; a quadratic one would be minutes.
  expect(performance.now() - started).toBeLessThan(5000);
});

describe("names of tasks", () => {
  test("groups hold every subject once", () => {
    const sizes = ["mmlu", "mmlu_stem", "cmmlu", "ceval-valid", "minerva_math"].map(
      (name) => leaves(chooseTasks([name])[0] ?? task("gsm8k")).length,
    );
    expect(sizes).toEqual([57, 19, 67, 52, 7]);
  });
  test("an unknown one is refused with its neighbour, and the top names", () => {
    expect(() => chooseTasks(["gsm8"])).toThrow(/gsm8.*did you mean "gsm8k".*mmlu, cmmlu, ceval-valid, gsm8k/);
    expect(() => chooseTasks(["perplexity:"])).toThrow("expected the path of a file");
  });
});
