// release: ends one task.

import { emit } from './events.js';

/**
 * Releases the task as COMPLETED. A program that works on tasks would always send their dequeueCount.
 *
 * @param {import('./client.js').Client} client
 * @param {import('./options.js').Options} options
 */
export async function release(client, { queue, target, dequeueCount, result }) {
  // The text as it was given: what it becomes by JSON.parse and back would lose digits of long numbers.
  const payload = result === undefined ? undefined : { data: Buffer.from(result) };
  await client.call('release', { queue, taskId: target, dequeueCount, result: payload });
  emit('done', { task_id: target });
}
