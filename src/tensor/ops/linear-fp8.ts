/**
 * Matrix products with FP8 weights, which stay one byte each in memory and are widened inside the kernels. For inference: the ops of
 * linear.ts come here for a weight of dtype fp8. No gradient flows through an fp8 weight, to it or past it.
 *
 * Legend: M rows, K input features, N output features, E experts, R rows of all experts.
 */
import { dtypeCodes, fp8Block, fp8Scalings, type DType, type Fp8ScalingCode } from "../../backend/kernels.ts";
import { MoeError } from "../../util/errors.ts";
import type { Tensor } from "../tensor.ts";
import { computeCode, shapeError } from "./check.ts";
import type { LinearOperand } from "./linear.ts";

interface CheckedScales {
  readonly ptr: number;
  readonly code: Fp8ScalingCode;
}

/** The scales of an fp8 weight. Throws `shape` where they are missing or do not fit, `unsupported` under a tape. */
function scalesOf(operation: string, w: Tensor): CheckedScales {
  if (w.engine.tape !== null)
    throw new MoeError("unsupported", `${operation}: training with FP8 weights; load the model with quantized: "dequantize"`);
  if (w.scales === null) throw shapeError(operation, "w", "an fp8 weight with scales", w);
  const { scaling, values } = w.scales;
  const [K = 0, N = 0, E = 1] = w.shape.toReversed();
  const each = { tensor: 1, channel: N, block128: Math.ceil(N / fp8Block) * Math.ceil(K / fp8Block) }[scaling];
  if (values.dtype !== "f32" || values.size !== E * each)
    throw shapeError(operation, "the scales of w", `${E * each} f32, by ${scaling}`, values);
  return { ptr: values.ptr, code: fp8Scalings[scaling] };
}

/**
 * f32 of x's shape: x as E4M3 with dynamic scales would hold it, scales applied. It is f32 also for bf16 x, because a code times a scale is no bf16: the
 * product is then that of engines with FP8 matrix units but for the rounding of f32 sums. Where a weight asks for nothing, x itself.
 */
function roundedActivations(x: Tensor, { scales }: Tensor): Tensor {
  if (scales?.activations === undefined || x.size === 0) return x;
  const { engine } = x;
  const K = scales.activations === "tensor" ? x.size : x.dim(-1);
  const out = engine.empty(x.shape, "f32");
  const group = scales.activations === "group128" ? fp8Block : K;
  engine.backend.kernels.roundRowsToFp8(out.ptr, x.ptr, x.size / K, K, group, computeCode("linear", "x", x));
  return out;
}

/** `linear` with an fp8 weight; operands are checked already. */
export function linearFp8(x: Tensor, w: Tensor, bias: Tensor | null, outDtype: DType): Tensor {
  const [N, K] = [w.dim(0), w.dim(1)];
  const scales = scalesOf("linear", w);
  const { engine } = x;
  const out = engine.empty([...x.shape.slice(0, -1), N], outDtype);
  const given = roundedActivations(x, w);
  const [xCode, outCode] = [computeCode("linear", "x", given), computeCode("linear", "outDtype", out)];
  const M = K === 0 ? out.size / Math.max(1, N) : x.size / K;
  const { kernels } = engine.backend;
  kernels.linearFp8Forward(out.ptr, given.ptr, w.ptr, scales.ptr, bias?.ptr ?? 0, M, N, K, xCode, scales.code, outCode);
  return out;
}

/** `linearMany` with fp8 weights of one scaling; operands are checked already. */
export function linearManyFp8(x: Tensor, layers: readonly LinearOperand[]): Tensor[] {
  const { engine } = x;
  const K = x.dim(-1);
  const outCode = computeCode("linearMany", "x", x);
  const given = layers[0] === undefined ? x : roundedActivations(x, layers[0].weight_NK);
  const out = layers.map(({ weight_NK }) => engine.empty([...x.shape.slice(0, -1), weight_NK.dim(0)], x.dtype));
  const scales = layers.map(({ weight_NK }) => scalesOf("linearMany", weight_NK));
  const [a, b, c] = layers;
  const ptrs = (list: readonly { readonly ptr: number }[]): readonly [number, number, number] => [
    list[0]?.ptr ?? 0,
    list[1]?.ptr ?? 0,
    list[2]?.ptr ?? 0,
  ];
  engine.backend.kernels.linearFp8ForwardMany(
    ...ptrs(out),
    given.ptr,
    ...ptrs(layers.map(({ weight_NK }) => weight_NK)),
    ...ptrs(scales),
    ...([a?.bias_N?.ptr ?? 0, b?.bias_N?.ptr ?? 0, c?.bias_N?.ptr ?? 0] as const),
    K === 0 ? 0 : x.size / K,
    ...([a?.weight_NK.dim(0) ?? 0, b?.weight_NK.dim(0) ?? 0, c?.weight_NK.dim(0) ?? 0] as const),
    K,
    computeCode("linearMany", "x", given),
    scales[0]?.code ?? fp8Scalings.tensor,
    outCode,
  );
  return out;
}

/** `groupedLinear` with an fp8 weight [E, N, K]; operands are checked already. */
export function groupedLinearFp8(x: Tensor, w: Tensor, offsets: Tensor): Tensor {
  const [E, N, K] = [w.dim(0), w.dim(1), w.dim(2)];
  const scales = scalesOf("groupedLinear", w);
  const { engine } = x;
  const out = engine.empty([x.dim(0), N], x.dtype);
  const given = roundedActivations(x, w);
  const [xCode, outCode] = [dtypeCodes[given.dtype], dtypeCodes[x.dtype]];
  engine.backend.kernels.groupedLinearFp8Forward(out.ptr, given.ptr, w.ptr, scales.ptr, offsets.ptr, E, N, K, xCode, scales.code, outCode);
  return out;
}
