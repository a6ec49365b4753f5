/** `/v1/completions`: text after one or several prompts. */
import type { ServerResponse } from "node:http";
import { Answers, type Answer } from "../answers.ts";
import type { ServerContext } from "../context.ts";
import { badRequest } from "../errors.ts";
import { completionLogprobs, joinLogprobs, promptLogprobs, type CompletionLogprobs } from "../logprobs.ts";
import type { GenerateTask, TaskEvent } from "../protocol.ts";
import { runTasks, type RunUsage } from "../run.ts";
import type { CompletionRequest } from "../schemas.ts";
import type { EventStream } from "../sse.ts";
import { checkStreamOptions, promptsOf, taskOf } from "../tasks.ts";
import { newId, usageOf } from "../shared.ts";

const defaultMaxTokens = 16;

function tasksOf(body: CompletionRequest, context: ServerContext): GenerateTask[] {
  const { n, best_of: bestOf, echo, logprobs } = body;
  if ((body.suffix ?? "") !== "")
    throw badRequest("suffix: text in the middle is not something that this server makes", "suffix", "unsupported");
  checkStreamOptions(body);
  const candidates = bestOf ?? n ?? 1;
  if (candidates < (n ?? 1)) throw badRequest(`best_of: expected at least n (${n}), got ${bestOf}`, "best_of");
  if (body.stream === true && candidates > (n ?? 1)) throw badRequest("best_of: more than n cannot be streamed", "best_of");
  const maxTokens = body.max_tokens ?? defaultMaxTokens;
  if (maxTokens === 0 && echo !== true) throw badRequest("max_tokens: 0 only with echo", "max_tokens");
  // Which of the candidates is best is told by their log-probabilities.
  const wanted = logprobs ?? (candidates > (n ?? 1) ? 0 : null);
  return promptsOf(body.prompt).map((prompt) => ({
    ...taskOf(prompt, maxTokens, body, context.randomSeed),
    n: candidates,
    echo: echo === true,
    logprobs: wanted,
    promptLogprobs: echo === true ? (logprobs ?? null) : null,
  }));
}

interface Choice {
  readonly index: number;
  readonly text: string;
  readonly logprobs: CompletionLogprobs | null;
  readonly finish_reason: "stop" | "length" | null;
  readonly stop_reason?: string | number | null;
}

export async function completions(context: ServerContext, response: ServerResponse, body: CompletionRequest): Promise<unknown> {
  const tasks = tasksOf(body, context);
  const answers = new Answers(tasks.length);
  const usage = await runTasks(context, response, tasks, (index, event) => {
    answers.receive(index, event);
  });
  const n = body.n ?? 1;
  const choices = tasks.flatMap((_, index) =>
    answers.best(index, n).map((answer, c) => choiceOf(body, answers, index, answer, index * n + c)),
  );
  return { ...head(context), choices, usage: usageOf(usage) };
}
function head(context: ServerContext): { id: string; object: "text_completion"; created: number; model: string } {
  return { id: newId("cmpl"), object: "text_completion", created: Math.floor(Date.now() / 1000), model: context.modelName };
}
function choiceOf(body: CompletionRequest, answers: Answers, index: number, answer: Answer, number: number): Choice {
  const prompt = answers.prompt(index);
  const echo = body.echo === true;
  let logprobs: CompletionLogprobs | null = null;
  if (typeof body.logprobs === "number") {
    const own = completionLogprobs(answer.tokens, body.logprobs, echo ? prompt.text.length : 0);
    logprobs = echo ? joinLogprobs(promptLogprobs(prompt, body.logprobs), own) : own;
  }
  return {
    index: number,
    text: echo ? prompt.text + answer.text : answer.text,
    logprobs,
    finish_reason: answer.reason,
    stop_reason: answer.stoppedBy,
  };
}

/** The same as events: one a token, then one a finished choice. */
export async function streamCompletions(
  context: ServerContext,
  response: ServerResponse,
  body: CompletionRequest,
  stream: EventStream,
): Promise<void> {
  const tasks = tasksOf(body, context);
  const top = head(context);
  const n = body.n ?? 1;
  const withUsage = body.stream_options?.include_usage === true;
  const send = (choice: Choice): void => {
    stream.send({ ...top, choices: [choice], ...(withUsage ? { usage: null } : {}) });
  };
  const writers = tasks.map((_, index) => new ChoiceWriter(body, index * n, n, send));
  let accepted = 0;
  const usage: RunUsage = await runTasks(context, response, tasks, (index, event) => {
    // The head goes out when nothing can be refused any more.
    if (event.type === "accepted" && ++accepted === tasks.length) stream.open();
    writers[index]?.receive(event);
  });
  if (withUsage) stream.send({ ...top, choices: [], usage: usageOf(usage) });
  stream.send("[DONE]");
}

/** The events of one prompt's choices. */
class ChoiceWriter {
  readonly #body: CompletionRequest;
  readonly #first: number;
  readonly #n: number;
  readonly #send: (choice: Choice) => void;
  readonly #answers = new Answers(1);
  readonly #lengths = new Map<number, number>();
  #isEchoed = false;

  constructor(body: CompletionRequest, first: number, n: number, send: (choice: Choice) => void) {
    this.#body = body;
    this.#first = first;
    this.#n = n;
    this.#send = send;
  }
  receive(event: TaskEvent): void {
    this.#answers.receive(0, event);
    if (event.type !== "token" && event.type !== "finish") return;
    this.#echo();
    const { logprobs: numTop } = this.#body;
    const index = this.#first + event.choice;
    if (event.type === "finish") {
      const reason = event.reason === "length" ? "length" : "stop";
      this.#send({ index, text: event.text, logprobs: null, finish_reason: reason, stop_reason: event.stoppedBy });
      return;
    }
    const at = this.#lengths.get(event.choice) ?? 0;
    this.#lengths.set(event.choice, at + event.text.length);
    if (event.text === "" && event.logprobs === null) return;
    const logprobs = event.logprobs === null || typeof numTop !== "number" ? null : completionLogprobs([event.logprobs], numTop, at);
    this.#send({ index, text: event.text, logprobs, finish_reason: null });
  }
  #echo(): void {
    if (this.#body.echo !== true || this.#isEchoed) return;
    this.#isEchoed = true;
    const prompt = this.#answers.prompt(0);
    const { logprobs: numTop } = this.#body;
    for (let choice = 0; choice < this.#n; choice++) {
      this.#lengths.set(choice, prompt.text.length);
      const logprobs = typeof numTop === "number" ? promptLogprobs(prompt, numTop) : null;
      this.#send({ index: this.#first + choice, text: prompt.text, logprobs, finish_reason: null });
    }
  }
}
