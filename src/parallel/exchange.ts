/**
 * All-to-all of rows, differentiable and in two steps: `startExchange` sends, `finish` waits. What is computed between the two runs beside the
 * communication.
 *
 * Both steps are nodes of the tape, so that the backward pass does the same in reverse: the node of `finish` comes first and starts to send gradients back, the node
 * of the start waits for them, and whatever was recorded between the two runs meanwhile.
 *
 * Legend: S rows sent, R rows received, H columns.
 */
import { dtypeBytes } from "../backend/kernels.ts";
import type { Tensor } from "../tensor/index.ts";
import type { Communicator, Pending } from "./communicator.ts";

/** Rows by rank of the communicator. The sum of `send` is S, that of `receive` R. */
export interface ExchangeCounts {
  readonly send: readonly number[];
  readonly receive: readonly number[];
}

export interface InFlight {
  /** [R, H]: what came, in rank order. To be called once. */
  finish(): Tensor;
}

/** Rows on their way back, in the backward pass. */
interface Returning {
  readonly pending: Pending;
  readonly gradient: Tensor;
}

/** Sends rows of x [S, H]: the first send[0] to rank 0, and so on. All ranks of the communicator call it alike. */
export function startExchange(communicator: Communicator, x: Tensor, { send, receive }: ExchangeCounts): InFlight {
  const { engine } = x;
  const [H, rowBytes] = [x.dim(1), x.dim(1) * dtypeBytes[x.dtype]];
  const bytes = (rows: readonly number[]): number[] => rows.map((n) => n * rowBytes);
  const numReceived = receive.reduce((a, b) => a + b, 0);
  const made = engine.empty([numReceived, H], x.dtype);
  const source = x.retain();
  const pending = communicator.startAllToAll(made.ptr, bytes(receive), x.ptr, bytes(send));
  let returning: Returning | null = null;
  const { tape: sending } = engine;
  sending?.record([x], made, [], () => {
    if (returning === null) return;
    returning.pending.wait();
    using gradient = returning.gradient;
    sending.addGrad(x, gradient);
  });
  // Both stay until they have been sent and filled, whatever scope this is in.
  const arriving = made.retain();
  return {
    finish: () => {
      pending.wait();
      source.dispose();
      using handle = arriving;
      const received = handle.rows(0, numReceived);
      const { tape } = engine;
      tape?.record([handle], received, [], (dOut) => {
        const gradient = engine.detached(x.shape, dOut.dtype);
        returning = { gradient, pending: communicator.startAllToAll(gradient.ptr, bytes(send), dOut.ptr, bytes(receive)) };
        // Makes the node of the start run, and keeps what is being sent until then.
        tape.addGrad(handle, dOut);
      });
      return received;
    },
  };
}
