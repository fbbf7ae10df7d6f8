// google.protobuf.Duration, as proto-loader has it.

/** @typedef {{seconds: number | string, nanos: number}} Duration */

/**
 * @param {number} seconds
 * @returns {Duration}
 */
export function toDuration(seconds) {
  const whole = Math.floor(seconds);
  return { seconds: whole, nanos: Math.min(Math.round((seconds - whole) * 1e9), 999_999_999) };
}

/** @param {Duration | null} duration */
export function toSeconds(duration) {
  return duration ? Number(duration.seconds) + duration.nanos / 1e9 : 0;
}
