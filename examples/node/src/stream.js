// One Consume call: what is written to it by one writer, and the settlements that wait for their answer.

import { setMaxListeners } from 'node:events';
import { toDuration } from './durations.js';
import { pause } from './waits.js';

/** Settlements in one message; what gathers while a message is being written goes into the next one. */
const PORTION = 500;
const PROGRESS_INTERVAL = 10;
/** A stream that says nothing for so many seconds is dead. */
export const SILENCE = 3 * PROGRESS_INTERVAL;

const POLICIES = { keep: 'DISCONNECT_POLICY_KEEP_LEASE', requeue: 'DISCONNECT_POLICY_REQUEUE' };

/** The stream has ended without an answer to the settlement. */
export class StreamLost extends Error {
  /** @param {boolean} sent it was sent, so the server may have done it */
  constructor(sent) {
    super('the stream is lost');
    this.sent = sent;
  }
}

/**
 * @typedef {object} ItemError
 * @property {number} index
 * @property {number} code
 * @property {string} reason
 * @property {string} status of the task, where it is known
 * @property {number} dequeueCount
 *
 * @typedef {{settlement?: object, resolve: (error?: ItemError) => void, reject: (error: StreamLost) => void}} Pending
 */

/** The writing half of a Consume call. */
export class Stream {
  #call;
  /** @type {object | null} */
  #opening;
  #granted;
  #wanted;
  #writing = false;
  #sequence = 0;
  /** @type {Pending[]} */
  #outbox = [];
  /** @type {Pending[]} */
  #fences = [];
  /** The settlements that were sent, by the sequence of their message. @type {Map<string, Pending[]>} */
  #sent = new Map();
  #end = new AbortController();

  /** The server is about to stop: no deliveries will come any more. */
  draining = false;

  /** Nothing will be delivered any more, as we have said so. */
  quiet = false;

  /** Nothing will be written after what was said so far. */
  closing = false;

  /**
   * @param {import('@grpc/grpc-js').ClientDuplexStream<any, any>} call
   * @param {{queue: string, policy: 'keep' | 'requeue', credit: number}} options
   */
  constructor(call, { queue, policy, credit }) {
    this.#call = call;
    // Nobody can open with a credit of 0: what goes beyond ours is taken back at once.
    this.#granted = Math.max(1, credit);
    this.#wanted = credit;
    this.#opening = {
      queue,
      maxOutstandingTasks: this.#granted,
      disconnectPolicy: POLICIES[policy],
      progressInterval: toDuration(PROGRESS_INTERVAL),
    };
    setMaxListeners(0, this.ended);
    this.#write();
  }

  /** Aborted when the call is over. */
  get ended() {
    return this.#end.signal;
  }

  /**
   * Lets the server have so many tasks delivered and not settled.
   *
   * @param {number} credit
   */
  grant(credit) {
    this.#wanted = credit;
    this.#write();
  }

  /**
   * Sends a settlement and waits for its answer.
   *
   * @param {object} settlement
   * @returns {Promise<ItemError | undefined>}
   * @throws {StreamLost}
   */
  settle(settlement) {
    return new Promise((resolve, reject) => {
      this.#outbox.push({ settlement, resolve, reject });
      this.#write();
    });
  }

  /** Waits until nothing can be on its way any more. Credit must be 0: then nothing follows a later answer. */
  async hush() {
    await new Promise((resolve) => {
      this.#fences.push({ resolve, reject: resolve });
      this.#write();
    });
    this.quiet = true;
  }

  /**
   * Hands out the answers: the server lists failures only.
   *
   * @param {{sequence: string, errors: ItemError[]}} settled
   */
  confirm({ sequence, errors }) {
    const portion = this.#sent.get(sequence) ?? [];
    this.#sent.delete(sequence);
    const failed = new Map(errors.map((error) => [error.index, error]));
    portion.forEach(({ resolve }, index) => resolve(failed.get(index)));
  }

  /**
   * Half-closes, after what was said so far.
   *
   * @param {number} grace seconds for the server to end the call
   */
  close(grace) {
    if (this.closing) return;
    this.closing = true;
    this.#write();
    void pause(grace, this.ended).then(() => this.#call.cancel()); // no harm when it is over
  }

  /** Tells those who wait that there will be no answers. */
  end() {
    this.#end.abort();
    for (const portion of this.#sent.values()) for (const { reject } of portion) reject(new StreamLost(true));
    for (const { reject } of [...this.#outbox, ...this.#fences]) reject(new StreamLost(false));
  }

  // The one writer. It goes on when the message before has left, and takes everything that has gathered by then.
  #write() {
    if (this.#writing || this.ended.aborted) return;
    const request = this.#nextRequest();
    if (request) {
      this.#writing = true;
      this.#call.write(request, () => {
        this.#writing = false;
        this.#write();
      });
    } else if (this.closing) {
      this.#call.end();
    }
  }

  #nextRequest() {
    if (this.#opening) {
      const open = this.#opening;
      this.#opening = null;
      return { open };
    }
    // Before settlements: when credit shrinks because of one, the server must know before it counts that one.
    if (this.#wanted !== this.#granted) {
      this.#granted = this.#wanted;
      return { credit: { maxOutstandingTasks: this.#granted } };
    }
    if (this.#outbox.length > 0) return this.#settle(this.#outbox.splice(0, PORTION));
    if (this.#fences.length > 0) return this.#settle(this.#fences.splice(0));
    return undefined;
  }

  /** @param {Pending[]} portion settlements, or fences, which need an answer only */
  #settle(portion) {
    const sequence = String(++this.#sequence);
    this.#sent.set(sequence, portion);
    return { settle: { sequence, settlements: portion.flatMap(({ settlement }) => settlement ?? []) } };
  }
}
