/**
 * The theme `moe`: a training step of a Mixtral-shaped model beside transformers, a layer with experts beside our dense network of the same
 * active FLOPs, what routing itself costs, and evaluation beside lm-evaluation-harness.
 */
import { loadBackend } from "../src/backend/load.ts";
import { Experts, FeedForward, Linear, MoeBlock, Router } from "../src/nn/index.ts";
import { Engine, Tape, type Tensor } from "../src/tensor/index.ts";
import { Random } from "../src/util/random.ts";
import { precisions, wants, type Context, type Precision } from "./context.ts";
import { evalRow } from "./eval.ts";
import { interleave, type Row } from "./measure.ts";
import { timeKernels } from "./profile.ts";
import { measureStep, OurTraining, type TrainShape, type Variants } from "./train.ts";

const numExperts = 8;
const topK = 2;
const expertWidth = 1408;
const hiddenSize = 512;
const threads = 2;

/** 150 million parameters, 45 of them active. */
export const moeShape: TrainShape = {
  batch: 8,
  sequence: 512,
  config: {
    model_type: "mixtral",
    vocab_size: 8192,
    hidden_size: hiddenSize,
    intermediate_size: expertWidth,
    num_hidden_layers: 8,
    num_attention_heads: 8,
    num_key_value_heads: 4,
    num_local_experts: numExperts,
    num_experts_per_tok: topK,
    max_position_embeddings: 512,
    rms_norm_eps: 1e-5,
    sliding_window: null,
    tie_word_embeddings: false,
  },
};

/** The rival's third implementation, batched_mm, copies an expert's weights for every assignment: 47 GB here. */
const variantsOf: Variants = {
  f32: ["f32/eager", "f32/grouped_mm"],
  bf16: ["autocast/eager", "autocast/grouped_mm", "bf16/eager", "bf16/grouped_mm"],
};

/** The layer must take at most 1.15 times the dense network's time: as rates, at least this. */
const layerBar = 1 / 1.15;
const overheadBar = 0.08;
const layerTokens = moeShape.batch * moeShape.sequence;

/** The layer with experts and the dense network of the same active FLOPs, forward and backward, on the same tokens. */
class Layers implements Disposable {
  readonly #engine: Engine;
  readonly #x: Tensor;
  readonly #dOut: Tensor;
  readonly #parameters: Tensor[] = [];
  readonly #moe: MoeBlock;
  readonly #dense: FeedForward;

  constructor(engine: Engine, precision: Precision) {
    this.#engine = engine;
    const random = new Random(1);
    const values = (shape: readonly number[], std: number, dtype: Precision): Tensor => {
      const tensor = engine.detached(shape, dtype);
      using source = engine.detached(shape, "f32");
      engine.backend.write(source.ptr, random.fillNormal(new Float32Array(tensor.size), std));
      engine.backend.kernels.cast(tensor.ptr, source.ptr, tensor.size, dtype === "f32" ? 0 : 1, 0);
      return tensor;
    };
    const parameter = (name: string, shape: readonly number[], dtype: Precision = precision): Tensor => {
      const tensor = values(shape, 0.02, dtype);
      tensor.requiresGrad = true;
      tensor.parameter = { name, grad: null, gradIsSet: false };
      this.#parameters.push(tensor);
      return tensor;
    };
    const dense = topK * expertWidth;
    this.#x = values([layerTokens, hiddenSize], 1, precision);
    this.#x.requiresGrad = true;
    this.#dOut = values([layerTokens, hiddenSize], 1, precision);
    this.#dense = new FeedForward(
      new Linear(parameter("gate", [dense, hiddenSize])),
      new Linear(parameter("up", [dense, hiddenSize])),
      new Linear(parameter("down", [hiddenSize, dense])),
    );
    this.#moe = new MoeBlock(
      new Router(
        { gate: new Linear(parameter("router", [numExperts, hiddenSize], "f32")), hidden: null, selectionBias: null },
        { topK, normalization: null, scoring: "softmax", renormalize: true, routedScale: 1, groups: null },
      ),
      new Experts(
        parameter("experts.gate", [numExperts, expertWidth, hiddenSize]),
        parameter("experts.up", [numExperts, expertWidth, hiddenSize]),
        parameter("experts.down", [numExperts, hiddenSize, expertWidth]),
      ),
    );
  }
  #tokensPerSecond(forward: () => Tensor): number {
    const started = performance.now();
    this.#engine.scope(() => {
      using tape = new Tape(this.#engine);
      const value = this.#engine.withTape(tape, forward);
      tape.backward([{ value, grad: this.#dOut }]);
    });
    return (1000 * layerTokens) / (performance.now() - started);
  }
  moe(): number {
    return this.#tokensPerSecond(() => this.#moe.forward(this.#x).y_TH);
  }
  dense(): number {
    return this.#tokensPerSecond(() => this.#dense.forward(this.#x));
  }
  [Symbol.dispose](): void {
    for (const parameter of this.#parameters) {
      parameter.parameter?.grad?.dispose();
      parameter.dispose();
    }
    this.#x.dispose();
    this.#dOut.dispose();
  }
}

async function measureLayer({ effort, log }: Context): Promise<Row> {
  log("moe.layer: ours beside our dense network");
  const engine = new Engine(await loadBackend({ numThreads: threads }));
  const taken: Record<string, number[]> = {};
  try {
    for (const precision of precisions) {
      using layers = new Layers(engine, precision);
      const [moe = [], dense = []] = await interleave([{ sample: () => layers.moe() }, { sample: () => layers.dense() }], effort);
      Object.assign(taken, { [precision]: moe, [`${precision} dense`]: dense });
    }
  } finally {
    engine[Symbol.dispose]();
  }
  const { f32: ours = [], "f32 dense": rival = [], bf16 = [], "bf16 dense": bf16Dense = [] } = taken;
  const note = `forward and backward of ${layerTokens} tokens, f32; the rival is our dense network of ${topK * expertWidth}`;
  return { name: "moe.layer", ours, rival, unit: "tokens/s", bar: layerBar, others: { bf16, "bf16 dense": bf16Dense }, note };
}

/** The position of N (output features) among the arguments of the linear kernels. */
const featuresArgument: Readonly<Record<string, number>> = { linearForward: 5, linearBackwardInput: 4, linearBackwardWeight: 4 };

/**
 * Whether a kernel call is routing, dispatch or combination: the gate's products are those with one output an expert, and nothing but the
 * router's input changes its type.
 */
function isRouting(kernel: string, args: readonly number[]): boolean {
  const features = featuresArgument[kernel];
  if (features !== undefined) return args[features] === numExperts;
  return /^(router|dispatch|permute|combine|gather|jitter|cast$)/.test(kernel);
}

async function measureOverhead({ log }: Context): Promise<Row> {
  log("moe.overhead: routing, dispatch and combination in our step");
  const engine = new Engine(await loadBackend({ numThreads: threads }));
  const shares: Record<Precision, number[]> = { f32: [], bf16: [] };
  try {
    for (const precision of precisions) {
      using training = new OurTraining(engine, precision, moeShape);
      training.step();
      for (let i = 0; i < 3; i++) {
        const { total, kernels } = timeKernels(
          engine,
          () => void training.step(),
          (kernel, args) => (isRouting(kernel, args) ? "routing" : "other"),
        );
        shares[precision].push((kernels.get("routing")?.milliseconds ?? 0) / total);
      }
    }
  } finally {
    engine[Symbol.dispose]();
  }
  const note =
    "share of a bf16 step (f32 beside it): router with its input in f32, gate products, sorting, gathering, combination, and their backwards";
  return { name: "moe.overhead", ours: shares.bf16, rival: [], unit: "share", bar: overheadBar, others: { f32: shares.f32 }, note };
}

/** Rows of the theme, each as soon as it is measured. */
export async function* moeRows(context: Context): AsyncGenerator<Row> {
  for (const precision of precisions) {
    const name = `moe.train.${precision}`;
    if (wants(context, name))
      yield await measureStep(context, precision, { name, shape: moeShape, variants: variantsOf[precision], bar: 1.5 });
  }
  if (wants(context, "moe.layer")) yield await measureLayer(context);
  if (wants(context, "moe.overhead")) yield await measureOverhead(context);
  if (wants(context, "eval.cmmlu")) yield await evalRow(context);
}
