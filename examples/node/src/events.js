// What the program says: a JSON object a line for programs, the rest for people.

/**
 * Prints one event on standard output. Pipes and files are written to at once, without a buffer of ours.
 *
 * @param {string} event
 * @param {Record<string, unknown>} [fields]
 */
export function emit(event, fields = {}) {
  process.stdout.write(`${JSON.stringify({ event, ...fields })}\n`);
}

/**
 * Prints a line for people on standard error.
 *
 * @param {string} text
 */
export function note(text) {
  process.stderr.write(`${text}\n`);
}
