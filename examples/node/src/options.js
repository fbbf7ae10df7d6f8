// The command line.

import { readFileSync, statSync } from 'node:fs';
import { parseArgs } from 'node:util';

export const USAGE = `usage: torrelque-example VERB [OPTIONS]

  produce FOLDER   one task for each file below the folder      --limit N --batch N
  consume          digest files, release with the result        --credit N --policy keep|requeue --hold SECONDS
                                                                --until N --idle SECONDS
  watch TASK_ID    print each state until the last              --timeout SECONDS --states N
  poll             ask for tasks once                           --timeout SECONDS --deadline SECONDS --max N
  release TASK_ID  end one task                                 --dequeue-count N --result JSON

  every verb                                                    --address HOST:PORT --queue NAME --ca FILE`;

const MAX_INT32 = 2 ** 31 - 1;
const MAX_SECONDS = 2_000_000; // a timer of Node holds 2 ** 31 ms
const LOOPBACK = /^(localhost|127(\.\d+){3}|\[::1\]):/;

/** The arguments cannot be used. */
export class UsageError extends Error {}

/**
 * What was asked for; undefined is what was not given and has no default.
 *
 * @typedef {object} Options
 * @property {'produce' | 'consume' | 'watch' | 'poll' | 'release'} verb
 * @property {string} target FOLDER or TASK_ID
 * @property {string} address
 * @property {string} queue empty is the server's default one
 * @property {Buffer} [ca]
 * @property {string} [token]
 * @property {number} [limit]
 * @property {number} batch
 * @property {number} credit
 * @property {'keep' | 'requeue'} policy
 * @property {number} hold seconds
 * @property {number} [until]
 * @property {number} [idle] seconds
 * @property {number} [timeout] seconds
 * @property {number} [states]
 * @property {number} [deadline] seconds
 * @property {number} max
 * @property {number} [dequeueCount]
 * @property {string} [result]
 */

/**
 * What a verb is about, and its options with their defaults.
 *
 * @type {Record<string, {target?: string, defaults: Record<string, unknown>}>}
 */
const VERBS = {
  produce: { target: 'FOLDER', defaults: { limit: undefined, batch: 1 } },
  consume: { defaults: { credit: 4, policy: 'keep', hold: 0, until: undefined, idle: undefined } },
  watch: { target: 'TASK_ID', defaults: { timeout: undefined, states: undefined } },
  poll: { defaults: { timeout: 10, deadline: undefined, max: 1 } },
  release: { target: 'TASK_ID', defaults: { 'dequeue-count': undefined, result: undefined } },
};

/** How the text of an option is read. @type {Record<string, (text: string) => unknown>} */
const READERS = {
  address: readAddress,
  queue: (text) => text,
  ca: readCertificates,
  limit: number(1),
  batch: number(1),
  credit: number(1),
  policy: (text) => (['keep', 'requeue'].includes(text) ? text : refuse('keep or requeue', text)),
  hold: seconds,
  until: number(1),
  idle: seconds,
  timeout: seconds,
  states: number(1),
  deadline: seconds,
  max: number(1),
  'dequeue-count': number(0),
  result: readJson,
};

/**
 * Reads the command line and the environment.
 *
 * @param {string[]} args
 * @returns {Options}
 * @throws {UsageError}
 */
export function parse(args) {
  const { values, positionals } = split(args);
  const [verb, target, ...rest] = positionals;
  const known = Object.hasOwn(VERBS, verb ?? '') ? VERBS[verb] : undefined;
  if (!known) throw new UsageError(verb ? `no such verb: ${verb}\n\n${USAGE}` : USAGE);
  if (known.target ? target === undefined : target !== undefined) {
    throw new UsageError(known.target ? `${verb} needs a ${known.target}` : `${verb} takes no argument: ${target}`);
  }
  if (rest.length > 0) throw new UsageError(`too many arguments: ${rest.join(' ')}`);
  if (verb === 'produce' && !statSync(target, { throwIfNoEntry: false })?.isDirectory()) {
    throw new UsageError(`not a folder: ${target}`);
  }
  const options = { verb, target, address: '127.0.0.1:50051', queue: '', token: process.env.TORRELQUE_TOKEN };
  const texts = { ...fromEnvironment(), ...values };
  for (const [name, value] of Object.entries({ ...known.defaults, ...read(verb, known, texts) })) {
    options[name === 'dequeue-count' ? 'dequeueCount' : name] = value;
  }
  if (options.token && !('ca' in options) && !LOOPBACK.test(options.address)) {
    throw new UsageError('TORRELQUE_TOKEN is not sent beyond this machine without --ca: everybody could read it');
  }
  return /** @type {Options} */ (options);
}

/** @param {string[]} args */
function split(args) {
  const options = Object.fromEntries(
    Object.keys(READERS).map((name) => [name, { type: /** @type {const} */ ('string') }]),
  );
  try {
    return parseArgs({ args, options, allowPositionals: true });
  } catch (error) {
    throw new UsageError(/** @type {Error} */ (error).message);
  }
}

function fromEnvironment() {
  const { TORRELQUE_ADDRESS: address, TORRELQUE_QUEUE: queue, TORRELQUE_CA: ca } = process.env;
  return Object.fromEntries(Object.entries({ address, queue, ca }).filter(([, text]) => text));
}

/**
 * @param {string} verb
 * @param {{defaults: Record<string, unknown>}} known
 * @param {Record<string, string | undefined>} values
 */
function read(verb, known, values) {
  const own = ['address', 'queue', 'ca', ...Object.keys(known.defaults)];
  return Object.fromEntries(
    Object.entries(values).map(([name, text]) => {
      if (!own.includes(name)) throw new UsageError(`${verb} has no option --${name}`);
      try {
        return [name, READERS[name](String(text))];
      } catch (error) {
        throw new UsageError(`--${name}: ${/** @type {Error} */ (error).message}`);
      }
    }),
  );
}

/**
 * @param {string} wanted
 * @param {string} text
 * @returns {never}
 */
function refuse(wanted, text) {
  throw new UsageError(`${wanted} is needed, not '${text}'`);
}

/** @param {string} text */
function readAddress(text) {
  const match = /^(?:[^\s:[\]/]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})$/.exec(text);
  return match && Number(match[1]) > 0 && Number(match[1]) < 65536 ? text : refuse('HOST:PORT', text);
}

/** @param {string} path */
function readCertificates(path) {
  const pem = readFileSync(path);
  return pem.includes('-----BEGIN CERTIFICATE-----') ? pem : refuse('a PEM file with certificates', path);
}

/** @param {number} least */
function number(least) {
  /** @param {string} text */
  return (text) => {
    const value = /^[0-9]{1,10}$/.test(text) ? Number(text) : NaN;
    return value >= least && value <= MAX_INT32 ? value : refuse(`a whole number from ${least}`, text);
  };
}

/** @param {string} text */
function seconds(text) {
  const value = text.trim() === '' ? NaN : Number(text);
  return value >= 0 && value <= MAX_SECONDS ? value : refuse('a number of seconds', text);
}

/** @param {string} text */
function readJson(text) {
  JSON.parse(text);
  return text;
}
