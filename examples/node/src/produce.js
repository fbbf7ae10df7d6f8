// produce: one task for each file below a folder.

import { randomUUID } from 'node:crypto';
import { readdir } from 'node:fs/promises';
import { resolve } from 'node:path';
import { emit, note } from './events.js';

/**
 * Enqueues the files in order, one call after the other.
 *
 * @param {import('./client.js').Client} client
 * @param {import('./options.js').Options} options
 */
export async function produce(client, { target, limit, batch, queue }) {
  const paths = (await listFiles(target)).slice(0, limit);
  for (let start = 0; start < paths.length; start += batch) {
    const portion = paths.slice(start, start + batch);
    const tasks = portion.map(toTask);
    const results =
      batch === 1
        ? [await client.call('enqueue', { queue, task: tasks[0] })]
        : (await client.call('batchEnqueue', { queue, tasks })).results;
    results.forEach(({ taskId, deduplicated }, index) => {
      emit('enqueued', { task_id: taskId, path: portion[index], deduplicated });
    });
  }
  emit('produced', { tasks: paths.length });
}

/** @param {string} path */
function toTask(path) {
  // The request id is what makes it safe to repeat the call.
  return { payload: { data: Buffer.from(JSON.stringify({ path })) }, requestId: randomUUID() };
}

/**
 * Lists the regular files below a folder in the order of their paths; links are not followed. Paths are bytes until
 * they are sorted: not every name is text, and text would be sorted otherwise elsewhere.
 *
 * @param {string} folder
 * @returns {Promise<string[]>}
 */
async function listFiles(folder) {
  const found = [];
  const folders = [Buffer.from(resolve(folder))];
  for (let next = folders.pop(); next; next = folders.pop()) {
    for (const entry of await entriesOf(next)) {
      const path = Buffer.concat([next, Buffer.from(next.at(-1) === 0x2f ? '' : '/'), entry.name]);
      if (entry.isDirectory()) folders.push(path);
      else if (entry.isFile()) found.push(path);
    }
  }
  return found.sort(Buffer.compare).flatMap(asText);
}

/** @param {Buffer} folder */
async function entriesOf(folder) {
  try {
    return await readdir(folder, { withFileTypes: true, encoding: 'buffer' });
  } catch (error) {
    note(`left out: ${/** @type {Error} */ (error).message}`);
    return [];
  }
}

/**
 * @param {Buffer} path
 * @returns {string[]} one path, or none
 */
function asText(path) {
  try {
    return [new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(path)];
  } catch {
    note(`left out, for JSON cannot hold its name: ${path}`);
    return [];
  }
}
