/**
 * The numbers by which kernels are told what their operands are: storage types, ways of scoring, FP8 formats and scalings. Part of the
 * kernel contract (`kernels.ts`); the C side has the same numbers in `native/moe.h` and beside the kernels that take them.
 */

/** A byte address in the backend's memory; 0 is "absent". */
export type Ptr = number;

/**
 * Storage types of tensor elements. `f16` is only for conversion (checkpoints), never for compute. `fp8` (E4M3 codes, src/util/fp8.ts) is only
 * for weights, which have scales beside them, and for kernels that say so.
 */
export const dtypeCodes = { f32: 0, bf16: 1, i32: 2, f16: 3, fp8: 4 } as const;
export type DType = keyof typeof dtypeCodes;
export type DTypeCode = (typeof dtypeCodes)[DType];
/** How a router turns logits into scores: an argument of `routerForward`. */
export const routerScorings = { softmax: 0, softmaxOfTopK: 1, sigmoid: 2 } as const;
/** Formats of `castToFp8` and `castFromFp8`. */
export const fp8Formats = { e4m3: 0, e5m2: 1 } as const;
export type Fp8FormatCode = (typeof fp8Formats)[keyof typeof fp8Formats];
/** What one scale of an FP8 matrix [N, K] belongs to: all of it, an output, or a block of 128 x 128 (the last ones may be cut). */
export const fp8Scalings = { tensor: 0, channel: 1, block128: 2 } as const;
export type Fp8Scaling = keyof typeof fp8Scalings;
export type Fp8ScalingCode = (typeof fp8Scalings)[Fp8Scaling];
/** What one dynamic scale of activations belongs to: a token, 128 of its values, or all that a product is given at once. */
export const activationScalings = ["token", "group128", "tensor"] as const;
export type ActivationScaling = (typeof activationScalings)[number];
/** Rows and columns of a scaled block. */
export const fp8Block = 128;
export const dtypeBytes: Readonly<Record<DType, number>> = { f32: 4, bf16: 2, i32: 4, f16: 2, fp8: 1 };
