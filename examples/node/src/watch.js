// watch: prints each state of a task until the last, whatever becomes of the stream.

import { toDuration } from './durations.js';
import { emit, note } from './events.js';
import { Failure } from './failures.js';
import { pause, Waits } from './waits.js';

const PROGRESS_INTERVAL = 10;
/** A stream that says nothing for so many seconds is dead. */
const SILENCE = 3 * PROGRESS_INTERVAL;
/** Seconds of the call beyond those that the server shall watch: so it is the server that says WATCH_TIMEOUT. */
const MARGIN = 5;
const FINAL = ['COMPLETED', 'REJECTED'];

/**
 * Follows the task through as many streams as it takes.
 *
 * @param {import('./client.js').Client} client
 * @param {import('./options.js').Options} options
 */
export async function watch(client, options) {
  const watcher = new Watcher(client, options);
  const waits = new Waits();
  for (;;) {
    const { cursor } = watcher;
    const failure = await watcher.follow();
    if (!failure) return;
    if (!failure.isOverSoon) throw failure;
    if (watcher.cursor !== cursor) waits.reset();
    note(`the stream is lost (${failure.message}); opening a new one`);
    await pause(Math.min(waits.next(), watcher.remaining));
    if (watcher.remaining === 0) throw new Failure('DEADLINE_EXCEEDED');
  }
}

/** What is known of the task so far. */
class Watcher {
  #client;
  #options;
  #end;
  #states = 0;
  #final = false;

  /** The place to go on from. */
  cursor = null;

  /**
   * @param {import('./client.js').Client} client
   * @param {import('./options.js').Options} options
   */
  constructor(client, options) {
    this.#client = client;
    this.#options = options;
    this.#end = options.timeout === undefined ? Infinity : performance.now() + options.timeout * 1000;
  }

  /** Seconds that are left for all of it. */
  get remaining() {
    return Math.max(0, this.#end - performance.now()) / 1000;
  }

  /**
   * Prints states from one stream.
   *
   * @returns {Promise<Failure | undefined>} how it has failed; nothing when all is said
   */
  follow() {
    return new Promise((resolve) => {
      const call = this.#open();
      const leave = (failure) => {
        clearTimeout(patience);
        resolve(failure);
        call.cancel();
      };
      const patience = setTimeout(() => {
        leave(new Failure('UNAVAILABLE', { details: `not a word for ${SILENCE} s` }));
      }, SILENCE * 1000);
      call.on('data', (response) => {
        patience.refresh();
        if (!this.#enough && this.#show(response)) {
          emit('cancelled');
          leave(undefined);
        }
      });
      call.on('status', (status) => leave(status.code === 0 || this.#final ? undefined : Failure.of(status)));
      call.on('error', () => {}); // the status says the same
    });
  }

  #open() {
    const { queue, target, timeout } = this.#options;
    const request = { queue, taskId: target, cursor: this.cursor, progressInterval: toDuration(PROGRESS_INTERVAL) };
    if (timeout === undefined) return this.#client.watch(request);
    const left = this.remaining;
    return this.#client.watch({ ...request, timeout: toDuration(left) }, left + MARGIN);
  }

  get #enough() {
    return this.#states === this.#options.states;
  }

  /**
   * Prints a state.
   *
   * @returns {boolean} whether enough of them were printed
   */
  #show({ state, cursor }) {
    if (cursor) this.cursor = cursor;
    if (!state) return false;
    const status = state.status.toString().replace('TASK_STATUS_', '');
    emit('state', {
      task_id: this.#options.target,
      status,
      dequeue_count: state.dequeueCount,
      result: state.result && readResult(state.result),
    });
    this.#final = FINAL.includes(status);
    this.#states += 1;
    return this.#enough;
  }
}

/**
 * Reads a result; one that is not JSON is shown as base64.
 *
 * @param {{data: Buffer, contentType: string}} payload
 */
function readResult({ data, contentType }) {
  try {
    return JSON.parse(data.toString());
  } catch {
    return { content_type: contentType, base64: data.toString('base64') };
  }
}
