// The channel: credentials, keepalive, and what is tried again by itself.

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { Failure } from './failures.js';
import { UsageError } from './options.js';

const PROTO = 'torrelque/v1/torrelque.proto';

/** Seconds that a unary call may take, attempts included. Without a deadline a call may wait for ever. */
const CALL_TIMEOUT = 30;

// Calls that may be repeated when their answer is lost: reads; enqueues, for they carry request ids; and what is fenced
// by dequeueCount. Dequeue, Watch and Consume are missing: a repeat of the first would leave leased tasks behind, and
// the streams are opened anew by our own loops.
const REPEATABLE = ['Enqueue', 'BatchEnqueue', 'GetTaskState', 'GetQueueStats', 'Release', 'ExtendLease', 'Requeue'];

const SERVICE_CONFIG = {
  methodConfig: [
    {
      name: REPEATABLE.map((method) => ({ service: 'torrelque.v1.TorrelqueService', method })),
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: '0.1s',
        maxBackoff: '2s',
        backoffMultiplier: 2,
        retryableStatusCodes: ['UNAVAILABLE'],
      },
    },
  ],
  retryThrottling: { maxTokens: 10, tokenRatio: 0.1 },
};

const CHANNEL_OPTIONS = {
  // Channels to one address would share a connection: one that is opened because of a doubt is to have its own.
  'grpc.use_local_subchannel_pool': 1,
  'grpc.service_config': JSON.stringify(SERVICE_CONFIG),
  // A peer that has vanished without a word is noticed after 40 s, also between calls.
  'grpc.keepalive_time_ms': 30_000,
  'grpc.keepalive_timeout_ms': 10_000,
  'grpc.keepalive_permit_without_calls': 1,
  // The channel waits between its own attempts to connect, and calls fail at once meanwhile: no longer than we do.
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.max_reconnect_backoff_ms': 5_000,
};

/** The service, with promises for its unary calls. */
export class Client {
  #stub;

  /** @param {any} stub made by grpc.loadPackageDefinition */
  constructor(stub) {
    this.#stub = stub;
  }

  /**
   * @param {string} method as `enqueue`
   * @param {object} request
   * @param {number} [timeout] seconds
   * @returns {Promise<any>} the response
   * @throws {Failure}
   */
  call(method, request, timeout = CALL_TIMEOUT) {
    return new Promise((resolve, reject) => {
      this.#stub[method](request, { deadline: deadline(timeout) }, (error, response) => {
        if (error) reject(Failure.of(error));
        else resolve(response);
      });
    });
  }

  /**
   * @param {object} request
   * @param {number} [timeout] seconds
   * @returns {import('@grpc/grpc-js').ClientReadableStream<any>}
   */
  watch(request, timeout) {
    return this.#stub.watch(request, timeout === undefined ? {} : { deadline: deadline(timeout) });
  }

  /** @returns {import('@grpc/grpc-js').ClientDuplexStream<any, any>} */
  consume() {
    return this.#stub.consume();
  }

  close() {
    this.#stub.close();
  }
}

/**
 * Opens a channel to the server; it connects at the first call.
 *
 * @param {import('./options.js').Options} options
 */
export function openClient({ address, ca, token }) {
  const credentials = ca ? grpc.credentials.createSsl(ca) : grpc.credentials.createInsecure();
  const interceptors = token ? [bearer(token)] : [];
  return new Client(new (loadService())(address, credentials, { ...CHANNEL_OPTIONS, interceptors }));
}

function loadService() {
  // Who copies this folder takes proto/ along, and says here where it is.
  const folder = process.env.TORRELQUE_PROTO || fileURLToPath(new URL('../../../proto', import.meta.url));
  if (!existsSync(join(folder, PROTO))) {
    throw new UsageError(`no ${PROTO} in ${folder}: TORRELQUE_PROTO names the folder that has it`);
  }
  const definition = loadSync(PROTO, {
    includeDirs: [folder],
    keepCase: false,
    longs: String,
    enums: String,
    defaults: true,
    oneofs: true,
  });
  return /** @type {any} */ (grpc.loadPackageDefinition(definition)).torrelque.v1.TorrelqueService;
}

/**
 * Adds the token to every call. (Call credentials would do so only over TLS.)
 *
 * @param {string} token
 * @returns {import('@grpc/grpc-js').Interceptor}
 */
function bearer(token) {
  return (options, nextCall) =>
    new grpc.InterceptingCall(nextCall(options), {
      start(metadata, listener, next) {
        metadata.set('authorization', `Bearer ${token}`);
        next(metadata, listener);
      },
    });
}

/** @param {number} seconds */
function deadline(seconds) {
  return Date.now() + seconds * 1000;
}
