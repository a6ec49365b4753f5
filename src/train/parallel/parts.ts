/**
 * What a rank holds of a tensor that is whole in a checkpoint, and reading it from there. A checkpoint knows no layout: its files have whole
 * tensors, so each rank reads the elements that are its own, whoever wrote them.
 */
import type { SafetensorsFile } from "../../checkpoint/safetensors.ts";
import { wholeTensor, type Decoder, type ParameterSpec, type WholeTensor } from "../../model/index.ts";
import { numElements, type Shape, type Tensor } from "../../tensor/index.ts";
import { boxRuns, boxSize, wholeBox, type Box } from "../../util/box.ts";
import { fileError, MoeError } from "../../util/errors.ts";
import type { Interval } from "../../util/partition.ts";

export interface TensorPart {
  /** In the checkpoint: a parameter's, or with `.exp_avg`, `.exp_avg_sq`, `.master` behind it. */
  readonly name: string;
  /** Of the whole tensor. */
  readonly shape: Shape;
  /** What this rank's part is cut from the whole by. */
  readonly box: Box;
  /** Of the box's elements in their order, those that `tensor` holds: not all where ZeRO spreads them over ranks. */
  readonly elements: Interval;
  /** As many elements, f32 or bf16. */
  readonly tensor: Tensor;
}

/** The part of a parameter, or of a tensor of its optimizer, that `spec` describes. Throws `internal` where the tensor has another size. */
export function partOf(spec: Pick<ParameterSpec, "shape" | "slices">, name: string, tensor: Tensor, elements?: Interval): TensorPart {
  const { slices = [] } = spec;
  const box = wholeBox(spec.shape).map((interval, dim) => {
    const start = slices.find((slice) => slice.dim === dim)?.start ?? 0;
    return { start, end: start + interval.end };
  });
  const shape = slices.reduce<Shape>((whole, { dim, size }) => whole.with(dim, size), spec.shape);
  const held = elements ?? { start: 0, end: boxSize(box) };
  if (held.end - held.start !== tensor.size)
    throw new MoeError("internal", `${name}: ${tensor.size} elements for ${held.start}..${held.end}`);
  return { name, shape, box, elements: held, tensor };
}

/** What a model, or a rank's part of one, has of its parameters. */
export function weightParts({ specs, parameters }: Pick<Decoder, "specs" | "parameters">): TensorPart[] {
  return specs.map((spec) => {
    const tensor = parameters.get(spec.name);
    if (tensor === undefined) throw new MoeError("internal", `no parameter ${spec.name}`);
    return partOf(spec, spec.name, tensor);
  });
}

/** What AdamW keeps for a parameter, by what it puts behind its name. */
const optimizerSuffixes = [".exp_avg", ".exp_avg_sq", ".master"] as const;

/** Names of a checkpoint's optimizer tensors, in their order: of all parameters that train. */
export function optimizerNames(specs: readonly ParameterSpec[]): string[] {
  return specs
    .filter(({ trains }) => trains)
    .flatMap(({ name, dtype }) =>
      optimizerSuffixes.filter((suffix) => suffix !== ".master" || dtype !== "f32").map((suffix) => name + suffix),
    );
}

/** Parts of the optimizer's tensors (`AdamW.state`), by the parameters that they belong to. `elements`: of a parameter's part, those that are this rank's to update. */
export function optimizerParts(
  specs: readonly ParameterSpec[],
  tensors: ReadonlyMap<string, Tensor>,
  elements: (parameter: string) => Interval | undefined = () => undefined,
): TensorPart[] {
  return specs.flatMap((spec) =>
    optimizerSuffixes.flatMap((suffix) => {
      const tensor = tensors.get(spec.name + suffix);
      return tensor === undefined ? [] : [partOf(spec, spec.name + suffix, tensor, elements(spec.name))];
    }),
  );
}

/** Tensors of a rank that has all of each, for a checkpoint. Throws `internal` for one that is a part. */
export function wholeTensors(parts: readonly TensorPart[]): Map<string, WholeTensor> {
  return new Map(
    parts.map(({ name, shape, tensor }) => {
      if (tensor.size !== numElements(shape)) throw new MoeError("internal", `${name}: ${tensor.size} elements of [${shape.join(", ")}]`);
      return [name, wholeTensor(tensor)];
    }),
  );
}

const chunkBytes = 4 << 20;

/** Fills parts (f32) from a file of whole tensors. Throws `file` where a name, shape or type differs. */
export function readParts(file: SafetensorsFile, parts: Iterable<TensorPart>): void {
  for (const { name, shape, box, elements, tensor } of parts) {
    const entry = file.entry(name);
    if (entry.dtype !== "F32" || entry.shape.join() !== shape.join() || tensor.dtype !== "f32")
      throw fileError(file.path, `${name} as F32 [${shape.join(", ")}]`, `${entry.dtype} [${entry.shape.join(", ")}]`);
    const part = new Float32Array(tensor.size);
    let [window, windowStart] = [new Float32Array(0), 0];
    for (const { whole, part: at, length } of boxRuns(shape, box, elements)) {
      for (let done = 0; done < length;) {
        // Columns are short runs close to each other: they are cut out of what was read at once.
        if (whole + done < windowStart || whole + done >= windowStart + window.length) {
          windowStart = whole + done;
          window = new Float32Array(Math.min(chunkBytes / 4, shape.reduce((a, b) => a * b, 1) - windowStart));
          file.read(name, new Uint8Array(window.buffer), windowStart * 4);
        }
        const from = whole + done - windowStart;
        const n = Math.min(length - done, window.length - from);
        part.set(window.subarray(from, from + n), at + done);
        done += n;
      }
    }
    tensor.engine.backend.write(tensor.ptr, part);
  }
}
