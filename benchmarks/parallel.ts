/** The theme `parallel`: what ranks cost and gain. Each file of rows says what it measures. */
import { allReduceRows } from "./allreduce.ts";
import type { Context } from "./context.ts";
import type { Row } from "./measure.ts";
import { pipelineRows } from "./pipeline.ts";
import { ranksRows } from "./ranks.ts";

export async function* parallelRows(context: Context): AsyncGenerator<Row> {
  yield* allReduceRows(context);
  yield* pipelineRows(context);
  yield* ranksRows(context);
}
