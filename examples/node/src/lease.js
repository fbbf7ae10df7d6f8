// Keeps the lease of a task while it is worked on, and tells in time when that fails.

import { pause } from './waits.js';

// The work is stopped before the lease ends, by this part of it and at most by so many seconds: it needs time to stop,
// and two clocks do not run at quite the same rate.
const MARGIN = 0.05;
const LONGEST_MARGIN = 1;

/** The lease is about to end and could not be extended: somebody else may have the task soon. */
export class LeaseEnds extends Error {}

/** A try has failed; another one may not. */
export class NotExtended extends Error {}

/** What is known of a lease: until when it lasts for sure, by the monotonic clock of this process. */
export class Lease {
  #seconds;
  #margin;
  #ends;

  /**
   * @param {number} seconds its length
   * @param {number} asked when the task was asked for, by `now`: before the call of a Dequeue; of a stream, when the
   *     delivery came, which is as near as one can know
   */
  constructor(seconds, asked) {
    this.#seconds = seconds;
    this.#margin = Math.min(MARGIN * seconds, LONGEST_MARGIN);
    this.#ends = asked + seconds;
  }

  /**
   * Extends the lease at half of what is left, again and again, until the work is over.
   *
   * @param {AbortSignal} over
   * @param {(failed: boolean, seconds: number) => Promise<void>} extend asks once, for at most so long; it is told
   *     whether the last try had failed: then a new connection is worth its price. It throws NotExtended when another
   *     try may help, anything else when the lease is lost.
   * @throws {LeaseEnds} when nothing helped and the time is over
   */
  async keep(over, extend) {
    let failed = false;
    let due = this.#ends - this.#seconds / 2;
    for (;;) {
      await pause(due - now(), over);
      if (over.aborted) return;
      const asked = now();
      const left = this.#ends - asked;
      if (left <= this.#margin) throw new LeaseEnds();
      // A try that hangs must not take all the time: the next one begins when half of what is left has passed.
      const patience = Math.min(left / 2, left - this.#margin);
      failed = !(await Promise.race([answered(extend(failed, patience)), pause(patience, over)]));
      due = asked + patience;
      if (failed) continue;
      // The server counts from some moment after it was asked, so this is on the safe side.
      this.#ends = asked + this.#seconds;
      due = asked + this.#seconds / 2;
    }
  }
}

/** Reads the clock that nobody sets: seconds. */
export function now() {
  return performance.now() / 1000;
}

/** @param {Promise<void>} asking */
async function answered(asking) {
  try {
    await asking;
    return true;
  } catch (error) {
    if (error instanceof NotExtended) return false;
    throw error;
  }
}
