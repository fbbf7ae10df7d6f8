// A bound for what runs at the same time.

export class Slots {
  #free;
  /** @type {(() => void)[]} */
  #waiting = [];

  /** @param {number} size */
  constructor(size) {
    this.#free = size;
  }

  /**
   * Runs a function as soon as there is a slot for it.
   *
   * @template T
   * @param {() => Promise<T>} run
   * @returns {Promise<T>}
   */
  async run(run) {
    if (this.#free > 0) this.#free -= 1;
    else await new Promise((resolve) => this.#waiting.push(() => resolve(undefined)));
    try {
      return await run();
    } finally {
      const next = this.#waiting.shift();
      if (next)
        next(); // it takes our slot
      else this.#free += 1;
    }
  }
}
