/** Entry of a rank of the test of collecting: its parts of made-up tensors, and what rank 0 puts together from all. */
import { runRank } from "../../src/parallel/index.ts";
import { collectParts } from "../../src/train/parallel/collect.ts";
import type { TensorPart } from "../../src/train/parallel/parts.ts";
import { boxRuns, type Box } from "../../src/util/box.ts";
import type { Interval } from "../../src/util/partition.ts";

export interface PartDescription {
  readonly name: string;
  readonly dtype: "f32" | "bf16";
  readonly shape: readonly number[];
  readonly box: Box;
  readonly elements: Interval;
}
export interface CollectJob {
  /** By rank. */
  readonly parts: readonly (readonly PartDescription[])[];
  readonly failWriting: boolean;
}

await runRank(({ engine, communicator, data }) => {
  const { parts, failWriting } = data as CollectJob;
  const tensors = (parts[communicator.rank] ?? []).map(({ name, dtype, shape, box, elements }): TensorPart => {
    const tensor = engine.detached([elements.end - elements.start], dtype);
    const values = new Float32Array(tensor.size);
    // An element's value is its place in the whole tensor, which bf16 holds exactly here.
    for (const { whole, part, length } of boxRuns(shape, box, elements)) for (let i = 0; i < length; i++) values[part + i] = whole + i;
    if (dtype === "f32") engine.backend.write(tensor.ptr, values);
    else
      engine.backend.write(
        tensor.ptr,
        Uint16Array.from(new Uint32Array(values.buffer), (bits) => bits >>> 16),
      );
    return { name, shape, box, elements, tensor };
  });
  const result = collectParts(engine, communicator, tensors, (whole) => {
    if (failWriting) throw new Error("the disk is full");
    return Array.from(whole, ([name, tensor]) => {
      const { dtype, shape } = tensor;
      const bytes = new Uint8Array(shape.reduce((a, b) => a * b, dtype === "f32" ? 4 : 2));
      // In pieces, as writers do.
      for (let at = 0; at < bytes.length; at += 1000) tensor.read(bytes.subarray(at, at + 1000), at);
      const values =
        dtype === "f32"
          ? new Float32Array(bytes.buffer)
          : new Float32Array(Uint32Array.from(new Uint16Array(bytes.buffer), (half) => half << 16).buffer);
      return [name, values] as const;
    });
  });
  for (const { tensor } of tensors) tensor.dispose();
  return { result, leaked: engine.backend.liveBytes };
});
