// The work itself: the digest of a file. A real service has its own work here.

import { createHash } from 'node:crypto';
import { constants, open } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

const LINE_FEED = 0x0a;

/**
 * Works on one task, and says how it shall be released.
 *
 * @param {Buffer} payload
 * @param {number} hold seconds
 * @param {AbortSignal} signal stops it: then it throws
 * @returns {Promise<{status: string, result: {data: Buffer}}>} a ReleaseAction
 */
export async function work(payload, hold, signal) {
  let status, result;
  try {
    result = await digest(JSON.parse(payload.toString()).path, signal);
    status = 'TASK_STATUS_COMPLETED';
  } catch (error) {
    signal.throwIfAborted();
    result = { error: String(error) };
    status = 'TASK_STATUS_REJECTED';
  }
  await sleep(hold * 1000, undefined, { signal });
  return { status, result: { data: Buffer.from(JSON.stringify(result)) } };
}

/**
 * @param {string} path
 * @param {AbortSignal} signal
 */
async function digest(path, signal) {
  const hash = createHash('sha256');
  let bytes = 0;
  let lines = 0;
  // O_NONBLOCK: opening a named pipe would wait for a writer otherwise.
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    if (!(await file.stat()).isFile()) throw new Error(`not a regular file: ${path}`);
    for await (const chunk of file.createReadStream({ autoClose: false, signal })) {
      hash.update(chunk);
      bytes += chunk.length;
      lines += countLines(chunk);
    }
  } finally {
    await file.close();
  }
  return { sha256: hash.digest('hex'), bytes, lines, language: 'node' };
}

/** @param {Buffer} chunk */
function countLines(chunk) {
  let lines = 0;
  for (let at = chunk.indexOf(LINE_FEED); at !== -1; at = chunk.indexOf(LINE_FEED, at + 1)) lines += 1;
  return lines;
}
