// Waiting: between attempts, and for whatever comes first.

const FIRST = 0.1;
const LONGEST = 5;

/** The waits of one thing that is tried again and again: 0.1 s, doubled up to 5 s. */
export class Waits {
  #next = FIRST;

  /**
   * Says how long to wait now; the next wait is longer. Each is shortened at random, lest clients come in step.
   *
   * @returns {number} seconds
   */
  next() {
    const delay = this.#next * (0.5 + Math.random() / 2);
    this.#next = Math.min(2 * this.#next, LONGEST);
    return Math.round(delay * 1000) / 1000;
  }

  /** Begins anew: it worked. */
  reset() {
    this.#next = FIRST;
  }
}

/**
 * Waits so long, or until one of the signals is aborted; then it returns like any other time.
 *
 * @param {number} seconds
 * @param {...AbortSignal} signals
 * @returns {Promise<void>}
 */
export function pause(seconds, ...signals) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      for (const signal of signals) signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, seconds * 1000);
    for (const signal of signals) signal.addEventListener('abort', done);
    if (signals.some((signal) => signal.aborted)) done();
  });
}
