/**
 * The tasks of one HTTP request on their way through the engine: admitted together, ended together by the end of the answers, an error, the
 * deadline, a client that left, or a server that ends. Measures times to tokens on the way.
 */
import type { ServerResponse } from "node:http";
import type { ServerContext } from "./context.ts";
import type { RunningTask } from "./engine-client.ts";
import { ApiError, fromErrorData } from "./errors.ts";
import type { GenerateTask, TaskEvent, TaskUsage } from "./protocol.ts";

/** The client closed the connection: nobody waits for an answer. */
export class ClientGone extends Error {}

export interface RunUsage extends TaskUsage {}

/**
 * Runs tasks; `onEvent` gets the events of task `index` up to its end. Resolves when all have ended. Throws `ApiError`, or `ClientGone`; every
 * task is then given up.
 */
export function runTasks(
  context: ServerContext,
  response: ServerResponse,
  tasks: readonly GenerateTask[],
  onEvent: (index: number, event: TaskEvent) => void,
): Promise<RunUsage> {
  const release = context.admission.admit(tasks.reduce((sum, { n }) => sum + n, 0));
  return new Promise((resolve, reject) => {
    const run = new Run(context, tasks.length, onEvent, (error, usage) => {
      response.off("close", onClose);
      clearTimeout(deadline);
      context.state.aborts.delete(onAbort);
      release();
      if (error === null) resolve(usage);
      else reject(error);
    });
    const onClose = (): void => {
      run.fail(new ClientGone("the client closed the connection"));
    };
    const onAbort = (reason: string): void => {
      run.fail(new ApiError(503, reason, { code: "shutting_down" }));
    };
    const { timeoutMs } = context.limits;
    const deadline = setTimeout(() => {
      run.fail(new ApiError(504, `the answer took longer than ${timeoutMs / 1000} s`, { type: "timeout_error", code: "timeout" }));
    }, timeoutMs);
    context.state.aborts.add(onAbort);
    response.once("close", onClose);
    if (response.destroyed) onClose();
    else run.start(tasks);
  });
}

class Run {
  readonly #context: ServerContext;
  readonly #onEvent: (index: number, event: TaskEvent) => void;
  readonly #done: (error: Error | null, usage: RunUsage) => void;
  readonly #started = performance.now();
  readonly #tasks: RunningTask[] = [];
  /** When each answer's last token came. */
  readonly #lastToken = new Map<string, number>();
  #open: number;
  #isOver = false;
  #sawToken = false;
  #usage: RunUsage = { promptTokens: 0, cachedTokens: 0, generatedTokens: 0 };

  constructor(
    context: ServerContext,
    numTasks: number,
    onEvent: (index: number, event: TaskEvent) => void,
    done: (error: Error | null, usage: RunUsage) => void,
  ) {
    this.#context = context;
    this.#onEvent = onEvent;
    this.#done = done;
    this.#open = numTasks;
  }

  start(tasks: readonly GenerateTask[]): void {
    try {
      for (const [index, task] of tasks.entries()) {
        this.#tasks.push(
          this.#context.engine.generate(task, (event) => {
            this.#receive(index, event);
          }),
        );
      }
    } catch (error) {
      this.fail(error instanceof Error ? error : new Error(String(error)));
    }
  }
  fail(error: Error): void {
    if (this.#isOver) return;
    this.#isOver = true;
    for (const task of this.#tasks) task.abort();
    this.#done(error, this.#usage);
  }

  #receive(index: number, event: TaskEvent): void {
    if (this.#isOver) return;
    if (event.type === "failed") return this.fail(fromErrorData(event.error));
    if (event.type === "finish") {
      this.#context.metrics.finished.inc({ reason: event.reason });
      if (event.error !== null) return this.fail(fromErrorData(event.error));
      if (event.reason === "aborted" || event.reason === "error")
        return this.fail(new ApiError(503, "the engine gave the request up", { code: "aborted" }));
    }
    if (event.type === "token") this.#measure(`${index} ${event.choice}`);
    if (event.type === "end") this.#add(event.usage);
    try {
      this.#onEvent(index, event);
    } catch (error) {
      return this.fail(error instanceof Error ? error : new Error(String(error)));
    }
    if (event.type === "end" && --this.#open === 0) {
      this.#isOver = true;
      this.#done(null, this.#usage);
    }
  }
  #measure(answer: string): void {
    const { metrics } = this.#context;
    const now = performance.now();
    const before = this.#lastToken.get(answer);
    if (!this.#sawToken) metrics.timeToFirstToken.observe((now - this.#started) / 1000);
    else if (before !== undefined) metrics.interTokenLatency.observe((now - before) / 1000);
    this.#sawToken = true;
    this.#lastToken.set(answer, now);
  }
  #add(usage: TaskUsage): void {
    this.#usage = {
      promptTokens: this.#usage.promptTokens + usage.promptTokens,
      cachedTokens: this.#usage.cachedTokens + usage.cachedTokens,
      generatedTokens: this.#usage.generatedTokens + usage.generatedTokens,
    };
  }
}
