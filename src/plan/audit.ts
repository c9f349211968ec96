import type { Evidence, PodContainer } from "../policy/allocation.ts";
import type { Denied } from "../policy/grant-allocated.ts";
import type { AskedDevice } from "../request/request.ts";
import { OsError } from "../sys/error.ts";
import { makeFolders } from "../sys/folders.ts";
import type { Sys } from "../sys/sys.ts";
import { rfc3339 } from "../sys/time.ts";

/** One line of the audit log, a decision on a pod's container (schemas/audit.json). */
export interface AuditLine {
  readonly version: 1;
  /** RFC 3339, UTC. */
  readonly time: string;
  /**
   * `granted`: it gets all that it asks for. `refused`: it does not start. `reported`: it starts, although it asks for or
   * carries what it may not have; of what it asks for, it gets what it may have.
   */
  readonly decision: "granted" | "refused" | "reported";
  readonly door: string;
  /** Of the container. */
  readonly id: string;
  readonly pod: PodContainer;
  readonly asked: readonly AskedDevice[];
  /** GPUs that others had put into its config.json. */
  readonly carried: readonly string[];
  readonly privileged: boolean;
  /** CDI device names that it was given. */
  readonly given: readonly string[];
  /** Of the plan; absent where there is none. */
  readonly digest?: string;
  readonly denied: readonly Omit<Denied, "remedy">[];
  /** What the kubelet allocated, and means no device here; in words. */
  readonly notUnderstood: readonly string[];
  /** How many entries of these lists are left out; absent where they are whole. */
  readonly omitted?: number;
  /** What the kubelet said, or why it did not; absent where nobody had to ask it. */
  readonly evidence?: Evidence;
}

/** Whose line it is. */
export type AuditHead = Pick<AuditLine, "decision" | "door" | "id" | "pod">;
/** What is told of the decision. */
export type Told = Omit<AuditLine, "version" | "time" | "evidence" | keyof AuditHead>;

/**
 * Writes the line at the end of `audit.jsonl`, in one write: lines of several doors do not mix.
 *
 * @param told a `Told` as JSON
 * @param evidence the line's, as JSON
 * @throws OsError
 */
export function writeAudit(
  sys: Sys,
  logDir: string,
  head: AuditHead,
  told: string,
  evidence: string | undefined,
): void {
  const start: Omit<AuditLine, keyof Told | "evidence"> = { version: 1, time: rfc3339(sys.now()), ...head };
  const tail = evidence === undefined ? "}" : `,"evidence":${evidence}}`;
  const text = `${JSON.stringify(start).slice(0, -1)},${told.slice(1, -1)}${tail}\n`;
  const path = `${logDir}/audit.jsonl`;
  try {
    sys.appendFile(path, text, 0o600);
  } catch (thrown) {
    if (!(thrown instanceof OsError) || thrown.code !== "ENOENT") throw thrown;
    makeFolders((folder, mode) => sys.mkdir(folder, mode), logDir, 0o700);
    sys.appendFile(path, text, 0o600);
  }
}
