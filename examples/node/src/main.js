#!/usr/bin/env node
// The program: reads the command line, does what the verb says, and turns how it went into an exit code.

import { openClient } from './client.js';
import { consume } from './consume.js';
import { emit, note } from './events.js';
import { Failure } from './failures.js';
import { parse, USAGE, UsageError } from './options.js';
import { poll } from './poll.js';
import { produce } from './produce.js';
import { release } from './release.js';
import { watch } from './watch.js';

const VERBS = { produce, consume, watch, poll, release };

/**
 * @param {string[]} args
 * @returns {Promise<number>} the exit code
 */
async function run(args) {
  if (args.includes('--help') || args.includes('-h')) {
    note(USAGE);
    return 0;
  }
  let options, client;
  try {
    options = parse(args);
    client = openClient(options);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    note(error.message);
    return 2;
  }
  try {
    await VERBS[options.verb](client, options);
    return 0;
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    emit('error', { code: error.code, reason: error.reason, metadata: error.metadata });
    note(error.message);
    return 1;
  } finally {
    client.close();
  }
}

// Nobody reads any more.
process.stdout.on('error', () => process.exit(1));

// Not only process.exitCode: after an error there may be work left, and nobody waits for that any more.
process.exit(await run(process.argv.slice(2)));
