// How a call has failed: its status, and the google.rpc.ErrorInfo that the server sends beside it.

import { status as codes } from '@grpc/grpc-js';
import protobuf from 'protobufjs';

/** The caller's mistakes: the same call would fail again. */
const MISTAKES = new Set(['INVALID_ARGUMENT', 'PERMISSION_DENIED', 'UNAUTHENTICATED', 'NOT_FOUND', 'UNIMPLEMENTED']);

// What we read of google/rpc/status.proto and google/rpc/error_details.proto. Fields that are not named are skipped.
const google = protobuf.Root.fromJSON({
  nested: {
    Status: {
      fields: {
        code: { type: 'int32', id: 1 },
        details: { rule: 'repeated', type: 'Any', id: 3 },
      },
    },
    Any: {
      fields: {
        typeUrl: { type: 'string', id: 1 },
        value: { type: 'bytes', id: 2 },
      },
    },
    ErrorInfo: {
      fields: {
        reason: { type: 'string', id: 1 },
        domain: { type: 'string', id: 2 },
        metadata: /** @type {any} */ ({ keyType: 'string', type: 'string', id: 3 }),
      },
    },
  },
});
const Status = google.lookupType('Status');
const ErrorInfo = google.lookupType('ErrorInfo');

/** The server said no, or could not be asked. */
export class Failure extends Error {
  /**
   * @param {string} code the name of a status code
   * @param {{reason?: string | null, metadata?: Record<string, string>, details?: string}} [rest]
   */
  constructor(code, { reason = null, metadata = {}, details = '' } = {}) {
    super(`${code}/${reason ?? '-'}: ${details}`);
    this.name = 'Failure';
    this.code = code;
    this.reason = reason;
    this.metadata = metadata;
  }

  /**
   * Reads the status of a call.
   *
   * @param {Pick<import('@grpc/grpc-js').StatusObject, 'code' | 'details' | 'metadata'>} status
   */
  static of({ code, details, metadata }) {
    const info = errorInfo(metadata);
    const reason = info?.reason ?? metadata.get('x-torrelque-reason')[0]?.toString();
    return new Failure(codes[code] ?? String(code), { reason, metadata: info?.metadata, details });
  }

  /** The same call may do later: the server is away, or has no room at present. */
  get isOverSoon() {
    return this.code === 'UNAVAILABLE' || (this.code === 'RESOURCE_EXHAUSTED' && this.reason !== null);
  }

  /** The same call would fail again. */
  get isMistake() {
    return MISTAKES.has(this.code);
  }
}

/**
 * @param {import('@grpc/grpc-js').Metadata} metadata
 * @returns {{reason: string, metadata: Record<string, string>} | undefined}
 */
function errorInfo(metadata) {
  const [encoded] = metadata.get('grpc-status-details-bin');
  if (!(encoded instanceof Buffer)) return undefined;
  try {
    const { details } = Status.toObject(Status.decode(encoded), { arrays: true });
    const found = details.find(({ typeUrl }) => typeUrl.endsWith('/google.rpc.ErrorInfo'));
    return found && ErrorInfo.toObject(ErrorInfo.decode(found.value), { defaults: true, objects: true });
  } catch {
    return undefined; // not readable: the plain trailer will do
  }
}
