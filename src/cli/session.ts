/** What most commands open first: an engine, a model, its tokenizer. */
import { Option } from "commander";
import { loadBackend } from "../backend/load.ts";
import { loadTokenizer } from "../checkpoint/tokenizer.ts";
import { activationChoices, loadModel, type ActivationChoice, type Decoder, type ModelDType } from "../model/index.ts";
import { Engine } from "../tensor/index.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { MoeError } from "../util/errors.ts";

export async function openEngine(): Promise<Engine> {
  return new Engine(await loadBackend());
}

export interface Session extends Disposable {
  readonly engine: Engine;
  readonly model: Decoder;
  readonly tokenizer: Tokenizer;
}

/** Engine, model and tokenizer of a folder or GGUF file. The caller disposes the session. */
export async function openSession(path: string, dtype: ModelDType | undefined, activations: ActivationChoice = "keep"): Promise<Session> {
  const tokenizer = await loadTokenizer(path);
  const engine = await openEngine();
  try {
    const model = loadModel(engine, path, { activations, ...(dtype === undefined ? {} : { dtype }) });
    return {
      engine,
      model,
      tokenizer,
      [Symbol.dispose]: () => {
        model[Symbol.dispose]();
        engine[Symbol.dispose]();
      },
    };
  } catch (error) {
    engine[Symbol.dispose]();
    throw error;
  }
}

/** `--activations`: what to do with what is multiplied with FP8 matrices. */
export function activationsOption(): Option {
  const text =
    "before FP8 matrices: keep, or round to FP8 as the checkpoint's scheme, a token or a tensor at a time (as FP8 hardware would)";
  return new Option("--activations <how>", text).choices(activationChoices).default("keep");
}

/** A model dtype given as an option. Throws `usage`. */
export function modelDtype(text: string | undefined): ModelDType | undefined {
  if (text === undefined || text === "f32" || text === "bf16") return text;
  throw new MoeError("usage", `--dtype: expected f32 or bf16, got ${text}`);
}
