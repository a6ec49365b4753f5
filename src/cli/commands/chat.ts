/** `moe chat`: a conversation on the terminal, or line by line from a pipe. */
import { createInterface } from "node:readline";
import { Option, type Command } from "commander";
import { blockTokens, cacheDtypes, PagedCache, type ActivationChoice, type CacheDType } from "../../model/index.ts";
import { ChatSession, ServingEngine } from "../../serve/index.ts";
import { MoeError } from "../../util/errors.ts";
import { decimal, wholeNumber } from "../options.ts";
import { activationsOption, modelDtype, openSession } from "../session.ts";

interface ChatFlags {
  readonly system?: string;
  readonly maxTokens: number;
  readonly maxContext?: number;
  readonly temperature: number;
  readonly topP: number;
  readonly topK: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly seed: number;
  readonly dtype?: string;
  readonly kvDtype?: CacheDType;
  readonly activations: ActivationChoice;
}

export function addChat(program: Command): void {
  program
    .command("chat")
    .description("talk with a model on the terminal (/reset: forget, /exit: leave, Ctrl-C: stop a reply)")
    .argument("<model>", "folder with safetensors, or GGUF file")
    .option("--system <text>", "the system's message")
    .option("--max-tokens <n>", "tokens of a reply at most", wholeNumber(1), 512)
    .option("--max-context <n>", "tokens of the conversation at most (default: the model's positions, at most 8192)", wholeNumber(2))
    .option("--temperature <t>", "0: always the most probable token", decimal(0), 0.7)
    .option("--top-p <p>", "keep the most probable tokens up to this sum", decimal(0), 0.95)
    .option("--top-k <k>", "keep the k most probable tokens; 0: all", wholeNumber(0), 0)
    .option("--min-p <p>", "keep tokens at least this times as probable as the best", decimal(0), 0)
    .option("--repetition-penalty <x>", "1: none", decimal(0), 1)
    .option("--seed <n>", "seed of the sampler", wholeNumber(0), 0)
    .option("--dtype <type>", "compute in f32 or bf16 (default: as stored)")
    .addOption(new Option("--kv-dtype <type>", "type of the KV cache (default: the model's)").choices(cacheDtypes))
    .addOption(activationsOption())
    .action(chat);
}

async function chat(path: string, flags: ChatFlags): Promise<void> {
  using session = await openSession(path, modelDtype(flags.dtype), flags.activations);
  const { model, tokenizer } = session;
  if (tokenizer.chatTemplate === undefined)
    throw new MoeError("usage", `chat: ${path} has no chat template: it was not trained to converse (moe generate continues a text)`);
  const { maxTokens, temperature, topP, topK, minP, repetitionPenalty, seed, kvDtype: cacheDtype = model.dtype } = flags;
  const maxContext = flags.maxContext ?? Math.min(model.config.maxPositions, 8192);
  const cacheBytes = Math.ceil(maxContext / blockTokens) * PagedCache.blockBytes(model.config, cacheDtype);
  using serving = new ServingEngine(model, tokenizer, { cacheBytes, cacheDtype, maxContext, maxRunning: 1 });
  const sampling = { temperature, topP, topK, minP, repetitionPenalty };
  const options = { maxTokens, sampling, seed, ...(flags.system === undefined ? {} : { system: flags.system }) };
  await converse(new ChatSession(serving, options));
}

/** Lines of standard input are the user's turns; replies go to standard output, everything else to standard error. */
async function converse(session: ChatSession): Promise<void> {
  const { stdin, stdout, stderr } = process;
  const isTerminal = stdin.isTTY && stdout.isTTY;
  const lines = createInterface({ input: stdin, ...(isTerminal ? { output: stdout } : {}), prompt: "> " });
  let reply: AbortController | null = null;
  lines.on("SIGINT", () => {
    if (reply === null) lines.close();
    else reply.abort();
  });
  if (isTerminal) lines.prompt();
  try {
    for await (const line of lines) {
      const text = line.trim();
      if (text === "/exit") break;
      if (text === "/reset") session.reset();
      else if (text.startsWith("/")) stderr.write(`chat: unknown command ${text}; known are /reset and /exit\n`);
      else if (text !== "") {
        reply = new AbortController();
        const { reason, forgotten } = await session.send(text, (piece) => stdout.write(piece), reply.signal);
        reply = null;
        stdout.write("\n");
        if (reason !== "stop") stderr.write(reason === "length" ? "(cut: --max-tokens)\n" : "(stopped)\n");
        if (forgotten > 0) stderr.write(`(the context is full: ${forgotten} messages forgotten)\n`);
      }
      if (isTerminal) lines.prompt();
    }
  } finally {
    // Else a terminal would keep the process alive after an error.
    lines.close();
  }
}
