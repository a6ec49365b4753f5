/**
 * The coefficients alpha of the layers' auxiliary losses: fixed, or following each layer's drop rate d step by step
 * (Skywork-MoE, arXiv 2406.06563, sections 2.2 and 4.2):
 *   target = min(xi * d, alphaMax),   alpha <- beta * alpha + (1 - beta) * target.
 * The coefficient of step t comes from the drops of the whole global batch up to step t - 1. Numbers are f64, which JSON
 * keeps: a resumed run has the same bits.
 */
import type { AuxiliaryLossCoefficient } from "../config/run-moe.ts";
import { MoeError } from "../util/errors.ts";

export class Coefficients {
  readonly setting: AuxiliaryLossCoefficient;
  #values: readonly number[];

  /** For a model with `numLayers` layers with experts; `restored`: as a checkpoint has them. Throws `file` for another number of layers. */
  constructor(setting: AuxiliaryLossCoefficient, numLayers: number, restored: readonly number[] | null) {
    this.setting = setting;
    if (restored !== null && restored.length !== numLayers) {
      throw new MoeError("file", `coefficients of auxiliary losses: expected ${numLayers} (layers with experts), got ${restored.length}`);
    }
    const first = setting.type === "fixed" ? setting.value : (setting.alpha0 ?? setting.alphaMax);
    // A fixed coefficient is what the configuration says now, even where a run goes on that was adaptive.
    this.#values = setting.type === "adaptive" && restored !== null ? [...restored] : new Array<number>(numLayers).fill(first);
  }

  /** One a layer with experts, ascending: those of the next step. */
  get values(): readonly number[] {
    return this.#values;
  }
  /** What a checkpoint keeps: null where nothing follows from the past. */
  get state(): readonly number[] | null {
    return this.setting.type === "adaptive" ? this.#values : null;
  }
  /** Takes in the drop rates of a step, one a layer with experts. */
  update(dropRates: readonly number[]): void {
    const { setting } = this;
    if (setting.type === "fixed") return;
    const { xi, alphaMax, beta } = setting;
    this.#values = this.#values.map((alpha, i) => beta * alpha + (1 - beta) * Math.min(xi * (dropRates[i] ?? 0), alphaMax));
  }
}
