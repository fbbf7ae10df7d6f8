// Keeps a Consume stream open: opens a new one when it is lost, and leaves one in order when the server drains.

import { EventEmitter, once } from 'node:events';
import { status as codes } from '@grpc/grpc-js';
import { toSeconds } from './durations.js';
import { emit, note } from './events.js';
import { Failure } from './failures.js';
import { SILENCE, Stream } from './stream.js';
import { pause, Waits } from './waits.js';

/** Seconds for the server to end the stream after we have half-closed it. */
export const CLOSE_GRACE = 5;

/** The way to the server: one stream after another. */
export class Link extends EventEmitter {
  #client;
  #options;
  #waits = new Waits();
  #closing = false;

  /** The stream that can be written to. @type {Stream | null} */
  stream = null;

  /** Why the latest stream has ended. @type {Failure | null} */
  failure = null;

  /**
   * @param {import('./client.js').Client} client
   * @param {import('./options.js').Options} options
   */
  constructor(client, options) {
    super();
    this.setMaxListeners(0);
    this.#client = client;
    this.#options = options;
  }

  /**
   * Opens streams until closed.
   *
   * @param {import('./hands.js').Hands} hands who takes what is delivered
   * @throws {Failure} when the server says that the mistake is ours
   */
  async keep(hands) {
    for (;;) {
      this.failure = await this.#follow(hands);
      if (this.#closing) return;
      if (this.failure.isMistake) throw this.failure;
      const delay = this.#waits.next();
      emit('reconnecting', { code: this.failure.code, reason: this.failure.reason, delay });
      note(this.failure.message);
      await pause(delay);
    }
  }

  /**
   * Gives the stream that is open, or waits for the next one.
   *
   * @returns {Promise<Stream>}
   */
  async current() {
    while (!this.stream) await once(this, 'opened');
    return this.stream;
  }

  /**
   * Half-closes the stream, and opens no other.
   *
   * @returns {boolean} whether there is a stream whose end is to be waited for
   */
  close() {
    this.#closing = true;
    if (!this.stream) return false;
    this.#leave(this.stream);
    return true;
  }

  /**
   * Lives through one stream.
   *
   * @param {import('./hands.js').Hands} hands
   * @returns {Promise<Failure>} how it has ended
   */
  #follow(hands) {
    return new Promise((resolve) => {
      const { queue, policy } = this.#options;
      const call = this.#client.consume();
      const stream = new Stream(call, { queue, policy, credit: hands.allowance(null) });
      let silent = false;
      const patience = setTimeout(() => {
        silent = true;
        call.cancel();
      }, SILENCE * 1000);
      call.on('data', (response) => {
        patience.refresh();
        this.#hear(stream, response, hands);
      });
      call.on('status', (status) => {
        clearTimeout(patience);
        stream.end();
        this.#forget(stream);
        resolve(
          silent ? new Failure('UNAVAILABLE', { details: `not a word for ${SILENCE} s` }) : ending(stream, status),
        );
      });
      call.on('error', () => {}); // the status says the same
    });
  }

  /**
   * @param {Stream} stream
   * @param {any} response
   * @param {import('./hands.js').Hands} hands
   */
  #hear(stream, response, hands) {
    if (response.response === 'opened') {
      emit('opened', { consumer_id: response.opened.consumerId });
      this.stream = stream;
      this.emit('opened');
      stream.grant(hands.allowance(stream));
      return;
    }
    this.#waits.reset(); // only now: a server that opens streams to drop them is not to be asked ten times a second
    switch (response.response) {
      case 'delivery':
        if (!stream.closing) for (const task of response.delivery.tasks) hands.take(stream, task);
        break;
      case 'settled':
        stream.confirm(response.settled);
        break;
      case 'draining':
        this.#drain(stream, hands, toSeconds(response.draining.grace));
        break;
    }
  }

  /**
   * Leaves a server that is about to stop, when all is settled or when the time is over.
   *
   * @param {Stream} stream
   * @param {import('./hands.js').Hands} hands
   * @param {number} grace seconds
   */
  async #drain(stream, hands, grace) {
    stream.draining = true;
    await hands.until(() => hands.empty, { seconds: grace, signal: stream.ended });
    this.#leave(stream);
  }

  /** @param {Stream} stream */
  #leave(stream) {
    stream.close(CLOSE_GRACE);
    this.#forget(stream);
  }

  /** @param {Stream} stream */
  #forget(stream) {
    if (this.stream === stream) this.stream = null;
  }
}

/**
 * @param {Stream} stream
 * @param {import('@grpc/grpc-js').StatusObject} status
 */
function ending(stream, status) {
  const drained = stream.draining && (status.code === codes.OK || stream.closing);
  return drained ? new Failure('UNAVAILABLE', { reason: 'SERVER_DRAINING' }) : Failure.of(status);
}
