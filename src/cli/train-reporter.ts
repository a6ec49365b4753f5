/** Shows what a run reports: a live panel on a terminal, lines otherwise. */
import { describeMfu, type TrainEvent } from "../train/index.ts";
import { formatCount, type Output, type Progress } from "./output.ts";
import { trainPanel, type TrainPanelState } from "./train-panel.ts";

/** Stands wherever the results of such a run do. */
export const forcedBalanceNote = "FORCED BALANCE: tokens went to experts in turn, whatever the router said (moe.forcedBalance)";

function describeSimilarity(layers: (TrainEvent & { type: "similarity" })["layers"]): string {
  const mean = (of: "weights" | "outputs"): string => (layers.reduce((sum, layer) => sum + layer[of].mean, 0) / layers.length).toFixed(4);
  return `${mean("weights")} of weights, ${mean("outputs")} of outputs (means over ${layers.length} layers)`;
}

export class Reporter {
  readonly #output: Output;
  readonly #label: string;
  #progress: Progress | null = null;

  readonly #showsMfu: boolean;
  #nextReading = 0;
  #numSteps = 0;
  readonly #losses: number[] = [];
  readonly #evaluations = new Map<string, number>();

  /** `showsMfu`: say what MFU means when the run starts. */
  constructor(output: Output, label = "training", { showsMfu = true } = {}) {
    this.#output = output;
    this.#label = label;
    this.#showsMfu = showsMfu;
  }
  on(event: TrainEvent): void {
    switch (event.type) {
      case "warning":
        this.#output.log(`warning: ${event.message}`);
        break;
      case "tokenizing":
        this.#reportReading(event);
        break;
      case "start":
        if (this.#showsMfu) this.#output.log(describeMfu(event.peakFlops));
        if (event.forcedBalance) this.#output.log(forcedBalanceNote);
        this.#numSteps = event.numSteps;
        if (this.#output.isTerminal) break;
        this.#progress = this.#output.progress(this.#label, event.numSteps);
        this.#progress.update(event.state.step);
        break;
      case "step":
        this.#reportStep(event);
        break;
      case "evaluation":
        this.#evaluations.set(event.name, event.evaluation.loss);
        this.#output.log(
          `step ${event.step}, ${event.name}: ${event.evaluation.loss.toFixed(4)} +- ${event.evaluation.standardError.toFixed(4)}`,
        );
        break;
      case "similarity":
        this.#output.log(`step ${event.step}, cosine between experts: ${describeSimilarity(event.layers)}`);
        break;
      case "checkpoint":
        this.#output.log(`saved ${event.folder}`);
        break;
      default:
        event satisfies never;
    }
  }
  #reportStep({ metrics, secondsLeft }: TrainEvent & { type: "step" }): void {
    const { step, loss, tokensPerSecond, mfu, forcedBalance } = metrics;
    if (this.#output.isTerminal) {
      this.#losses.push(loss);
      const [label, numSteps, losses, evaluations] = [this.#label, this.#numSteps, this.#losses, this.#evaluations];
      const state: TrainPanelState = { label, numSteps, metrics, secondsLeft, losses, evaluations };
      this.#output.panel((columns, rows) => trainPanel(state, columns, rows));
      return;
    }
    const utilization = mfu === null ? "" : `, MFU ${(100 * mfu).toFixed(0)}%`;
    const forced = forcedBalance === true ? ", forced balance" : "";
    this.#progress?.update(
      step,
      `loss ${loss.toFixed(3)}, ${tokensPerSecond.toFixed(0)} tokens/s${utilization}, ${secondsLeft.toFixed(0)} s left${forced}`,
    );
  }
  /** A line every two seconds: how long the text is, nobody knows yet. */
  #reportReading({ documents, characters, tokens }: TrainEvent & { type: "tokenizing" }): void {
    if (performance.now() < this.#nextReading) return;
    this.#nextReading = performance.now() + 2000;
    this.#output.log(`reading text: ${documents} documents, ${formatCount(characters)} characters, ${formatCount(tokens)} tokens`);
  }
  stop(): void {
    this.#progress?.stop();
    this.#progress = null;
    this.#output.endPanel();
  }
}
