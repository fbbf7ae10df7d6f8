// poll: asks for tasks once.

import { createHash } from 'node:crypto';
import { toDuration } from './durations.js';
import { emit } from './events.js';

/** Seconds of the call beyond those that the server shall wait: so it is the server that ends the wait. */
const MARGIN = 5;

/**
 * Dequeues, and leaves the tasks leased.
 *
 * @param {import('./client.js').Client} client
 * @param {import('./options.js').Options} options
 */
export async function poll(client, { queue, max, timeout = 0, deadline = timeout + MARGIN }) {
  const { tasks } = await client.call('dequeue', { queue, maxTasks: max, timeout: toDuration(timeout) }, deadline);
  emit('polled', { tasks: tasks.map(describe) });
}

/** @param {{taskId: string, dequeueCount: number, payload: {data: Buffer} | null}} task */
function describe({ taskId, dequeueCount, payload }) {
  const data = payload?.data ?? Buffer.alloc(0);
  const sha256 = createHash('sha256').update(data).digest('hex');
  return { task_id: taskId, dequeue_count: dequeueCount, bytes: data.length, sha256 };
}
