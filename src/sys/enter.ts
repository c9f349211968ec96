import { OsError, printable, SluiceError } from "./error.ts";
import type { Sys } from "./sys.ts";
import { traceSource } from "./trace.part.ts";

/** Exit codes of every command (DESIGN.md section 5); 70 is sysexits' EX_SOFTWARE, a defect of ours. */
export const EXIT = { done: 0, failed: 1, usage: 2, internal: 70 } as const;

/** The one line in which every failure is told: `sluice: E_CODE: what happened; what to do`. */
export function errorLine(thrown: unknown): string {
  return printable(`sluice: ${messageOf(thrown)}`);
}

function messageOf(thrown: unknown): string {
  if (thrown instanceof SluiceError) return thrown.message;
  const text = thrown instanceof Error ? `${thrown.name}: ${thrown.message}` : String(thrown);
  return `E_INTERNAL: ${text}; this is a defect of Sluice, please report it with the lines below`;
}

/** What a defect's stack is in terms of the TypeScript sources; empty for an expected refusal. */
export function stackOf(thrown: unknown): string {
  if (thrown instanceof SluiceError || !(thrown instanceof Error) || thrown.stack === undefined) return "";
  return traceSource(thrown.stack);
}

/** Runs a door or command: whatever it throws is told on standard error and becomes the exit code. */
export function enter(sys: Sys, main: (sys: Sys) => number): number {
  try {
    return main(sys);
  } catch (caught) {
    const thrown = isOutput(caught) ? outputError(caught) : caught;
    sys.err(`${errorLine(thrown)}\n${stackOf(thrown)}`);
    return thrown instanceof SluiceError ? EXIT.failed : EXIT.internal;
  }
}

/** Whether it was standard output that could not be written: the one write without a path. */
function isOutput(thrown: unknown): thrown is OsError {
  return thrown instanceof OsError && thrown.syscall === "write" && thrown.path === "";
}

function outputError(error: OsError): SluiceError {
  return new SluiceError(
    "E_OUTPUT",
    `standard output cannot be written (${error.code})`,
    "make room where it goes, or send it elsewhere",
    error,
  );
}
