/** The log of sluiced: JSON, one line an event, on standard error or, where that leads nowhere, in a file. */

import * as fs from "node:fs";
import { destination, type Logger, pino, stdTimeFunctions } from "pino";
import type { DaemonSettings } from "../policy/config.ts";
import { SluiceError } from "../sys/error.ts";

export type Log = Pick<Logger, "debug" | "info" | "warn" | "error" | "fatal" | "isLevelEnabled">;

export interface Logs {
  readonly log: Log;
  /** The file that is written to; `undefined` for standard error. */
  readonly file: string | undefined;
  setLevel(level: DaemonSettings["logLevel"]): void;
  /** Writes on in a new file: somebody has put the old one aside. */
  reopen(): void;
  /** Writes what waits, before the process ends; Node ends a write that has begun by itself. */
  flush(): void;
}

/** Bytes that wait for a reader of the log who has stopped to read. What goes beyond is lost: containers come first. */
const MAX_WAITING = 1 << 20;

/**
 * Where a log can go. An engine that starts its NRI plugins itself gives them /dev/null for standard error, and a log
 * that nobody can read is none.
 *
 * @param dir of the file, `/var/log/sluice`
 */
export function logFile(dir: string): string | undefined {
  return leadsNowhere(2) ? `${dir}/sluiced.log` : undefined;
}

function leadsNowhere(fd: number): boolean {
  try {
    const { rdev } = fs.fstatSync(fd);
    return rdev !== 0 && rdev === fs.statSync("/dev/null").rdev;
  } catch {
    return true; // closed
  }
}

/**
 * @param file made where it is missing, with its folder, for root alone; `undefined` for standard error
 * @throws SluiceError E_DAEMON_LOG
 */
export function openLogs(level: DaemonSettings["logLevel"], file: string | undefined): Logs {
  // Not synchronous: a journal that hangs must not hold up containers.
  const options = { sync: false, maxLength: MAX_WAITING } as const;
  const out = destination(file === undefined ? { ...options, dest: 2 } : { ...options, dest: opened(file) });
  out.on("error", () => {}); // a reader that went away is not an error
  const log = pino(
    {
      level,
      base: null,
      timestamp: stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      // Ours have a code and a remedy; of any other the stack is what helps.
      serializers: { err: describe },
    },
    out,
  );
  return {
    log,
    file,
    setLevel: (next) => {
      log.level = next;
    },
    reopen: () => {
      if (file !== undefined) out.reopen(opened(file));
    },
    flush: () => {
      try {
        out.flushSync();
      } catch {
        // nobody reads, or the disk is full: there is nowhere to say so
      }
    },
  };
}

/** The file's path, once it is sure that it can be written to. */
function opened(file: string): string {
  try {
    fs.mkdirSync(file.slice(0, file.lastIndexOf("/")), { recursive: true, mode: 0o700 });
    fs.closeSync(fs.openSync(file, "a", 0o600));
    return file;
  } catch (thrown) {
    throw new SluiceError(
      "E_DAEMON_LOG",
      `the log ${file} cannot be written: ${(thrown as Error).message}`,
      "make its folder writable, or give sluiced a standard error that is not /dev/null",
      thrown,
    );
  }
}

/** What a log line holds of something that was thrown. */
export function describe(thrown: unknown): object {
  if (thrown instanceof SluiceError) return { code: thrown.code, what: thrown.what, remedy: thrown.remedy };
  if (!(thrown instanceof Error)) return { code: "E_INTERNAL", what: String(thrown) };
  return { code: "E_INTERNAL", what: `${thrown.name}: ${thrown.message}`, stack: thrown.stack };
}
