/**
 * When two answers to a MATH problem are the same. The final answer of a text is found, written in one way, and compared: as text,
 * then as a rational number where both are one. This is not computer algebra: `x+1` and `1+x` differ here.
 *
 * Two sets of rules, as published: Minerva's (arXiv 2206.14858, appendix D), which finds "Final Answer: The final answer is ...",
 * and those of the data set's authors (arXiv 2103.03874), which tidy LaTeX.
 */
import { strip } from "../python.ts";
import { minervaRemovals, minervaSubstitutions } from "./minerva.ts";

/** The content of the last `\boxed{...}` of a solution, or of its last `\boxed x`; null where there is none that closes. */
export function boxedAnswer(solution: string): string | null {
  const spaced = solution.split("\\boxed ");
  if (spaced.length > 1) return (spaced.at(-1) ?? "").split("$")[0] ?? "";
  const start = solution.lastIndexOf("\\boxed");
  if (start < 0 || !solution.startsWith("\\boxed{", start)) return null;
  let depth = 0;
  for (let i = start; i < solution.length; i++) {
    if (solution[i] === "{") depth++;
    if (solution[i] === "}" && --depth === 0) return solution.slice(start + "\\boxed{".length, i);
  }
  return null;
}

const noAnswer = "[invalidanswer]";

// Python's `.` is any character but a line feed; that of JavaScript excludes carriage returns and two more.
const finalAnswer = /Final Answer: The final answer is([^\n]*?)[^\n] I hope it is correct[^\n]/;

/** What a completion calls its final answer, as Minerva's prompt asks for it. */
export function minervaFinalAnswer(completion: string): string {
  const [, answer] = finalAnswer.exec(`${completion}I hope it is correct.`) ?? [];
  return answer === undefined ? noAnswer : strip(answer);
}

/** Minerva's one way of writing an answer. */
export function minervaNormalized(answer: string): string {
  let text = answer.split("=").at(-1) ?? "";
  // Units go while spaces still set them apart: "ft" is not to be found in "\left".
  for (const unit of units) text = text.replaceAll(new RegExp(`(?<![\\\\\\p{L}\\p{N}_])${unit}(?![\\p{L}\\p{N}_])`, "gu"), "");
  for (const [before, after] of minervaSubstitutions) text = text.replaceAll(before, after);
  for (const removed of minervaRemovals) text = isWord(removed) ? outsideCommands(text, removed) : text.replaceAll(removed, "");
  text = text
    .replace(/([^\n]*?)\$([^\n]*?)\$([^\n]*)/g, "$$$2$$")
    .replace(/\\text\{([^\n]*?)\}/g, "$1")
    .replace(/\\textbf\{([^\n]*?)\}/g, "$1")
    .replace(/\\overline\{([^\n]*?)\}/g, "$1")
    .replace(/\\boxed\{([^\n]*)\}/g, "$1")
    .replace(/frac([^{])([^\n])/g, "frac{$1}{$2}")
    .replace(/(sqrt\[[^\]]*\])([\p{L}\p{N}_])/gu, "$1{$2}")
    .replace(/sqrt(?!\[)([^{])/g, "sqrt{$1}")
    .replaceAll("$", "");
  return /^-?\d{1,3}(,\d{3})+$/.test(text) ? text.replaceAll(",", "") : text;
}

function isWord(text: string): boolean {
  return /^[a-zA-Z]+$/.test(text);
}
const units = minervaRemovals.filter(isWord);

/** The text without a word, but for what stands in LaTeX commands. */
function outsideCommands(text: string, word: string): string {
  const parts = text.split(/(\\[a-zA-Z]+)/);
  return parts.map((part, i) => (i % 2 === 0 ? part.replaceAll(word, "") : part)).join("");
}

/** The authors' way of writing an answer; null for one that their rules stumble over (two units, a root or fraction of nothing, `x/2`). */
export function hendrycksNormalized(answer: string): string | null {
  let text = answer.replaceAll("\n", "").replaceAll("\\!", "").replaceAll("\\\\", "\\");
  text = text.replaceAll("tfrac", "frac").replaceAll("dfrac", "frac").replaceAll("\\left", "").replaceAll("\\right", "");
  text = text.replaceAll("^{\\circ}", "").replaceAll("^\\circ", "").replaceAll("\\$", "");
  const [beforeUnits = "", ...units] = text.split("\\text{ ");
  if (units.length > 1) return null;
  text = beforeUnits.replaceAll("\\%", "").replaceAll(" .", " 0.").replaceAll("{.", "{0.");
  if (text === "") return text;
  if (text.startsWith(".")) text = `0${text}`;
  const [name = "", value, ...more] = text.split("=");
  if (value !== undefined && more.length === 0 && name.length <= 2) text = value;
  if (/\\sqrt(?=$|\\sqrt)/.test(text)) return null;
  text = text.replace(/\\sqrt([^{])/g, "\\sqrt{$1}").replaceAll(" ", "");
  const fractions = bracedFractions(text);
  if (fractions === null) return null;
  text = fractions === "0.5" ? "\\frac{1}{2}" : fractions;
  const [a = "", b, ...rest] = text.split("/");
  if (b === undefined || rest.length > 0) return text;
  if (!/^[+-]?\d+$/.test(a) || !/^[+-]?\d+$/.test(b)) return null;
  return text === `${BigInt(a.replace("+", ""))}/${BigInt(b.replace("+", ""))}` ? `\\frac{${a}}{${b}}` : text;
}

/** `\frac12` and `\frac1{2}` as `\frac{1}{2}`; the text as it is where a fraction is cut short, null where it has nothing at all. */
function bracedFractions(text: string): string | null {
  const [first = "", ...parts] = text.split("\\frac");
  let out = first;
  for (const part of parts) {
    if (part === "") return null;
    if (part.startsWith("{")) {
      out += `\\frac${part}`;
      continue;
    }
    if (part.length < 2) return text;
    const [a = "", b = ""] = part;
    out += b === "{" ? `\\frac{${a}}${part.slice(1)}` : `\\frac{${a}}{${b}}${part.slice(2)}`;
  }
  return out;
}

/** A number written as one (`-3`, `0.25`, `\frac{1}{4}`, `1/4`) as a fraction in lowest terms; null for anything else. */
function rational(text: string): readonly [bigint, bigint] | null {
  const [, sign = "", a, b] = /^(-?)\\frac\{(-?\d{1,40})\}\{(\d{1,40})\}$/.exec(text) ?? /^(-?)(\d{1,40})\/(\d{1,40})$/.exec(text) ?? [];
  if (a !== undefined && b !== undefined) return BigInt(b) === 0n ? null : reduced((sign === "-" ? -1n : 1n) * BigInt(a), BigInt(b));
  const [, minus = "", whole = "", , decimals = ""] = /^(-?)(\d{0,40})(\.(\d{1,40}))?$/.exec(text) ?? [];
  if (whole + decimals === "") return null;
  return reduced((minus === "-" ? -1n : 1n) * BigInt(whole + decimals), 10n ** BigInt(decimals.length));
}

function reduced(a: bigint, b: bigint): readonly [bigint, bigint] {
  let [x, y] = [a < 0n ? -a : a, b];
  while (y !== 0n) [x, y] = [y, x % y];
  return x === 0n ? [0n, 1n] : [a / x, b / x];
}

/** Whether the authors' rules call two answers the same; as they are written, where the rules stumble over one. */
export function hendrycksEquivalent(a: string, b: string): boolean {
  const [x, y] = [hendrycksNormalized(a), hendrycksNormalized(b)];
  return x === null || y === null ? a === b : x === y;
}

/** Whether two answers, written Minerva's way, are the same text, the same by the authors' rules, or the same rational number. */
export function mathEquivalent(a: string, b: string): boolean {
  if (a === noAnswer) return false;
  const [x, y] = [hendrycksNormalized(a) ?? a, hendrycksNormalized(b) ?? b];
  if (a === b || x === y) return true;
  const [p, q] = [rational(x), rational(y)];
  return p !== null && q !== null && p[0] === q[0] && p[1] === q[1];
}
