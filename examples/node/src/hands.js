// The tasks in hand: each is worked on, kept leased meanwhile, and settled, on whatever stream there is by then.

import { EventEmitter } from 'node:events';
import { status as codes } from '@grpc/grpc-js';
import { openClient } from './client.js';
import { work } from './digest.js';
import { toSeconds } from './durations.js';
import { emit } from './events.js';
import { Failure } from './failures.js';
import { Lease, LeaseEnds, NotExtended, now } from './lease.js';
import { Slots } from './slots.js';
import { StreamLost } from './stream.js';
import { pause, Waits } from './waits.js';

/** The task is not ours any more: its work is in vain. */
const LOST = ['LEASE_LOST', 'TASK_NOT_FOUND', 'TASK_NOT_WORKING'];
/** Codes of a failed settlement that say nothing about the task: it is sent again. */
const TRANSIENT = [codes.UNAVAILABLE, codes.RESOURCE_EXHAUSTED, codes.UNKNOWN];
const FINAL = ['TASK_STATUS_COMPLETED', 'TASK_STATUS_REJECTED'];

/** The server will not have a settlement: the task is somebody else's by now, or the result is not acceptable. */
class Refused extends Error {
  /** @param {string} reason */
  constructor(reason) {
    super(reason);
    this.reason = reason;
  }
}

/**
 * @typedef {object} Task
 * @property {string} taskId
 * @property {number} dequeueCount
 * @property {{data: Buffer} | null} payload
 * @property {import('./durations.js').Duration | null} timeout
 */

/**
 * One delivery of a task: a later one of the same task is another.
 *
 * @typedef {object} Delivery
 * @property {Task} task
 * @property {import('./stream.js').Stream} stream the one that brought it, where it counts as outstanding
 * @property {number} came when, by the monotonic clock
 * @property {boolean} settling the work is done, and the server is being told
 */

/** What has been delivered and not yet settled. Emits 'change'. */
export class Hands extends EventEmitter {
  #options;
  #link;
  #slots;
  /** @type {Set<Delivery>} */
  #held = new Set();
  #stopping = false;

  /** How many tasks were released. */
  released = 0;

  /**
   * @param {import('./options.js').Options} options
   * @param {import('./link.js').Link} link
   */
  constructor(options, link) {
    super();
    this.setMaxListeners(0);
    this.#options = options;
    this.#link = link;
    this.#slots = new Slots(options.credit);
  }

  get empty() {
    return this.#held.size === 0;
  }

  /** Something is being worked on, and not only being settled. */
  get working() {
    return [...this.#held].some(({ settling }) => !settling);
  }

  /** So many were released as were asked for. */
  get enough() {
    return this.#options.until !== undefined && this.released >= this.#options.until;
  }

  /**
   * Says how many tasks a stream may have outstanding. What another stream brought and is still worked on takes its
   * share. With --until no more are taken than are wanted; those being settled count as released, until they are
   * refused.
   *
   * @param {import('./stream.js').Stream | null} stream null is one that is to be opened
   */
  allowance(stream) {
    if (this.#stopping) return 0;
    const { credit, until = Infinity } = this.#options;
    const held = [...this.#held];
    const settling = held.filter((delivery) => delivery.settling).length;
    const carried = held.filter((delivery) => !delivery.settling && delivery.stream !== stream).length;
    return Math.max(0, Math.min(credit, until - this.released - settling) - carried);
  }

  /** Takes no more. */
  stop() {
    this.#stopping = true;
    this.#changed();
  }

  /**
   * Waits until something is so.
   *
   * @param {() => boolean} isSo
   * @param {{seconds?: number, signal?: AbortSignal}} [limits] to give up then
   * @returns {Promise<boolean>} whether it is so
   */
  until(isSo, { seconds, signal } = {}) {
    return new Promise((resolve) => {
      const look = () => {
        if (isSo()) end();
      };
      const end = () => {
        clearTimeout(timer);
        this.off('change', look);
        signal?.removeEventListener('abort', end);
        resolve(isSo());
      };
      const timer = seconds === undefined ? undefined : setTimeout(end, seconds * 1000);
      this.on('change', look);
      signal?.addEventListener('abort', end);
      if (signal?.aborted) end();
      else look();
    });
  }

  /**
   * Begins with a task.
   *
   * @param {import('./stream.js').Stream} stream
   * @param {Task} task
   */
  take(stream, task) {
    const delivery = { task, stream, came: now(), settling: false };
    emit('delivered', { task_id: task.taskId, dequeue_count: task.dequeueCount });
    this.#held.add(delivery);
    this.#changed();
    void this.#handle(delivery);
  }

  /**
   * Sees a task through, from its delivery to the answer to its settlement.
   *
   * @param {Delivery} delivery
   */
  async #handle(delivery) {
    const { task, came } = delivery;
    const lease = new Lease(toSeconds(task.timeout), came);
    const over = new AbortController(); // the work is done, or (with a Refused or LeaseEnds) in vain
    lease
      .keep(over.signal, (failed, seconds) => this.#extend(task, failed, seconds))
      .catch((lost) => over.abort(lost));
    try {
      const release = await this.#slots.run(() =>
        work(task.payload?.data ?? Buffer.alloc(0), this.#options.hold, over.signal),
      );
      over.signal.throwIfAborted();
      over.abort();
      delivery.settling = true;
      this.#changed();
      await this.#tell(task, release);
      this.released += 1;
      emit('released', { task_id: task.taskId, dequeue_count: task.dequeueCount });
    } catch (error) {
      // Work that was stopped has nothing to settle any more.
      const cause = delivery.settling ? error : (over.signal.reason ?? error);
      if (cause instanceof Refused) emit('refused', { task_id: task.taskId, reason: cause.reason });
      else if (cause instanceof LeaseEnds) emit('lost', { task_id: task.taskId, dequeue_count: task.dequeueCount });
      else throw cause;
    } finally {
      this.#held.delete(delivery);
      this.#changed();
    }
  }

  /**
   * Asks once for a whole lease from now: on the stream, whose server knows then that the task is still in hand. If
   * that does not answer, by a call on a connection of its own, for the other one may have died without a word.
   *
   * @param {Task} task
   * @param {boolean} failed the last try has
   * @param {number} seconds until another try is made
   * @throws {NotExtended | Refused}
   */
  async #extend(task, failed, seconds) {
    const { stream } = this.#link;
    const reason = failed || !stream ? await this.#extendApart(task, seconds) : await extendOn(stream, task);
    if (LOST.includes(reason)) throw new Refused(reason);
    if (reason) throw new NotExtended(reason);
    emit('extended', { task_id: task.taskId });
  }

  /**
   * @param {Task} task
   * @param {number} seconds
   * @returns {Promise<string>} why not; empty if it was done
   */
  async #extendApart({ taskId, dequeueCount }, seconds) {
    const client = openClient(this.#options);
    try {
      await client.call('extendLease', { queue: this.#options.queue, taskId, dequeueCount }, seconds);
      return '';
    } catch (error) {
      if (error instanceof Failure) return error.reason ?? error.code;
      throw error;
    } finally {
      client.close();
    }
  }

  /**
   * Sends a settlement until it is answered. It is fenced by dequeueCount, so a repeat is harmless.
   *
   * @param {Task} task
   * @param {object} release
   * @throws {Refused}
   */
  async #tell({ taskId, dequeueCount }, release) {
    const waits = new Waits();
    let inDoubt = false; // it was sent before, and that answer is lost
    for (;;) {
      const stream = await this.#link.current();
      try {
        const error = await stream.settle({ taskId, dequeueCount, release });
        if (!error || (inDoubt && wasReleased(dequeueCount, error))) return;
        if (LOST.includes(error.reason) || !TRANSIENT.includes(error.code)) throw new Refused(error.reason);
        inDoubt ||= error.reason === 'OUTCOME_UNKNOWN';
        await pause(waits.next());
      } catch (error) {
        if (!(error instanceof StreamLost)) throw error;
        inDoubt ||= error.sent;
      }
    }
  }

  /** Lets those know who wait for it, and the server. */
  #changed() {
    this.emit('change');
    const { stream } = this.#link;
    stream?.grant(this.allowance(stream));
  }
}

/**
 * @param {import('./stream.js').Stream} stream
 * @param {Task} task
 * @returns {Promise<string>} why not; empty if it was done
 */
async function extendOn(stream, { taskId, dequeueCount }) {
  try {
    const error = await stream.settle({ taskId, dequeueCount, extend: {} });
    return error ? error.reason || 'UNKNOWN' : '';
  } catch (error) {
    if (error instanceof StreamLost) return 'UNAVAILABLE';
    throw error;
  }
}

/**
 * Whether the second of two releases has failed because the first one, whose answer was lost, has done it.
 *
 * @param {number} dequeueCount
 * @param {import('./stream.js').ItemError} error
 */
function wasReleased(dequeueCount, error) {
  return error.reason === 'TASK_NOT_FOUND' || (FINAL.includes(error.status) && error.dequeueCount === dequeueCount);
}
