import type { Any } from "./gen/ttrpc_pb.js";

/** The codes of a call's status, which are gRPC's. A peer may send others. */
export const Code = {
  Ok: 0,
  Cancelled: 1,
  Unknown: 2,
  InvalidArgument: 3,
  DeadlineExceeded: 4,
  NotFound: 5,
  AlreadyExists: 6,
  PermissionDenied: 7,
  ResourceExhausted: 8,
  FailedPrecondition: 9,
  Aborted: 10,
  OutOfRange: 11,
  Unimplemented: 12,
  Internal: 13,
  Unavailable: 14,
  DataLoss: 15,
  Unauthenticated: 16,
} as const;

/** Why a call failed: the status that its peer gave it, or one that we gave it here. */
export class TtrpcError extends Error {
  override readonly name: string = "TtrpcError";
  readonly code: number;
  /** More for a program, each a protobuf message by the name of its type. */
  readonly details: readonly Any[];

  constructor(code: number, message: string, details: readonly Any[] = [], cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
    this.details = details;
  }
}

/** The connection has ended, and with it the call, of which nobody knows how far it came. */
export class ClosedError extends TtrpcError {
  override readonly name = "ClosedError";

  constructor(cause?: unknown) {
    const why = cause instanceof Error ? `: ${cause.message}` : "";
    super(Code.Unavailable, `ttrpc: the connection is closed${why}`, [], cause);
  }
}

/** The status of a call whose handler threw. */
export function errorOf(thrown: unknown): TtrpcError {
  if (thrown instanceof TtrpcError && thrown.code !== Code.Ok) return thrown;
  return new TtrpcError(Code.Unknown, textOf(thrown), [], thrown);
}

export function textOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}

export function oversizeError(length: number, limit: number): TtrpcError {
  return new TtrpcError(Code.ResourceExhausted, `message of ${length} bytes is longer than the limit, ${limit} bytes`);
}

export function tooLate(): TtrpcError {
  return new TtrpcError(Code.DeadlineExceeded, "the deadline has passed");
}
