/** Reads the golden models and compares a decoder of ours with them. */
import { join } from "node:path";
import { openModelWeights } from "../../../src/checkpoint/model-weights.ts";
import { batchOfDocuments, Decoder, huggingFacePieces, parameterSpecs } from "../../../src/model/index.ts";
import { Tape, type Engine } from "../../../src/tensor/index.ts";

export const goldenNames = [
  "llama2",
  "llama3",
  "mistral",
  "qwen2",
  "qwen3",
  "smollm2",
  "skywork-13b",
  "mixtral",
  "skywork-moe",
  "skywork-moe-lambda2",
  "skywork-moe-gate2",
  "skywork-moe-sigmoid",
  "qwen2-moe",
  "qwen3-moe",
  "olmoe",
] as const;
export type GoldenName = (typeof goldenNames)[number];

export function goldenFolder(name: GoldenName): string {
  return join(import.meta.dirname, name);
}

export interface Golden {
  /** Token ids of each sequence. */
  readonly sequences: readonly Int32Array[];
  /** [B, S, V], flat. */
  readonly logits: Float32Array;
  readonly loss: number;
}
export function readGolden(name: GoldenName): Golden {
  using file = openModelWeights(join(goldenFolder(name), "golden.safetensors"));
  const read = (tensor: string): Float32Array => {
    const values = new Float32Array(file.entry(tensor).shape.reduce((n, size) => n * size, 1));
    file.readFloat32(tensor, values);
    return values;
  };
  const [B = 0, S = 0] = file.entry("ids").shape;
  const ids = Int32Array.from(read("ids"));
  return {
    sequences: Array.from({ length: B }, (_, b) => ids.subarray(b * S, (b + 1) * S)),
    logits: read("logits"),
    loss: read("loss")[0] ?? Number.NaN,
  };
}

/** Gradients of a golden model by our parameter names. */
export function readGoldenGradients(name: GoldenName, model: Decoder): Map<string, Float32Array> {
  using file = openModelWeights(join(goldenFolder(name), "grads.safetensors"));
  const gradients = new Map<string, Float32Array>();
  for (const spec of parameterSpecs(model.config, "f32").filter(({ trains }) => trains)) {
    const values = new Float32Array(spec.shape.reduce((n, size) => n * size, 1));
    for (const piece of huggingFacePieces(spec, "per-expert", model.config)) {
      file.readFloat32(piece.name, values.subarray(piece.offset, piece.offset + piece.numElements), piece.fileOffset);
    }
    gradients.set(spec.name, values);
  }
  return gradients;
}

/** Largest |a - b| over largest |b|. NaN anywhere gives NaN. */
export function relativeGap(a: Float32Array, b: Float32Array): number {
  if (a.length !== b.length) throw new Error(`${a.length} values against ${b.length}`);
  let [gap, largest] = [0, 0];
  for (let i = 0; i < b.length; i++) {
    const difference = Math.abs((a[i] ?? 0) - (b[i] ?? 0));
    if (!(difference <= gap)) gap = difference;
    largest = Math.max(largest, Math.abs(b[i] ?? 0));
  }
  return gap / largest;
}

/** Euclidean |a - b| over |b|. */
export function relativeDistance(a: Float32Array, b: Float32Array): number {
  let [distance, length] = [0, 0];
  for (let i = 0; i < b.length; i++) {
    distance += ((a[i] ?? 0) - (b[i] ?? 0)) ** 2;
    length += (b[i] ?? 0) ** 2;
  }
  return Math.sqrt(distance / length);
}

/** Logits [B, S, V] of a batch of sequences. */
export function computeLogits(engine: Engine, model: Decoder, sequences: readonly ArrayLike<number>[]): Float32Array {
  return engine.scope(() => {
    const batch = batchOfDocuments(engine, sequences, model.config);
    return model.logits(model.forwardHidden(batch).hidden_TH).toFloat32Array();
  });
}

/** Loss (mean over all next tokens) and gradients by parameter name. */
export function computeGradients(
  engine: Engine,
  model: Decoder,
  sequences: readonly Int32Array[],
  recomputeLayers = 0,
): { loss: number; gradients: Map<string, Float32Array> } {
  using tape = new Tape(engine);
  for (const tensor of model.parameters.values()) if (tensor.parameter !== null) tensor.parameter.gradIsSet = false;
  const loss = engine.scope(() =>
    engine.withTape(tape, () => {
      const batch = batchOfDocuments(engine, sequences, model.config);
      const targets = engine.from(
        sequences.flatMap((ids) => [...ids.subarray(1), -1]),
        [batch.ids.size],
        "i32",
      );
      const count = sequences.reduce((n, ids) => n + ids.length - 1, 0);
      const output = model.loss(batch, targets, { scale: 1 / count, recomputeLayers });
      tape.backward([{ value: output.loss, grad: 1 }]);
      return output.loss.item();
    }),
  );
  const gradients = new Map<string, Float32Array>();
  for (const [name, tensor] of model.parameters) {
    const grad = tensor.parameter?.grad;
    if (grad) gradients.set(name, grad.toFloat32Array());
  }
  return { loss, gradients };
}
