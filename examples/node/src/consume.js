// consume: works on tasks as they come, until told to stop.

import { emit, note } from './events.js';
import { Failure } from './failures.js';
import { Hands } from './hands.js';
import { CLOSE_GRACE, Link } from './link.js';
import { pause } from './waits.js';

/** Seconds for the server to confirm what is settled last. What it does not confirm comes back after its lease. */
const SETTLE_GRACE = 10;

/**
 * Consumes, and says how many tasks were released.
 *
 * @param {import('./client.js').Client} client
 * @param {import('./options.js').Options} options
 */
export async function consume(client, options) {
  const link = new Link(client, options);
  const hands = new Hands(options, link);
  const streams = link.keep(hands);
  await Promise.race([streams, untilTold(hands, options.idle).then(() => stop(hands, link, streams))]);
  emit('consumed', { tasks: hands.released });
}

/**
 * Waits for the first reason to stop: a signal, enough tasks, or none for long enough.
 *
 * @param {Hands} hands
 * @param {number} [idle] seconds
 * @returns {Promise<void>}
 */
function untilTold(hands, idle) {
  return new Promise((resolve) => {
    /** @type {NodeJS.Timeout | undefined} */
    let idleness;
    const end = () => {
      clearTimeout(idleness);
      hands.off('change', look);
      // Only the first signal is taken: another one ends the program at once.
      process.off('SIGTERM', tell).off('SIGINT', tell);
      resolve();
    };
    const tell = () => {
      note('stopping: what is in hand will be finished');
      end();
    };
    const look = () => {
      clearTimeout(idleness);
      if (hands.enough) end();
      else if (hands.empty && idle !== undefined) idleness = setTimeout(end, idle * 1000);
    };
    process.on('SIGTERM', tell).on('SIGINT', tell);
    hands.on('change', look);
    look();
  });
}

/**
 * Takes no more, finishes and settles what is in hand, then closes the stream.
 *
 * @param {Hands} hands
 * @param {Link} link
 * @param {Promise<void>} streams
 */
async function stop(hands, link, streams) {
  hands.stop();
  await finish(hands, link);
  // What was on its way when we said stop is work like the rest.
  while (link.stream && !link.stream.quiet) {
    const hushed = link.stream.hush().then(() => true);
    if (!(await Promise.race([hushed, pause(CLOSE_GRACE)]))) return;
    await finish(hands, link);
  }
  if (link.close()) await streams;
}

/**
 * Waits until all is done and settled; the last settlements have a time limit.
 *
 * @param {Hands} hands
 * @param {Link} link
 */
async function finish(hands, link) {
  while (!hands.empty) {
    await hands.until(() => !hands.working);
    if (!(await hands.until(() => hands.empty || hands.working, { seconds: SETTLE_GRACE }))) {
      throw link.failure ?? new Failure('DEADLINE_EXCEEDED');
    }
  }
}
